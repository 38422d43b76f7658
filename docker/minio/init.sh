#!/bin/sh
# Runs once in MinIO's image: the bucket, and a user who may use that bucket alone.
set -eu
export MC_HOST_local="http://$(cat /run/secrets/minio_root_user):$(cat /run/secrets/minio_root)@minio:9000"
export MC_CONFIG_DIR=/tmp/mc
mc mb --ignore-existing local/coldchain
mc admin policy create local coldchain-warehouse /init/policy.json
# Read from standard input: a list of processes shows arguments.
printf 'coldchain\n%s\n' "$(cat /run/secrets/minio_coldchain)" | mc admin user add local
case "$(mc admin user info local coldchain)" in
    *coldchain-warehouse*) ;;
    *) mc admin policy attach local coldchain-warehouse --user coldchain ;;
esac
