-- Kraken's raw trades as Kafka delivers them, one message a row. The named collection `k2_kafka` holds kafka_broker_list and the
-- credentials.
-- A message is an array, which JSONAsString refuses; LineAsString takes it as it is.
CREATE TABLE IF NOT EXISTS k2.bronze_trades_kraken_queue
(
    message String
)
ENGINE = Kafka(k2_kafka)
SETTINGS
    kafka_topic_list = 'market.crypto.trades.kraken.raw',
    kafka_group_name = 'clickhouse_bronze_kraken',
    kafka_format = 'LineAsString',
    kafka_num_consumers = 1,
    kafka_max_block_size = 10000
