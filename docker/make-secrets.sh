#!/bin/sh
# Make the secrets that are missing in a folder (./secrets): one a file, of letters and digits, for they stand in URIs.
# The folder keeps others out; its files must be readable, for a container's user is not yours.
set -eu
folder="${1:-secrets}"
mkdir -p "$folder"
chmod 0700 "$folder"

random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

keep() {
    [ -e "$folder/$1" ] || cat > "$folder/$1"
    chmod 0444 "$folder/$1"
}

for name in postgres_superuser postgres_airflow postgres_coldchain postgres_coldchain_owner postgres_coldchain_reader \
    postgres_iceberg clickhouse_coldchain clickhouse_coldchain_validator clickhouse_loader airflow_api airflow_jwt \
    metrics redis minio_root minio_coldchain grafana_admin; do
    random 24 | keep "$name"
done
echo coldchain-root | keep minio_root_user
head -c 32 /dev/urandom | base64 | tr '+/' '-_' | keep airflow_fernet
printf '{"admin": "%s"}' "$(random 12)" | keep airflow_passwords
# Of services that are not here: put the real ones in their place.
for name in smtp_password pager_token; do random 24 | keep "$name"; done
echo https://hooks.example.org/change-me | keep slack_webhook_url
