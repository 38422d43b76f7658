-- Coinbase's side is the maker's, the other exchanges give the taker's: Silver's is the taker's for all of them, so Coinbase's is
-- turned round. Its own word stays in vendor_data.
CREATE MATERIALIZED VIEW IF NOT EXISTS k2.silver_trades_coinbase_view TO k2.silver_trades AS
WITH
    replaceAll(bronze.symbol, '-', '/') AS canonical_symbol,
    extract(canonical_symbol, '^[^/]+/([^/]+)$') AS currency,
    concat('COINBASE-', toString(bronze.sequence_number)) AS trade_id,
    lower(hex(MD5(concat('coinbase|', bronze.symbol, '|', trade_id)))) AS digest,
    multiIf(bronze.side = 'sell', 'BUY', bronze.side = 'buy', 'SELL', 'UNKNOWN') AS taker_side,
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
    'coinbase' AS exchange,
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
    bronze.sequence_number AS source_sequence,
    bronze.kafka_offset AS platform_sequence,
    map(
        'product_id', toString(bronze.symbol),
        'maker_side', toString(bronze.side),
        'kafka_partition', toString(bronze.kafka_partition)
    ) AS vendor_data,
    empty(errors) AS is_valid,
    errors AS validation_errors
FROM k2.bronze_trades_coinbase AS bronze
