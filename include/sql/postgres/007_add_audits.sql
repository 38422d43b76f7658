-- When a segment was last compared by content: the audit takes the oldest first. Its publication was such a comparison.
-- 1970 stands for one that was found unequal.
ALTER TABLE coldchain.segments ADD COLUMN verified_at timestamptz;
CREATE INDEX segments_by_verification ON coldchain.segments (table_id, (coalesce(verified_at, created_at)))
    WHERE state = 'published';
ALTER TABLE coldchain.attempts DROP CONSTRAINT attempts_event_check;
ALTER TABLE coldchain.attempts ADD CONSTRAINT attempts_event_check CHECK (event IN
    ('started', 'idle', 'staged', 'validated', 'publishing', 'committed', 'failed', 'fenced', 'recovered', 'reset',
     'accepted', 'audited'));
