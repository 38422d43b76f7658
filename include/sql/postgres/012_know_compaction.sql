-- Maintenance: what it did is an event like any other.
ALTER TABLE coldchain.attempts DROP CONSTRAINT attempts_event_check;
ALTER TABLE coldchain.attempts ADD CONSTRAINT attempts_event_check CHECK (event IN
    ('started', 'idle', 'staged', 'validated', 'publishing', 'committed', 'failed', 'fenced', 'recovered', 'reset',
     'accepted', 'audited', 'compacted', 'tidied'));

-- A publication that changes no content is a compaction. It is counted as such, not as rows that were published; and its
-- segment keeps the dates of what it replaces, so that it neither counts as today's rows nor puts off the audit.
CREATE OR REPLACE FUNCTION coldchain.count_window() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    seconds double precision;
    replaced record;
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM coldchain.raise_counter(NEW.table_id, 'windows', CASE NEW.state WHEN 'empty' THEN 'noop' ELSE 'expired' END, 1);
        RETURN NULL;
    END IF;
    IF cardinality(NEW.replaces) > 0 AND NEW.rows > 0 THEN
        SELECT sum(rows) AS rows, sum(hash) % 18446744073709551616 AS hash, max(created_at) AS created_at,
            min(coalesce(verified_at, created_at)) AS verified_at, count(*) FILTER (WHERE version <> NEW.version) AS odd
        INTO replaced FROM coldchain.segments WHERE segment_id = ANY (NEW.replaces) AND rows > 0;
        IF replaced.rows = NEW.rows AND replaced.hash = NEW.hash AND replaced.odd = 0 THEN
            UPDATE coldchain.segments SET created_at = replaced.created_at, verified_at = replaced.verified_at
            WHERE segment_id = NEW.segment_id;
            PERFORM coldchain.raise_counter(NEW.table_id, 'windows', 'compacted', 1);
            RETURN NULL;
        END IF;
    END IF;
    PERFORM coldchain.raise_counter(NEW.table_id, 'windows', 'published', 1);
    PERFORM coldchain.raise_counter(NEW.table_id, 'rows_published', '', NEW.rows);
    PERFORM coldchain.raise_counter(NEW.table_id, 'bytes_written', '', NEW.bytes);
    IF cardinality(NEW.replaces) = 0 THEN  -- a correction of a window says nothing about how late its rows were first read
        seconds := extract(epoch FROM clock_timestamp() - upper(NEW."window"));
        PERFORM coldchain.raise_counter(NEW.table_id, 'publish_delay',
            coldchain.bound_of(seconds, ARRAY[300, 600, 900, 1200, 1800, 3600, 7200]), 1);
        PERFORM coldchain.raise_counter(NEW.table_id, 'publish_delay_sum', '', seconds);
    END IF;
    RETURN NULL;
END $$;
