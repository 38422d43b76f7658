#!/bin/sh
# Runs once, in the PostgreSQL image's first start: the roles and rights that the project ships, passwords from the mounted
# secrets, and the databases.
set -eu

secret() { cat "/run/secrets/$1"; }

as_superuser() { psql --username "$POSTGRES_USER" --set ON_ERROR_STOP=1 --dbname "$@"; }

# In the environment, not as arguments: a list of processes shows those.
AIRFLOW_PASSWORD="$(secret postgres_airflow)"
OWNER_PASSWORD="$(secret postgres_coldchain_owner)"
RUNTIME_PASSWORD="$(secret postgres_coldchain)"
READER_PASSWORD="$(secret postgres_coldchain_reader)"
ICEBERG_PASSWORD="$(secret postgres_iceberg)"
export AIRFLOW_PASSWORD OWNER_PASSWORD RUNTIME_PASSWORD READER_PASSWORD ICEBERG_PASSWORD

as_superuser postgres --file /sql/roles/010_create_roles.sql
as_superuser postgres <<'SQL'
\getenv airflow AIRFLOW_PASSWORD
\getenv owner OWNER_PASSWORD
\getenv runtime RUNTIME_PASSWORD
\getenv reader READER_PASSWORD
\getenv iceberg ICEBERG_PASSWORD
-- The server's log would hold a statement that fails.
SET log_min_error_statement = panic;
ALTER ROLE airflow PASSWORD :'airflow';
ALTER ROLE coldchain_owner PASSWORD :'owner';
ALTER ROLE coldchain PASSWORD :'runtime';
ALTER ROLE coldchain_reader PASSWORD :'reader';
ALTER ROLE iceberg PASSWORD :'iceberg';
CREATE DATABASE airflow;
CREATE DATABASE coldchain;
CREATE DATABASE iceberg;
SQL
as_superuser postgres --file /sql/roles/020_restrict_databases.sql
as_superuser coldchain --file /sql/roles/030_restrict_schema.sql
as_superuser iceberg --file /sql/roles/030_restrict_schema.sql
as_superuser iceberg --file /sql/catalog/010_create_catalog.sql
