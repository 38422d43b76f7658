"""The embedded stack: PostgreSQL, ClickHouse and Airflow on one machine, on loopback, from PyPI wheels alone."""
