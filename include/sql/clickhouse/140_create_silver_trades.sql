-- One table over all exchanges. Its version is Bronze's version, and its key is as fine as Bronze's (a canonical symbol comes
-- from one spelling, or the trade ids differ): of two deliveries of a trade the same one survives in both tables, whatever was
-- merged and in whichever order the inserts came. processed_at would not do: a block that is retried later is not newer data.
CREATE TABLE IF NOT EXISTS k2.silver_trades
(
    message_id          UUID,
    trade_id            String,
    exchange            LowCardinality(String),
    symbol              LowCardinality(String),
    canonical_symbol    LowCardinality(String),
    asset_class         Enum8('equities' = 1, 'crypto' = 2, 'futures' = 3, 'options' = 4),
    currency            LowCardinality(String),
    price               Decimal128(8),
    quantity            Decimal128(8),
    quote_volume        Decimal128(8),
    side                Enum8('BUY' = 1, 'SELL' = 2, 'SELL_SHORT' = 3, 'UNKNOWN' = 4),
    trade_conditions    Array(String),
    timestamp           DateTime64(6, 'UTC'),
    ingestion_timestamp DateTime64(6, 'UTC'),
    processed_at        DateTime64(6, 'UTC'),
    source_sequence     Nullable(UInt64),
    platform_sequence   Nullable(UInt64),
    vendor_data         Map(String, String),
    is_valid            Bool,
    validation_errors   Array(String)
)
ENGINE = ReplacingMergeTree(ingestion_timestamp)
PARTITION BY (exchange, asset_class, toYYYYMMDD(timestamp))
ORDER BY (exchange, asset_class, canonical_symbol, timestamp, trade_id)
TTL toDateTime(timestamp) + INTERVAL 30 DAY
