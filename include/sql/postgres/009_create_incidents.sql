-- What a person was told of: one row for a table and kind of error, from the first failure to the next success.
CREATE TABLE coldchain.incidents (
    incident_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_id    integer NOT NULL REFERENCES coldchain.tables,
    kind        text NOT NULL,
    said        text NOT NULL,
    run_key     text NOT NULL,
    opened_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    notified_at timestamptz,
    closed_at   timestamptz
);
CREATE UNIQUE INDEX incidents_open ON coldchain.incidents (table_id, kind) WHERE closed_at IS NULL;
GRANT SELECT, INSERT, UPDATE ON coldchain.incidents TO coldchain;
