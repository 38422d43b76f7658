-- Failures by the kind of their error (coldchain.core.errors), once where the task and then Airflow's callback record it.
CREATE FUNCTION coldchain.count_failure() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    before text;  -- the run's event before this one
BEGIN
    SELECT event INTO before FROM coldchain.attempts
    WHERE table_id = NEW.table_id AND run_key = NEW.run_key AND attempt_id < NEW.attempt_id
    ORDER BY attempt_id DESC LIMIT 1;
    IF before IS DISTINCT FROM 'failed' THEN
        PERFORM coldchain.raise_counter(NEW.table_id, 'failures', left(coalesce(NEW.detail ->> 'kind', 'Unexpected'), 40), 1);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER failures_are_counted AFTER INSERT ON coldchain.attempts
    FOR EACH ROW WHEN (NEW.event = 'failed') EXECUTE FUNCTION coldchain.count_failure();
