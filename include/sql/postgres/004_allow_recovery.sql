-- What a person does to the ledger is an event like any other, with its reason.
ALTER TABLE coldchain.attempts DROP CONSTRAINT attempts_event_check;
ALTER TABLE coldchain.attempts ADD CONSTRAINT attempts_event_check CHECK (event IN
    ('started', 'idle', 'staged', 'validated', 'publishing', 'committed', 'failed', 'fenced', 'recovered', 'reset', 'accepted'));

-- A ledger that is restored or rebuilt begins a new epoch: tokens of its other life are void.
GRANT UPDATE (epoch, made_at) ON coldchain.epoch TO coldchain;
