-- Retention: events of runs and superseded segments are dropped by nightly maintenance, months after anybody could need
-- them. Counters are kept apart, so that none goes back.
CREATE INDEX segments_superseded ON coldchain.segments (table_id, updated_at) WHERE state = 'superseded';

CREATE OR REPLACE FUNCTION coldchain.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('coldchain.is_forgetting', true) = 'yes' THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'coldchain.attempts is append-only';
END $$;

-- Runs as its owner: the runtime role can forget what is old, and nothing else. Whole runs go; what the status page, the
-- report and the metrics ask for stays: the newest event of each kind, and the run that published last.
CREATE FUNCTION coldchain.forget(of_table integer, before timestamptz, OUT events bigint, OUT segments bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    IF before > clock_timestamp() - interval '30 days' THEN
        RAISE EXCEPTION 'events and superseded segments of the last 30 days are kept';
    END IF;
    PERFORM set_config('coldchain.is_forgetting', 'yes', true);
    WITH kept AS (
        SELECT run_key FROM coldchain.attempts WHERE table_id = of_table AND at >= before
        UNION SELECT run_key FROM coldchain.attempts WHERE attempt_id IN
            (SELECT max(attempt_id) FROM coldchain.attempts WHERE table_id = of_table GROUP BY event)
    ), gone AS (
        DELETE FROM coldchain.attempts WHERE table_id = of_table AND at < before AND run_key NOT IN (SELECT run_key FROM kept)
        RETURNING 1
    )
    SELECT count(*) INTO events FROM gone;
    PERFORM set_config('coldchain.is_forgetting', '', true);
    WITH gone AS (
        DELETE FROM coldchain.segments WHERE table_id = of_table AND state = 'superseded' AND updated_at < before
        RETURNING 1
    )
    SELECT count(*) INTO segments FROM gone;
END $$;
REVOKE EXECUTE ON FUNCTION coldchain.forget FROM PUBLIC;
GRANT EXECUTE ON FUNCTION coldchain.forget TO coldchain;
