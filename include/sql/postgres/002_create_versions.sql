-- What a fingerprint version stands for: the canonical columns, in field-id order, with the expressions that read and hash them.
-- Segments that were made with an older version are compared by it: neither a new column nor a release moves them.
CREATE TABLE coldchain.versions (
    table_id integer NOT NULL REFERENCES coldchain.tables,
    version  text NOT NULL,
    columns  jsonb NOT NULL,
    said     text NOT NULL DEFAULT '',
    made_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (table_id, version)
);
COMMENT ON COLUMN coldchain.versions.said IS 'how the source differed from Iceberg when the version was first staged';
GRANT SELECT, INSERT ON coldchain.versions TO coldchain;
