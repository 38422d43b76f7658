# Coldchain. `make help` lists what there is; all the work is done by `python -m stack` and pytest.
SHELL := /bin/sh
.DEFAULT_GOAL := help
# The first Python 3.11 on PATH: a shim that is called so but can't run one does not count.
PYTHON := $(or $(PYTHON),$(shell for p in python3.11 python3 python; do $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && { command -v $$p; break; }; done))
VENV := .venv/bin/python
TIERS := $(wildcard tests/unit tests/integration tests/e2e tests/faults)
PYTEST := $(VENV) -m pytest $(if $(filter true,$(CI)),-p tests.no_skips)
# Two processes, each with a stack of its own, file by file: most of the long tests wait, for leases and for Airflow.
PARALLEL := --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: environment
environment: ## Make .venv from requirements.txt (every other target does, where needed)
	@test -n "$(PYTHON)" || { echo "Python 3.11 is missing: install it (Debian 12: sudo apt-get install python3.11 python3.11-venv; elsewhere: pyenv install 3.11), then run make again." >&2; exit 1; }
	@"$(PYTHON)" -m stack.environment

.PHONY: prerequisites
prerequisites: environment
	@$(VENV) -m stack check

.PHONY: demo
demo: prerequisites ## Start everything, offload real trades, prove the outcome (ROWS=3868363 adds a generated stream)
	@$(VENV) -m stack demo

.PHONY: up
up: prerequisites ## Start the stack, or find it running
	@$(VENV) -m stack up

.PHONY: down
down: environment ## Stop the stack, and whatever an interrupted command left
	@$(VENV) -m stack down

.PHONY: run
run: environment ## Trigger the offload and follow it (START= END= TABLES= MODE=normal|plan ALLOW_SHRINK=)
	@$(VENV) -m stack run

.PHONY: status
status: environment ## Show watermark, lag, segments, rows and proof per table
	@$(VENV) -m stack status

.PHONY: report
report: environment ## Print what was measured per table and for the last run (FORMAT=table|markdown|json)
	@$(VENV) -m stack report

.PHONY: verify
verify: environment ## Compare every published window with its source, by content (ENGINE=spark: as Spark SQL reads it)
	@$(VENV) -m stack verify

.PHONY: discover
discover: environment ## Print a registry entry for a table of the running ClickHouse (TABLE=database.table)
	@$(VENV) -m stack discover

.PHONY: views
views: environment ## Make the views over ClickHouse and Iceberg anew, of all tables
	@$(VENV) -m stack views

.PHONY: maintain
maintain: environment ## Trigger the maintenance and follow it (TABLES= DAYS=30 DRY_RUN=1)
	@$(VENV) -m stack maintain

.PHONY: recover
recover: environment ## Correct the ledger: ACTION=rebuild|reset|accept|register|recreate TABLE= SEGMENTS= REASON=; a dry run without APPLY=1
	@$(VENV) -m stack recover

.PHONY: adopt
adopt: environment ## Adopt a table that append-only jobs filled: TABLE= REASON= ALLOW_MISSING=; a dry run without APPLY=1
	@$(VENV) -m stack adopt

.PHONY: logs
logs: environment ## Show what the components wrote last (FOLLOW=1 goes on)
	@$(VENV) -m stack logs

.PHONY: package
package: environment ## Write build/coldchain.zip, the code for executors of a cluster (docs/cluster.md)
	@$(VENV) -m stack package

.PHONY: clean
clean: environment ## Stop the stack and remove its state: databases, warehouse, passwords
	@$(VENV) -m stack clean

.PHONY: test
test: prerequisites ## Run every tier of tests but bench (CI=true: installs what is missing; a skip fails)
	@$(PYTEST) $(PARALLEL) $(TIERS)

.PHONY: test-fast
test-fast: environment ## Run the unit tests: seconds
	@$(PYTEST) tests/unit

.PHONY: test-integration
test-integration: prerequisites ## Run the tests against real services
	@$(PYTEST) tests/integration

.PHONY: test-e2e
test-e2e: prerequisites ## Run the tests through the real scheduler
	@$(PYTEST) tests/e2e

.PHONY: test-faults
test-faults: prerequisites ## Run the tests that kill things
	@$(PYTEST) tests/faults

.PHONY: soak
soak: prerequisites ## Live simulated days of trouble, then compare every row (MINUTES=60 SEED= CYCLES=)
	@COLDCHAIN_SOAK_MINUTES=$(or $(MINUTES),60) COLDCHAIN_SOAK_SEED=$(SEED) COLDCHAIN_SOAK_CYCLES=$(CYCLES) $(PYTEST) -s tests/faults/test_soak.py

.PHONY: fault-matrix
fault-matrix: prerequisites ## Run every test of the fault table and write docs/fault-matrix.md
	@$(PYTEST) -m fault --fault-matrix=docs/fault-matrix.md $(TIERS)

.PHONY: bench
bench: prerequisites ## Measure against the one-partition JDBC baseline; writes JSON
	@$(VENV) -m tests.bench

.PHONY: lint
lint: environment ## Check style and types
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check .
	@$(VENV) -m mypy

.PHONY: requirements
requirements: ## Resolve requirements.in into requirements.txt
	@"$(PYTHON)" -m stack.environment upgrade
