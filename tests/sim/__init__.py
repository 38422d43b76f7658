"""A simulated source and Iceberg catalog, and processes that can be stopped between any two of their requests."""
