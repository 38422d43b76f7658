"""The status page and the metrics: read from the ledger, served inside Airflow's API server, behind its login."""
