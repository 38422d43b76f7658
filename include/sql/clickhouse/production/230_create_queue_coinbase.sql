-- Coinbase's raw matches as Kafka delivers them, one message a row. The named collection `k2_kafka` holds kafka_broker_list and
-- the credentials.
CREATE TABLE IF NOT EXISTS k2.bronze_trades_coinbase_queue
(
    message String
)
ENGINE = Kafka(k2_kafka)
SETTINGS
    kafka_topic_list = 'market.crypto.trades.coinbase.raw',
    kafka_group_name = 'clickhouse_bronze_coinbase',
    kafka_format = 'JSONAsString',
    kafka_num_consumers = 1,
    kafka_max_block_size = 10000
