#!/bin/sh
# Turn the mounted secrets into the variables that Airflow and Coldchain read, then run the command.
set -eu

secret() { cat "/run/secrets/$1"; }

pg() { printf 'postgresql+psycopg2://%s:%s@postgres:5432/%s' "$1" "$(secret "$2")" "$3"; }

export AIRFLOW__DATABASE__SQL_ALCHEMY_CONN="$(pg airflow postgres_airflow airflow)"
export AIRFLOW__CORE__FERNET_KEY="$(secret airflow_fernet)"
export AIRFLOW__API__SECRET_KEY="$(secret airflow_api)"
export AIRFLOW__API_AUTH__JWT_SECRET="$(secret airflow_jwt)"
export COLDCHAIN_METRICS_TOKEN="$(secret metrics)"
export AIRFLOW__CELERY__BROKER_URL="redis://:$(secret redis)@redis:6379/0"
export AIRFLOW__CELERY__RESULT_BACKEND="db+$(pg airflow postgres_airflow airflow)"
# Only init may migrate the ledger.
if [ -f /run/secrets/postgres_coldchain_owner ]; then
    export COLDCHAIN_LEDGER_OWNER_URI="$(pg coldchain_owner postgres_coldchain_owner coldchain)"
fi

storage=""
case "$COLDCHAIN_WAREHOUSE" in
    s3://*) storage=", \"s3.endpoint\": \"http://minio:9000\", \"s3.region\": \"us-east-1\", \"s3.access-key-id\": \"coldchain\", \"s3.secret-access-key\": \"$(secret minio_coldchain)\"" ;;
esac

export AIRFLOW_CONN_COLDCHAIN_CLICKHOUSE="{\"conn_type\": \"clickhouse\", \"host\": \"clickhouse\", \"port\": 9000, \"schema\": \"k2\", \"login\": \"coldchain\", \"password\": \"$(secret clickhouse_coldchain)\", \"extra\": {\"http_port\": 8123, \"secure\": false}}"
export AIRFLOW_CONN_COLDCHAIN_CLICKHOUSE_VALIDATOR="{\"conn_type\": \"clickhouse\", \"host\": \"clickhouse\", \"port\": 9000, \"schema\": \"k2\", \"login\": \"coldchain_validator\", \"password\": \"$(secret clickhouse_coldchain_validator)\", \"extra\": {\"http_port\": 8123, \"secure\": false}}"
export AIRFLOW_CONN_COLDCHAIN_POSTGRES="{\"conn_type\": \"postgres\", \"host\": \"postgres\", \"port\": 5432, \"schema\": \"coldchain\", \"login\": \"coldchain\", \"password\": \"$(secret postgres_coldchain)\"}"
export AIRFLOW_CONN_COLDCHAIN_POSTGRES_READER="{\"conn_type\": \"postgres\", \"host\": \"postgres\", \"port\": 5432, \"schema\": \"coldchain\", \"login\": \"coldchain_reader\", \"password\": \"$(secret postgres_coldchain_reader)\"}"
export AIRFLOW_CONN_COLDCHAIN_ICEBERG="{\"conn_type\": \"generic\", \"host\": \"postgres\", \"port\": 5432, \"schema\": \"iceberg\", \"login\": \"iceberg\", \"password\": \"$(secret postgres_iceberg)\", \"extra\": {\"type\": \"sql\", \"warehouse\": \"$COLDCHAIN_WAREHOUSE\"$storage}}"
export AIRFLOW_CONN_SPARK_DEFAULT="{\"conn_type\": \"spark\", \"host\": \"$COLDCHAIN_SPARK_MASTER\"}"

# Only the API server logs people in.
if [ -f /run/secrets/airflow_passwords ]; then
    install -m 0600 /run/secrets/airflow_passwords "$AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"
fi

exec "$@"
