-- Applied by every migration: the watermark table holds nothing that can't be derived, so one that was dropped comes back
-- empty, and the next run of each table writes its row. Its first form is in 001.
CREATE TABLE IF NOT EXISTS coldchain.offload_watermarks (
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
GRANT SELECT, INSERT, UPDATE, DELETE ON coldchain.offload_watermarks TO coldchain;
