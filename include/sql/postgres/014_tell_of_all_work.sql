-- Messages are about an entry of the registry that is refused, an audit or maintenance too, which have no row in `tables`,
-- or none that an offload that works says anything about: an incident is of a name and a kind of work, and ends with it.
ALTER TABLE coldchain.incidents
    ADD COLUMN name    text,
    ADD COLUMN work    text NOT NULL DEFAULT 'offload' CHECK (work IN ('offload', 'verify', 'compact', 'tidy', 'registry')),
    ADD COLUMN seen_at timestamptz NOT NULL DEFAULT clock_timestamp();
UPDATE coldchain.incidents i SET name = t.table_name FROM coldchain.tables t WHERE t.table_id = i.table_id;
ALTER TABLE coldchain.incidents ALTER COLUMN name SET NOT NULL, DROP COLUMN table_id;
CREATE UNIQUE INDEX incidents_open ON coldchain.incidents (name, work, kind) WHERE closed_at IS NULL;
COMMENT ON COLUMN coldchain.incidents.name IS 'the table, or the entry of the registry, or registry for its whole file';
COMMENT ON COLUMN coldchain.incidents.seen_at IS 'the last failure: one of more than two days ago is over, whatever became of it';

-- Refused runs that are no longer kept one by one: what the metric counts never goes back.
CREATE TABLE coldchain.rejections_forgotten (
    source text NOT NULL,
    reason text NOT NULL,
    runs   bigint NOT NULL,
    PRIMARY KEY (source, reason)
);
GRANT SELECT ON coldchain.rejections_forgotten TO coldchain;

-- Runs as its owner, like coldchain.forget: the runtime role can forget what is old, and nothing else.
CREATE FUNCTION coldchain.forget_messages(before timestamptz, OUT rejections bigint, OUT incidents bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    IF before > clock_timestamp() - interval '30 days' THEN
        RAISE EXCEPTION 'refused runs and incidents of the last 30 days are kept';
    END IF;
    WITH gone AS (
        DELETE FROM coldchain.rejections r WHERE r.at < before RETURNING source, reason
    ), added AS (
        INSERT INTO coldchain.rejections_forgotten AS f SELECT source, reason, count(*) FROM gone GROUP BY source, reason
        ON CONFLICT (source, reason) DO UPDATE SET runs = f.runs + excluded.runs
    )
    SELECT count(*) INTO rejections FROM gone;
    WITH gone AS (
        DELETE FROM coldchain.incidents i WHERE i.closed_at < before RETURNING 1
    )
    SELECT count(*) INTO incidents FROM gone;
END $$;
REVOKE EXECUTE ON FUNCTION coldchain.forget_messages FROM PUBLIC;
GRANT EXECUTE ON FUNCTION coldchain.forget_messages TO coldchain;
