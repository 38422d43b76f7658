-- Who may enter which database: applied by a superuser once the three are there.
ALTER DATABASE airflow OWNER TO airflow;
ALTER DATABASE coldchain OWNER TO coldchain_owner;
ALTER DATABASE iceberg OWNER TO iceberg_owner;
REVOKE CONNECT, TEMPORARY ON DATABASE airflow, coldchain, iceberg FROM PUBLIC;
GRANT CONNECT ON DATABASE coldchain TO coldchain, coldchain_reader;
GRANT CONNECT ON DATABASE iceberg TO iceberg;
