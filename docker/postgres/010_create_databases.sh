#!/bin/sh
# Runs once, in the PostgreSQL image's first start: a database and a role each, passwords from the mounted secrets.
set -eu

secret() { cat "/run/secrets/$1"; }

# In the environment, not as arguments: a list of processes shows those.
AIRFLOW_PASSWORD="$(secret postgres_airflow)"
OWNER_PASSWORD="$(secret postgres_coldchain_owner)"
RUNTIME_PASSWORD="$(secret postgres_coldchain)"
ICEBERG_PASSWORD="$(secret postgres_iceberg)"
export AIRFLOW_PASSWORD OWNER_PASSWORD RUNTIME_PASSWORD ICEBERG_PASSWORD

psql --username "$POSTGRES_USER" --dbname postgres --set ON_ERROR_STOP=1 <<'SQL'
\getenv airflow AIRFLOW_PASSWORD
\getenv owner OWNER_PASSWORD
\getenv runtime RUNTIME_PASSWORD
\getenv iceberg ICEBERG_PASSWORD
CREATE ROLE airflow LOGIN PASSWORD :'airflow';
CREATE ROLE coldchain_owner LOGIN PASSWORD :'owner';
CREATE ROLE coldchain LOGIN PASSWORD :'runtime';
CREATE ROLE iceberg LOGIN PASSWORD :'iceberg';
CREATE DATABASE airflow OWNER airflow;
CREATE DATABASE coldchain OWNER coldchain_owner;
CREATE DATABASE iceberg OWNER iceberg;
REVOKE CONNECT ON DATABASE airflow, coldchain, iceberg FROM PUBLIC;
GRANT CONNECT ON DATABASE coldchain TO coldchain;
SQL
