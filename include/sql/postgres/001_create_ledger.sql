-- The ledger: what is done (segments), who may act (leases), what was tried (attempts).
CREATE SCHEMA IF NOT EXISTS coldchain;

-- One row. The epoch is made anew whenever a ledger is created, rebuilt or restored: tokens of another life are void.
CREATE TABLE coldchain.epoch (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    epoch   uuid NOT NULL DEFAULT gen_random_uuid(),
    made_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO coldchain.epoch DEFAULT VALUES;

-- One row per table; iceberg_uuid, metadata_location and main_snapshot_id are the base: the catalog as we left it.
CREATE TABLE coldchain.tables (
    table_id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name        text NOT NULL UNIQUE,
    source            text NOT NULL,
    target            text NOT NULL,
    iceberg_uuid      uuid,
    metadata_location text,
    main_snapshot_id  bigint,
    origin            timestamptz,
    compared_to       timestamptz,
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON COLUMN coldchain.tables.origin IS 'day of the oldest row ever seen in the source; the watermark counts from it';
COMMENT ON COLUMN coldchain.tables.compared_to IS 'end of the last comparison with the source; the late horizon reaches back from it';

-- A window that was published whole. buckets: [[start in us, rows, "hash"], ...] on grid_us.
CREATE TABLE coldchain.segments (
    segment_id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_id         integer NOT NULL REFERENCES coldchain.tables,
    "window"         tstzrange NOT NULL CHECK (lower_inc("window") AND NOT upper_inc("window") AND NOT isempty("window")),
    state            text NOT NULL CHECK (state IN ('publishing', 'published', 'empty', 'expired', 'superseded')),
    rows             bigint NOT NULL CHECK (rows >= 0),
    hash             numeric(20) NOT NULL CHECK (hash >= 0 AND hash < 18446744073709551616),
    version          text NOT NULL,
    grid_us          bigint NOT NULL CHECK (grid_us > 0),
    buckets          jsonb NOT NULL,
    paths            text[] NOT NULL DEFAULT '{}',
    bytes            bigint NOT NULL DEFAULT 0,
    max_sequence     numeric(39),
    snapshot_id      bigint,
    base_snapshot_id bigint,
    replaces         bigint[] NOT NULL DEFAULT '{}',
    token            text NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT rows_have_files CHECK (state NOT IN ('empty', 'expired') OR (rows = 0 AND cardinality(paths) = 0)),
    CONSTRAINT segments_never_overlap EXCLUDE USING gist
        (int4range(table_id, table_id, '[]') WITH &&, "window" WITH &&) WHERE (state IN ('published', 'empty', 'expired')),
    CONSTRAINT publishing_never_overlaps EXCLUDE USING gist
        (int4range(table_id, table_id, '[]') WITH &&, "window" WITH &&) WHERE (state = 'publishing')
);
CREATE INDEX segments_by_table ON coldchain.segments (table_id, lower("window")) WHERE state <> 'superseded';

-- n is raised inside the UPDATE that wins a lease: the token <epoch>-<n> orders attempts.
CREATE TABLE coldchain.leases (
    table_id   integer PRIMARY KEY REFERENCES coldchain.tables,
    n          bigint NOT NULL DEFAULT 0,
    holder     text,
    expires_at timestamptz NOT NULL DEFAULT '-infinity'
);

CREATE TABLE coldchain.attempts (
    attempt_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_id   integer NOT NULL REFERENCES coldchain.tables,
    token      text NOT NULL,
    run_key    text NOT NULL,
    event      text NOT NULL CHECK (event IN
        ('started', 'idle', 'staged', 'validated', 'publishing', 'committed', 'failed', 'fenced')),
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    detail     jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX attempts_by_table ON coldchain.attempts (table_id, attempt_id DESC);

CREATE FUNCTION coldchain.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'coldchain.attempts is append-only';
END $$;
CREATE TRIGGER attempts_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON coldchain.attempts
    FOR EACH STATEMENT EXECUTE FUNCTION coldchain.refuse_change();

-- For people and for tools of the baseline: derived from the segments, repaired where it disagrees, never read back.
CREATE TABLE coldchain.offload_watermarks (
    table_name                text PRIMARY KEY,
    last_offload_timestamp    timestamptz,
    last_offload_max_sequence numeric(39),
    last_offload_row_count    bigint,
    status                    text NOT NULL DEFAULT 'initialized'
        CHECK (status IN ('initialized', 'running', 'success', 'failed')),
    last_successful_run       timestamptz,
    last_run_duration_seconds double precision,
    failure_count             integer NOT NULL DEFAULT 0,
    last_error_message        text,
    created_at                timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at                timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The runtime role reads and writes rows, owns nothing, and can't rewrite history.
GRANT USAGE ON SCHEMA coldchain TO coldchain;
GRANT SELECT ON ALL TABLES IN SCHEMA coldchain TO coldchain;
GRANT INSERT, UPDATE ON coldchain.tables, coldchain.segments, coldchain.leases TO coldchain;
GRANT INSERT ON coldchain.attempts TO coldchain;
GRANT INSERT, UPDATE, DELETE ON coldchain.offload_watermarks TO coldchain;
