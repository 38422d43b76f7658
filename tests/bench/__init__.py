"""Measurements against the one-partition JDBC offload that people write today; `python -m tests.bench`."""
