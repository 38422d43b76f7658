#!/bin/sh
# Hand the mounted secret to the configuration (from_env), then start the image's own entry point.
set -eu
CLICKHOUSE_COLDCHAIN_PASSWORD="$(cat /run/secrets/clickhouse_coldchain)"
CLICKHOUSE_COLDCHAIN_VALIDATOR_PASSWORD="$(cat /run/secrets/clickhouse_coldchain_validator)"
CLICKHOUSE_PASSWORD="$(cat /run/secrets/clickhouse_loader)"
export CLICKHOUSE_COLDCHAIN_PASSWORD CLICKHOUSE_COLDCHAIN_VALIDATOR_PASSWORD CLICKHOUSE_PASSWORD
exec /entrypoint.sh "$@"
