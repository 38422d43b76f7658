-- Kraken: [channelID, [[price, volume, time, side, orderType, misc], ...], "trade", pair], one or more trades a message, all
-- values text. The time is "seconds.microseconds" and is read as a decimal: exact. The first trade of a message has index 0.
-- The sequence number is 9 bits of partition (each counts its offsets anew), 38 of offset, 16 of index: within Int64. What does
-- not fit stops at the queue, where it waits, and makes no number that is another trade's.
CREATE MATERIALIZED VIEW IF NOT EXISTS k2.bronze_trades_kraken_view TO k2.bronze_trades_kraken AS
SELECT
    fromUnixTimestamp64Micro(toInt64(toDecimal128(trade[3], 6) * 1000000), 'UTC') AS exchange_timestamp,
    bitShiftLeft(toUInt64(_partition), 54) + bitShiftLeft(_offset, 16) + (number - 1)
        + throwIf(_partition >= 512 OR _offset >= 274877906944 OR number > 65536,
                  'Kraken: partition, offset or place in the message is too large for a sequence number') AS sequence_number,
    JSONExtractString(message, 4)                                  AS symbol,
    trade[4]                                                       AS side,
    toDecimal128(trade[1], 8)                                      AS price,
    toDecimal128(trade[2], 8)                                      AS quantity,
    toDecimal128(toDecimal256(price, 8) * toDecimal256(quantity, 8) + toDecimal256('0.000000005', 16), 8) AS quote_volume,
    exchange_timestamp                                             AS event_time,
    _offset                                                        AS kafka_offset,
    toUInt16(_partition)                                           AS kafka_partition,
    now64(6, 'UTC')                                                AS ingestion_timestamp
FROM k2.bronze_trades_kraken_queue
ARRAY JOIN
    JSONExtract(message, 2, 'Array(Array(String))')                AS trade,
    arrayEnumerate(JSONExtract(message, 2, 'Array(Array(String))')) AS number
WHERE JSONExtractString(message, 3) = 'trade'
