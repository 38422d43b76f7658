-- A bar is what Silver says at the moment of reading, whatever was merged, came twice, late or corrected: docs/decisions/0010.
-- window_start stays the bare toStartOfInterval of two arguments: with a cast around it, or a zone as the third, a condition on it
-- reads all of Silver. The zone is the column's, UTC. Every row counts, valid or not, so that volumes add up to Silver's. The sums
-- are wide, and one that does not fit throws: Decimal128's own sum wraps in silence.
CREATE VIEW IF NOT EXISTS k2.ohlcv_5m AS
SELECT
    exchange,
    canonical_symbol,
    toStartOfInterval(timestamp, INTERVAL 5 MINUTE)            AS window_start,
    argMin(price, (timestamp, trade_id))                       AS open,
    max(price)                                                 AS high,
    min(price)                                                 AS low,
    argMax(price, (timestamp, trade_id))                       AS close,
    min(timestamp)                                             AS open_time,
    max(timestamp)                                             AS close_time,
    toDecimal128(sum(toDecimal256(quantity, 8)), 8)            AS volume,
    toDecimal128(sum(toDecimal256(silver.quote_volume, 8)), 8) AS quote_volume,
    count()                                                    AS trade_count
FROM k2.silver_trades AS silver FINAL
GROUP BY exchange, canonical_symbol, window_start
