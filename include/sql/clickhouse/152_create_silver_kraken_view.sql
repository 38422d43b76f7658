-- Kraken separates base and quote and has names of its own for two assets. It numbers nothing, so there is no sequence of the
-- source: Bronze's number is made of the message's offset and the trade's place in it, which is shown as such.
CREATE MATERIALIZED VIEW IF NOT EXISTS k2.silver_trades_kraken_view TO k2.silver_trades AS
WITH
    replaceRegexpAll(replaceRegexpAll(bronze.symbol, '\\bXBT\\b', 'BTC'), '\\bXDG\\b', 'DOGE') AS canonical_symbol,
    extract(canonical_symbol, '^[^/]+/([^/]+)$') AS currency,
    concat('KRAKEN-', toString(bronze.sequence_number)) AS trade_id,
    lower(hex(MD5(concat('kraken|', bronze.symbol, '|', trade_id)))) AS digest,
    multiIf(bronze.side = 'b', 'BUY', bronze.side = 's', 'SELL', 'UNKNOWN') AS taker_side,
    arrayFilter(error -> error != '', [
        if(bronze.price > 0, '', 'price_not_positive'),
        if(bronze.quantity > 0, '', 'quantity_not_positive'),
        if(currency != '', '', 'symbol_not_recognised'),
        if(taker_side != 'UNKNOWN', '', 'side_unknown')
    ]) AS errors
SELECT
    toUUID(concat(substring(digest, 1, 8), '-', substring(digest, 9, 4), '-', substring(digest, 13, 4), '-',
                  substring(digest, 17, 4), '-', substring(digest, 21, 12))) AS message_id,
    trade_id,
    'kraken' AS exchange,
    bronze.symbol AS symbol,
    canonical_symbol,
    'crypto' AS asset_class,
    currency,
    bronze.price AS price,
    bronze.quantity AS quantity,
    bronze.quote_volume AS quote_volume,
    taker_side AS side,
    CAST([] AS Array(String)) AS trade_conditions,
    toDateTime64(bronze.exchange_timestamp, 6, 'UTC') AS timestamp,
    bronze.ingestion_timestamp AS ingestion_timestamp,
    now64(6, 'UTC') AS processed_at,
    CAST(NULL AS Nullable(UInt64)) AS source_sequence,
    bronze.kafka_offset AS platform_sequence,
    map(
        'pair', toString(bronze.symbol),
        'side', toString(bronze.side),
        'message_index', toString(bitAnd(bronze.sequence_number, 65535)),
        'kafka_partition', toString(bronze.kafka_partition)
    ) AS vendor_data,
    empty(errors) AS is_valid,
    errors AS validation_errors
FROM k2.bronze_trades_kraken AS bronze
