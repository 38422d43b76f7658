-- A rebuild makes the epoch anew once, however many tables it goes through, and they may do so at the same time.
ALTER TABLE coldchain.epoch ADD COLUMN made_by text;
GRANT UPDATE (made_by) ON coldchain.epoch TO coldchain;
