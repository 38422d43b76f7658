"""The runbooks that no alert leads to: their commands run, in the state that needs them.

Named to come last: they drop databases, stop the scheduler, and roll back what other tests have published.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import psycopg2
import pytest
from pyiceberg.catalog import load_catalog

from coldchain.clickhouse import HttpClickHouse
from coldchain.core.adoption import before_adoption
from coldchain.core.sql import Query
from coldchain.lake import head_of, live_files
from coldchain.registry import load_registry
from coldchain.settings import Settings
from stack import process
from stack.airflow_api import AirflowApi
from stack.state import Stack
from tests.comparer import compare, connect_clickhouse
from tests.e2e.conftest import TABLE
from tests.lab import append_foreign
from tests.watch import Shell, blocks_of, procedures

pytestmark = pytest.mark.timeout(900)
(SPEC,) = (spec for spec in load_registry().tables if spec.name == TABLE)
TOLD = ("adoption", "disaster-recovery", "rollback", "scheduling", "watermarks")  # each has a test of its own below
RAN: set[str] = set()  # several pages share a block


class Desk:
    """What a person on call has open: a shell, the databases, and the comparer's word."""

    def __init__(self, shell: Shell, environment: dict[str, str]) -> None:
        self.shell = shell
        self.environment = environment
        self.settings = Settings.from_environment(environment)
        self.catalog = load_catalog("coldchain", **self.settings.catalog_properties)
        self.loader = HttpClickHouse(
            self.settings.clickhouse_url, environment["COLDCHAIN_LOADER_USER"], environment["COLDCHAIN_LOADER_PASSWORD"]
        )

    def insert(self) -> None:
        """Insert a row that looks like the table's newest one."""
        number = uuid.uuid4().int % 10**15
        statement = (
            f"INSERT INTO {SPEC.source} SELECT * REPLACE ({number} AS {SPEC.sequence}) FROM {SPEC.source} "
            f"ORDER BY {SPEC.event_time} DESC LIMIT 1"
        )
        assert list(self.loader.stream(Query(statement, {}), {})) == []

    def sql(self, database: str, statement: str) -> None:
        """Run a statement as the superuser."""
        connection = psycopg2.connect(
            self.environment["COLDCHAIN_PG_SUPERUSER_URI"].replace("+psycopg2", "").rpartition("/")[0] + f"/{database}"
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
        connection.close()

    def check_equal(self) -> int:
        """Assert that Iceberg holds exactly the source's rows, and return how many."""
        client = connect_clickhouse(
            self.settings.clickhouse_url, self.settings.clickhouse_user, self.settings.clickhouse_password
        )
        found = compare(client, self.catalog, source=SPEC.source, target=SPEC.target, event_time=SPEC.event_time)
        assert found.is_equal, found
        return found.target_rows


@pytest.fixture(scope="module")
def desk(shell: Shell, airflow: dict[str, str]) -> Desk:
    """The desk, once everything has been moved that other tests left."""
    shell.check("make run")
    return Desk(shell, airflow)


def test_ledger_and_catalog_come_back_from_a_dump(desk: Desk, tmp_path: Path) -> None:
    """What was published after the dump is moved again; nothing is there twice."""
    diagnosis, dump, restore = blocks_of("procedures/disaster-recovery")
    folder = f"BACKUP={tmp_path / 'backup'}"
    desk.shell.check(folder, dump)
    desk.insert()
    desk.shell.check(f"make run TABLES={TABLE}")
    rows = desk.check_equal()
    desk.sql("coldchain", "DROP SCHEMA coldchain CASCADE")
    desk.sql("iceberg", "DELETE FROM public.iceberg_tables")
    desk.shell.check(diagnosis)
    said = desk.shell.check(folder, restore)
    assert f"{TABLE}: the ledger knows every live file, nothing to rebuild" in said
    desk.shell.check("make verify")
    assert desk.check_equal() == rows


def test_a_lost_catalog_is_registered_and_its_tables_are_not_made_anew(desk: Desk) -> None:
    """Without any dump: the ledger knows where each table's metadata lie."""
    head = desk.catalog.load_table(SPEC.target).current_snapshot()
    desk.sql("iceberg", "DELETE FROM public.iceberg_tables")
    assert desk.shell.run(f"make run TABLES={TABLE}").returncode != 0
    desk.shell.check('make recover ACTION=register REASON="the catalog was lost" APPLY=1', "make verify")
    assert desk.catalog.load_table(SPEC.target).current_snapshot() == head


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE coldchain.offload_watermarks SET last_offload_timestamp = NULL",
        "UPDATE coldchain.offload_watermarks SET last_offload_timestamp = now() + interval '30 days'",
    ],
)
def test_a_watermark_in_doubt_is_reset(desk: Desk, damage: str) -> None:
    desk.sql("coldchain", damage)
    look, reset, _ = blocks_of("procedures/watermarks")
    desk.shell.check(look, reset)
    watermark = "SELECT count(*) FROM coldchain.offload_watermarks WHERE last_offload_timestamp <= now()"
    assert desk.shell.check(f"ledger \"{watermark} AND table_name = '{TABLE}'\" | grep -qx ' *1'") == ""
    desk.check_equal()


def test_a_table_that_was_dropped_is_made_anew(desk: Desk) -> None:
    """Only then: as long as it is in the catalog, nothing is forgotten."""
    *_, recreate = blocks_of("procedures/watermarks")
    refused = desk.shell.run(recreate)
    assert refused.returncode != 0
    assert "drop or rename it first" in refused.stdout + refused.stderr
    desk.catalog.drop_table(SPEC.target)
    assert "segments would be forgotten" in desk.shell.check(recreate)
    desk.check_equal()


def test_a_dead_scheduler_is_found_and_started(desk: Desk, stack: Stack, api: AirflowApi) -> None:
    """And a run that it left behind is ended, so that the next one need not wait for it."""
    look, run, start, end = blocks_of("procedures/scheduling")
    desk.shell.check(look, run)
    process.stop(stack, ["airflow-scheduler"])
    desk.insert()
    left = api.trigger("coldchain_offload", {"tables": [TABLE]})
    assert f"failed {left}" in desk.shell.check(end)
    assert api.run("coldchain_offload", left)["state"] == "failed"
    desk.shell.check(start, f"make run TABLES={TABLE}")
    desk.check_equal()


def test_a_table_that_was_rolled_back_is_filled_again(desk: Desk) -> None:
    look, stop, go_on = blocks_of("procedures/rollback")
    desk.insert()
    desk.shell.check(f"make run TABLES={TABLE}", look, stop)
    table = desk.catalog.load_table(SPEC.target)
    head = table.current_snapshot()
    assert head is not None
    assert head.parent_snapshot_id is not None
    table.manage_snapshots().set_current_snapshot(snapshot_id=head.parent_snapshot_id).commit()
    desk.shell.check(go_on)
    desk.check_equal()


@pytest.mark.parametrize("name", [name for name in procedures() if Path(name).stem not in TOLD])
def test_every_block_succeeds(name: str, desk: Desk) -> None:
    blocks = [block for block in blocks_of(name) if block not in RAN]
    if name.endswith("consistency"):
        desk.shell.check("make run")  # other tables have not followed what was inserted here
        assert f"{TABLE}: 0 of " in desk.shell.check(*blocks)
    elif name.endswith("compaction"):
        before = len(live_files(table := desk.catalog.load_table(SPEC.target), head_of(table)))
        rows = desk.check_equal()
        desk.shell.check(*blocks)  # how few files become of many, the scheduler's story tells (chapter 8e)
        after = len(live_files(table := desk.catalog.load_table(SPEC.target), head_of(table)))
        assert 0 < after <= before
        assert desk.check_equal() == rows
    else:
        desk.shell.check(*blocks)
    RAN.update(blocks)


def test_a_table_that_others_appended_to_is_adopted(desk: Desk) -> None:
    rows = desk.check_equal()
    append_foreign(desk.catalog.load_table(SPEC.target))
    look, adopt, after = blocks_of("procedures/adoption")
    desk.shell.check(look, adopt, after)
    assert desk.check_equal() == rows, "each row is there once"
    assert desk.catalog.table_exists(before_adoption(SPEC.target))
    assert f"{TABLE}: segments own every live file, nothing to adopt" in desk.shell.check(look)
