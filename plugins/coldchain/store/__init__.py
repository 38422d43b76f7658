"""The ledger: a protocol, its PostgreSQL implementation, and one in memory for tests."""
