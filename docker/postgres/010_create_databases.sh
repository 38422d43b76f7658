#!/bin/sh
# Runs once, in the PostgreSQL image's first start: a database and a role each, passwords from the mounted secrets.
set -eu

secret() { cat "/run/secrets/$1"; }

psql --username "$POSTGRES_USER" --dbname postgres --set ON_ERROR_STOP=1 \
  --set airflow="$(secret postgres_airflow)" \
  --set owner="$(secret postgres_coldchain_owner)" \
  --set runtime="$(secret postgres_coldchain)" \
  --set iceberg="$(secret postgres_iceberg)" <<'SQL'
CREATE ROLE airflow LOGIN PASSWORD :'airflow';
CREATE ROLE coldchain_owner LOGIN PASSWORD :'owner';
CREATE ROLE coldchain LOGIN PASSWORD :'runtime';
CREATE ROLE iceberg LOGIN PASSWORD :'iceberg';
CREATE DATABASE airflow OWNER airflow;
CREATE DATABASE coldchain OWNER coldchain_owner;
CREATE DATABASE iceberg OWNER iceberg;
SQL
