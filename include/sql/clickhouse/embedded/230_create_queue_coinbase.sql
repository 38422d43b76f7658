-- The embedded stack's stand-in for the Kafka queue of the same name (the engine does not run there): what is inserted is parsed
-- by the same view and kept nowhere else. Offset and partition, which Kafka's engine adds by itself, are columns here.
CREATE TABLE IF NOT EXISTS k2.bronze_trades_coinbase_queue
(
    message    String,
    _offset    UInt64,
    _partition UInt64
)
ENGINE = Null
