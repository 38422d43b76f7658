-- One view of every table over ClickHouse and Iceberg: docs/views.md. Atomic, so that a view is replaced in one step.
CREATE DATABASE IF NOT EXISTS k2_all ENGINE = Atomic
