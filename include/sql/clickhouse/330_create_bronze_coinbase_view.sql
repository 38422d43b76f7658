-- Coinbase: one JSON object a message, numbers as text, the time in ISO 8601. The feed opens with a product's last_match: a trade
-- like any other, which the connection before may have missed; seen twice, it replaces itself.
CREATE MATERIALIZED VIEW IF NOT EXISTS k2.bronze_trades_coinbase_view TO k2.bronze_trades_coinbase AS
SELECT
    parseDateTime64BestEffort(JSONExtractString(message, 'time'), 6, 'UTC') AS exchange_timestamp,
    JSONExtractUInt(message, 'trade_id')                           AS sequence_number,
    JSONExtractString(message, 'product_id')                       AS symbol,
    JSONExtractString(message, 'side')                             AS side,
    toDecimal128(JSONExtractString(message, 'price'), 8)           AS price,
    toDecimal128(JSONExtractString(message, 'size'), 8)            AS quantity,
    toDecimal128(toDecimal256(price, 8) * toDecimal256(quantity, 8) + toDecimal256('0.000000005', 16), 8) AS quote_volume,
    exchange_timestamp                                             AS event_time,
    _offset                                                        AS kafka_offset,
    toUInt16(_partition)                                           AS kafka_partition,
    now64(6, 'UTC')                                                AS ingestion_timestamp
FROM k2.bronze_trades_coinbase_queue
WHERE JSONExtractString(message, 'type') IN ('match', 'last_match')
