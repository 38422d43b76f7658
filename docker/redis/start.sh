#!/bin/sh
# The password comes in a file of its own: a list of processes shows arguments.
set -eu
umask 077
printf 'requirepass %s\nsave ""\nappendonly no\n' "$(cat /run/secrets/redis)" > /tmp/redis.conf
exec redis-server /tmp/redis.conf
