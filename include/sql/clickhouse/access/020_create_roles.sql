-- What Coldchain's users may read, and nothing else: no write, no DDL, no table function that leaves the server (url, file, s3,
-- remote need grants of their own), no other database, of the system's tables those that the code asks.
-- Then, for each role, a user of its own:
--   CREATE USER coldchain IDENTIFIED BY '...' HOST IP '10.0.0.0/8'; GRANT coldchain_offload TO coldchain;
--   CREATE USER coldchain_validator IDENTIFIED BY '...' HOST IP '10.0.0.0/8'; GRANT coldchain_validate TO coldchain_validator;
CREATE ROLE IF NOT EXISTS coldchain_offload;
ALTER ROLE coldchain_offload SETTINGS PROFILE 'coldchain_reader';
GRANT SELECT ON k2.* TO coldchain_offload;
GRANT SELECT ON system.columns TO coldchain_offload;
GRANT SELECT ON system.parts TO coldchain_offload;
GRANT SELECT ON system.row_policies TO coldchain_offload;
GRANT SELECT ON system.settings TO coldchain_offload;
GRANT SELECT ON system.tables TO coldchain_offload;
-- Only a server whose select_from_system_db_requires_grant is off also asks for SHOW ROW POLICIES ON *.* (an error says so):
-- it shows the names of every database's tables.
-- A direct read of a Kafka queue would take messages from Bronze.
REVOKE SELECT ON k2.bronze_trades_binance_queue FROM coldchain_offload;
REVOKE SELECT ON k2.bronze_trades_kraken_queue FROM coldchain_offload;
REVOKE SELECT ON k2.bronze_trades_coinbase_queue FROM coldchain_offload;
-- The validate task's check `balance` adds other tables up: it asks no system table.
CREATE ROLE IF NOT EXISTS coldchain_validate;
ALTER ROLE coldchain_validate SETTINGS PROFILE 'coldchain_validator';
GRANT SELECT ON k2.* TO coldchain_validate;
REVOKE SELECT ON k2.bronze_trades_binance_queue FROM coldchain_validate;
REVOKE SELECT ON k2.bronze_trades_kraken_queue FROM coldchain_validate;
REVOKE SELECT ON k2.bronze_trades_coinbase_queue FROM coldchain_validate;
