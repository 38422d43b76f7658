-- Binance: one JSON object a message. Decimals are read from their text, and the product is rounded half up from its exact 16
-- digits, so that no float is ever involved. `m` says that the buyer was the maker: the trade was a sell.
CREATE MATERIALIZED VIEW IF NOT EXISTS k2.bronze_trades_binance_view TO k2.bronze_trades_binance AS
SELECT
    fromUnixTimestamp64Milli(JSONExtractInt(message, 'T'), 'UTC')  AS exchange_timestamp,
    JSONExtractUInt(message, 't')                                  AS sequence_number,
    JSONExtractString(message, 's')                                AS symbol,
    if(JSONExtractBool(message, 'm'), 'sell', 'buy')               AS side,
    toDecimal128(JSONExtractString(message, 'p'), 8)               AS price,
    toDecimal128(JSONExtractString(message, 'q'), 8)               AS quantity,
    toDecimal128(toDecimal256(price, 8) * toDecimal256(quantity, 8) + toDecimal256('0.000000005', 16), 8) AS quote_volume,
    fromUnixTimestamp64Milli(JSONExtractInt(message, 'E'), 'UTC')  AS event_time,
    _offset                                                        AS kafka_offset,
    toUInt16(_partition)                                           AS kafka_partition,
    now64(6, 'UTC')                                                AS ingestion_timestamp
FROM k2.bronze_trades_binance_queue
WHERE JSONExtractString(message, 'e') = 'trade'
