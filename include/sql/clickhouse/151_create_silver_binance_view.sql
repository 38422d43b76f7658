-- Binance writes base and quote in one word: the shortest base leaves the longest known quote, so that BTCTUSD is not BTCT/USD.
-- A word with no known quote stays as it is and is marked. Like the other two, this view comes before Bronze's: a queue that is
-- read from its first moment finds Silver ready.
CREATE MATERIALIZED VIEW IF NOT EXISTS k2.silver_trades_binance_view TO k2.silver_trades AS
WITH
    [
        'USDT', 'USDC', 'FDUSD', 'TUSD', 'BUSD', 'USDP', 'USDS', 'USD1', 'USD', 'PAX', 'DAI', 'UST', 'VAI', 'AEUR', 'EURI',
        'EUR', 'GBP', 'AUD', 'TRY', 'BRL', 'RUB', 'UAH', 'NGN', 'ZAR', 'PLN', 'RON', 'ARS', 'CZK', 'JPY', 'MXN', 'COP',
        'IDRT', 'BIDR', 'BVND', 'BKRW', 'BTC', 'ETH', 'BNB', 'XRP', 'TRX', 'DOGE', 'DOT', 'SOL'
    ] AS quotes,
    extract(bronze.symbol, concat('^.+?(', arrayStringConcat(quotes, '|'), ')$')) AS currency,
    if(currency = '', bronze.symbol,
       concat(left(bronze.symbol, length(bronze.symbol) - length(currency)), '/', currency)) AS canonical_symbol,
    concat('BINANCE-', toString(bronze.sequence_number)) AS trade_id,
    lower(hex(MD5(concat('binance|', bronze.symbol, '|', trade_id)))) AS digest,
    multiIf(bronze.side = 'buy', 'BUY', bronze.side = 'sell', 'SELL', 'UNKNOWN') AS taker_side,
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
    'binance' AS exchange,
    bronze.symbol AS symbol,
    canonical_symbol,
    'crypto' AS asset_class,
    currency,
    bronze.price AS price,
    bronze.quantity AS quantity,
    bronze.quote_volume AS quote_volume,
    taker_side AS side,
    if(bronze.side = 'sell', ['buyer_is_maker'], CAST([] AS Array(String))) AS trade_conditions,
    toDateTime64(bronze.exchange_timestamp, 6, 'UTC') AS timestamp,
    bronze.ingestion_timestamp AS ingestion_timestamp,
    now64(6, 'UTC') AS processed_at,
    bronze.sequence_number AS source_sequence,
    bronze.kafka_offset AS platform_sequence,
    map(
        'symbol', toString(bronze.symbol),
        'side', toString(bronze.side),
        'event_time_ms', toString(toUnixTimestamp64Milli(bronze.event_time)),
        'kafka_partition', toString(bronze.kafka_partition)
    ) AS vendor_data,
    empty(errors) AS is_valid,
    errors AS validation_errors
FROM k2.bronze_trades_binance AS bronze
