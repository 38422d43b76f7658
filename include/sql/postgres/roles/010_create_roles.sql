-- The roles, without passwords: applied by a superuser, before the databases are made; again it corrects what was changed.
-- Each is for one thing: coldchain_owner migrates the ledger; coldchain reads and writes its rows; coldchain_reader shows them
-- (status page, metrics); iceberg commits to the catalog's two tables, which iceberg_owner owns and nobody logs in as.
DO $$
DECLARE
    each text;
BEGIN
    FOREACH each IN ARRAY ARRAY['airflow', 'coldchain_owner', 'coldchain', 'coldchain_reader', 'iceberg_owner', 'iceberg'] LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = each) THEN
            EXECUTE format('CREATE ROLE %I', each);
        END IF;
        EXECUTE format('ALTER ROLE %I NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS', each);
        EXECUTE format('ALTER ROLE %I %s', each, CASE each WHEN 'iceberg_owner' THEN 'NOLOGIN' ELSE 'LOGIN' END);
    END LOOP;
END $$;

-- What hangs is ended by the server, whatever the client asked for or forgot.
ALTER ROLE coldchain SET statement_timeout = '60s';
ALTER ROLE coldchain SET lock_timeout = '30s';
ALTER ROLE coldchain SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE coldchain_reader SET statement_timeout = '10s';
ALTER ROLE coldchain_reader SET lock_timeout = '2s';
ALTER ROLE coldchain_reader SET idle_in_transaction_session_timeout = '10s';
ALTER ROLE coldchain_reader SET default_transaction_read_only = on;
ALTER ROLE iceberg SET statement_timeout = '60s';
ALTER ROLE iceberg SET lock_timeout = '30s';
ALTER ROLE iceberg SET idle_in_transaction_session_timeout = '60s';
-- A migration may build an index for a while, but must not queue everybody behind a lock that it waits for.
ALTER ROLE coldchain_owner SET lock_timeout = '30s';
ALTER ROLE coldchain_owner SET idle_in_transaction_session_timeout = '5min';
