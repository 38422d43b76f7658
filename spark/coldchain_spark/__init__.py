"""The Spark side of Coldchain: stream slices of ClickHouse tables to Parquet, and stage them. Never imports Airflow."""
