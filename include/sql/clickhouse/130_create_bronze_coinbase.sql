-- A trade id is unique within its product, as Binance's within its symbol; times are whole microseconds.
CREATE TABLE IF NOT EXISTS k2.bronze_trades_coinbase
(
    exchange_timestamp  DateTime64(6, 'UTC'),
    sequence_number     UInt64,
    symbol              LowCardinality(String),
    side                LowCardinality(String),
    price               Decimal(38, 8),
    quantity            Decimal(38, 8),
    quote_volume        Decimal(38, 8),
    event_time          DateTime64(6, 'UTC'),
    kafka_offset        UInt64,
    kafka_partition     UInt16,
    ingestion_timestamp DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(ingestion_timestamp)
PARTITION BY toYYYYMMDD(exchange_timestamp)
ORDER BY (symbol, exchange_timestamp, sequence_number)
TTL toDateTime(exchange_timestamp) + INTERVAL 7 DAY
