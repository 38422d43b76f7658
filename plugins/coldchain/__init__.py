"""Coldchain: moves ClickHouse tables to Apache Iceberg and proves every window before a reader can see it."""
