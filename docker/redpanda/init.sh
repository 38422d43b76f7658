#!/bin/sh
# Runs once in Redpanda's image: the topics that include/sql/clickhouse/production reads.
set -eu
there="$(rpk topic list --brokers redpanda:9092)"
for exchange in binance kraken coinbase; do
    topic="market.crypto.trades.$exchange.raw"
    case "$there" in
        *"$topic"*) ;;
        *) rpk topic create "$topic" --partitions 3 --brokers redpanda:9092 ;;
    esac
done
