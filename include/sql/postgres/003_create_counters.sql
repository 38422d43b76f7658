-- For the status page and the metrics: indexes, and counters that a scrape reads in constant time however long the
-- history is. They begin with this migration; attempts and segments are counted where they are written, so that no
-- restart, and nobody who forgets to, can lose one.
CREATE INDEX segments_published ON coldchain.segments (table_id, lower("window")) WHERE state = 'published';
CREATE INDEX segments_by_publication ON coldchain.segments (table_id, created_at) INCLUDE (rows, bytes)
    WHERE state = 'published';
CREATE INDEX segments_unwell ON coldchain.segments (table_id, state) WHERE state IN ('expired', 'publishing');
CREATE INDEX attempts_by_run ON coldchain.attempts (table_id, run_key, attempt_id DESC);
CREATE INDEX attempts_by_event ON coldchain.attempts (table_id, event, attempt_id DESC);

CREATE TABLE coldchain.counters (
    table_id integer NOT NULL REFERENCES coldchain.tables,
    counter  text NOT NULL,
    label    text NOT NULL DEFAULT '',
    value    double precision NOT NULL,
    PRIMARY KEY (table_id, counter, label)
);
COMMENT ON COLUMN coldchain.counters.label IS 'what the counter is split by: an event, a cause, a stage and upper bound';

CREATE FUNCTION coldchain.raise_counter(of_table integer, named text, labelled text, amount double precision)
RETURNS void LANGUAGE sql SET search_path = pg_catalog AS $$
    INSERT INTO coldchain.counters AS c VALUES (of_table, named, labelled, amount)
    ON CONFLICT (table_id, counter, label) DO UPDATE SET value = c.value + excluded.value
$$;
REVOKE EXECUTE ON FUNCTION coldchain.raise_counter FROM PUBLIC;

-- The smallest bound that holds a value: buckets are kept apart here, and added up by who reads them.
CREATE FUNCTION coldchain.bound_of(value double precision, bounds double precision[])
RETURNS text LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
    SELECT coalesce((SELECT min(bound)::text FROM unnest(bounds) AS bound WHERE value <= bound), '+Inf')
$$;

-- The functions below run as their owner: the runtime role can raise a counter only by doing what is counted.
CREATE FUNCTION coldchain.count_attempt() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    before text;       -- the run's event before this one
    before_task text;
    stage text;
    since timestamptz;
    seconds double precision;
BEGIN
    SELECT event, detail ->> 'task' INTO before, before_task FROM coldchain.attempts
    WHERE table_id = NEW.table_id AND run_key = NEW.run_key AND attempt_id < NEW.attempt_id
    ORDER BY attempt_id DESC LIMIT 1;
    -- The task, and then Airflow's callback for it, may both say that a try failed.
    IF NEW.event <> 'failed' OR before IS DISTINCT FROM 'failed' THEN
        PERFORM coldchain.raise_counter(NEW.table_id, 'events', NEW.event, 1);
    END IF;
    IF NEW.event = 'started' THEN
        -- read_watermark and offload both start: one attempt.
        IF before IS DISTINCT FROM 'started' THEN
            PERFORM coldchain.raise_counter(NEW.table_id, 'attempts', CASE
                WHEN before IN ('committed', 'idle') THEN 'clear'
                WHEN before IS NOT NULL THEN 'retry'
                WHEN NEW.run_key LIKE '%/scheduled\_\_%' THEN 'schedule'
                WHEN NEW.run_key LIKE '%/backfill\_\_%' THEN 'backfill'
                ELSE 'manual' END, 1);
        END IF;
    ELSIF NEW.event = 'staged' THEN
        PERFORM coldchain.raise_counter(NEW.table_id, 'rows_read', '', coalesce((
            SELECT sum(rows::text::double precision)
            FROM jsonb_path_query(NEW.detail, '$.segments[*].rows ? (@.type() == "number")') AS rows), 0));
    ELSIF NEW.event = 'failed' AND NEW.detail ->> 'task' LIKE '%.validate'
        AND (before = 'staged' OR before_task = 'validate') THEN  -- else there was nothing to prove
        PERFORM coldchain.raise_counter(NEW.table_id, 'validations_failed', '', 1);
    END IF;
    stage := CASE NEW.event WHEN 'staged' THEN 'read' WHEN 'validated' THEN 'validate' WHEN 'committed' THEN 'publish' END;
    IF stage IS NOT NULL THEN
        SELECT max(at) INTO since FROM coldchain.attempts
        WHERE table_id = NEW.table_id AND run_key = NEW.run_key AND token = NEW.token AND event =
            CASE stage WHEN 'read' THEN 'started' WHEN 'validate' THEN 'staged' ELSE 'validated' END;
        IF since IS NOT NULL THEN
            seconds := extract(epoch FROM NEW.at - since);
            PERFORM coldchain.raise_counter(NEW.table_id, 'stage_seconds', stage || ' ' ||
                coldchain.bound_of(seconds, ARRAY[1, 5, 15, 30, 60, 120, 300, 600, 1800]), 1);
            PERFORM coldchain.raise_counter(NEW.table_id, 'stage_seconds_sum', stage, seconds);
        END IF;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER attempts_are_counted AFTER INSERT ON coldchain.attempts
    FOR EACH ROW EXECUTE FUNCTION coldchain.count_attempt();

CREATE FUNCTION coldchain.count_window() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    seconds double precision;
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM coldchain.raise_counter(NEW.table_id, 'windows', CASE NEW.state WHEN 'empty' THEN 'noop' ELSE 'expired' END, 1);
        RETURN NULL;
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
CREATE TRIGGER windows_are_counted AFTER INSERT ON coldchain.segments
    FOR EACH ROW WHEN (NEW.state IN ('empty', 'expired')) EXECUTE FUNCTION coldchain.count_window();
CREATE TRIGGER publications_are_counted AFTER UPDATE OF state ON coldchain.segments
    FOR EACH ROW WHEN (OLD.state = 'publishing' AND NEW.state IN ('published', 'empty'))
    EXECUTE FUNCTION coldchain.count_window();

GRANT SELECT ON coldchain.counters TO coldchain;
