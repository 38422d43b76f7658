-- For people on call: a source without new rows looks like a table that stands still, unless its newest row is known.
ALTER TABLE coldchain.tables ADD COLUMN source_newest timestamptz;
COMMENT ON COLUMN coldchain.tables.source_newest IS 'the newest event time that a run saw at the source; no decision reads it';

-- A commit whose answer was lost is an event: main then said what came of it.
ALTER TABLE coldchain.attempts DROP CONSTRAINT attempts_event_check;
ALTER TABLE coldchain.attempts ADD CONSTRAINT attempts_event_check CHECK (event IN
    ('started', 'idle', 'staged', 'validated', 'publishing', 'unknown', 'committed', 'failed', 'fenced', 'recovered',
     'reset', 'accepted', 'audited', 'compacted', 'tidied'));
