-- Runs that were refused for bad input, by what refused them and why: a row each, however many tasks of the run say it.
-- No table of the ledger needs to exist for it. A row is a few dozen bytes, and there is at most one per run and reason.
CREATE TABLE coldchain.rejections (
    source  text NOT NULL CHECK (source IN ('params', 'registry')),
    reason  text NOT NULL CHECK (length(reason) <= 40),
    run_key text NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, reason, run_key)
);
GRANT SELECT, INSERT ON coldchain.rejections TO coldchain;
