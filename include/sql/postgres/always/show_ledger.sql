-- Applied by every migration: who only shows the ledger may read all of it, also what a later migration adds. A ledger whose
-- roles are from before has no such role, and its page goes on with the other one.
DO $$
BEGIN
    IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'coldchain_reader') THEN
        GRANT USAGE ON SCHEMA coldchain TO coldchain_reader;
        GRANT SELECT ON ALL TABLES IN SCHEMA coldchain TO coldchain_reader;
    END IF;
END $$;
