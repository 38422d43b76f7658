"""ClickHouse's configuration and schema as far as they can be read without a server."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import chdb
import pytest

from coldchain.settings import LOADS
from coldchain.source import _ALLOWED_SETTINGS
from coldchain_spark.stream import STREAM_SETTINGS
from stack import clickhouse, clickhouse_access, state
from stack.errors import StackError
from stack.state import Stack

EXCHANGES = ("binance", "kraken", "coinbase")


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setenv("COLDCHAIN_STATE", str(tmp_path / "run"))
    return state.open_state()


def test_passwords_are_kept_as_hashes(stack: Stack) -> None:
    text = clickhouse._users(stack) + clickhouse._config(stack, Path("/x"))
    assert not [name for name, secret in stack.secrets.items() if secret in text]


def test_nothing_listens_beyond_loopback_and_nobody_enters_from_beyond(stack: Stack) -> None:
    assert [each.text for each in ET.fromstring(clickhouse._config(stack, Path("/x"))).iter("listen_host")] == [
        "127.0.0.1"
    ]
    networks = [each.text for each in ET.fromstring(clickhouse._users(stack)).iter("ip")]
    assert networks == ["127.0.0.1"] * 6


@pytest.mark.parametrize("name", ["coldchain", "coldchain_validator"])
def test_coldchain_s_users_have_what_the_shipped_sql_gives_their_roles(stack: Stack, name: str) -> None:
    users = ET.fromstring(clickhouse._users(stack))
    grants = [each.text for each in users.iterfind(f"users/{name}/grants/query")]
    assert grants == clickhouse_access.read_access().grants[clickhouse_access.ROLES[name]]
    assert [f"REVOKE SELECT ON k2.bronze_trades_{exchange}_queue" for exchange in EXCHANGES] == grants[-3:]


def test_every_setting_that_the_code_sends_may_be_sent() -> None:
    """Those that 030 adds are the ones that an older server does not know: the image's users must not name them."""
    profiles = clickhouse_access.read_access().profiles
    allowed = {each.tag for name in ("coldchain_reader", "coldchain_reader_parquet")
               for each in profiles[name].iterfind("constraints/*[changeable_in_readonly]")}  # fmt: skip
    sent = {
        *STREAM_SETTINGS,
        *LOADS[1:],
        "output_format_json_quote_64bit_integers",
        "output_format_json_quote_decimals",
    }
    assert allowed == {*sent, "prefer_column_name_to_alias"}
    assert not set(profiles["coldchain_reader_parquet"].itertext()) & {"throw"}
    assert "coldchain_reader_parquet" not in clickhouse_access.container_users()


def test_every_setting_that_could_hide_rows_is_pinned_or_can_not_be_changed() -> None:
    profile = clickhouse_access.read_access().profiles["coldchain_reader"]
    assert profile.findtext("readonly") == "1"
    assert profile.find("constraints/readonly/const") is not None
    for mode in (name for name in _ALLOWED_SETTINGS if "overflow" in name):
        assert profile.findtext(mode) == "throw", mode
        assert profile.find(f"constraints/{mode}/const") is not None, mode
    changeable = {each.tag for each in profile.iterfind("constraints/*[changeable_in_readonly]")}
    assert not changeable & _ALLOWED_SETTINGS.keys()


def test_the_shipped_statements_are_sql_that_clickhouse_reads() -> None:
    statements = [
        statement
        for path in clickhouse_access.ACCESS.glob("*.sql")
        for statement in filter(None, map(str.strip, re.sub(r"^--.*", "", path.read_text(), flags=re.M).split(";")))
    ]
    assert len(statements) > 20
    for statement in statements:
        assert chdb.query(f"EXPLAIN AST {statement}").bytes(), statement


def test_a_statement_of_another_form_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "010_more.sql").write_text("CREATE QUOTA q;")
    with pytest.raises(StackError, match="'CREATE QUOTA q' is of no form"):
        clickhouse_access.read_access(tmp_path)


def test_the_users_of_the_views_can_write_no_table_and_open_no_other_file(stack: Stack) -> None:
    users = ET.fromstring(clickhouse._users(stack))
    assert [each.text for each in users.iterfind("users/analyst/grants/query")] == ["GRANT SELECT ON k2_all.*"]
    grants = [each.text or "" for each in users.iterfind("users/views/grants/query")]
    assert {f"REVOKE SELECT ON k2.bronze_trades_{exchange}_queue" for exchange in EXCHANGES} <= set(grants)
    *others, files = (grant for grant in grants if not grant.startswith(("GRANT SELECT ON ", "REVOKE ")))
    assert others == ["GRANT CREATE VIEW, DROP VIEW ON k2_all.*", "GRANT CREATE TEMPORARY TABLE ON *.*"]
    pattern = files.removeprefix("GRANT READ ON FILE('").removesuffix("')")
    assert re.fullmatch(pattern, f"{stack.warehouse}/cold/t")
    assert not re.fullmatch(pattern, f"{stack.root}/env")


def test_a_warehouse_s_path_is_no_pattern() -> None:
    assert clickhouse.view_users(Path("/a+b/c.d"), ())["views"][-1] == "GRANT READ ON FILE('/a[+]b/c[.]d/.*')"


def test_the_user_without_a_password_may_only_keep_the_server_alive(stack: Stack) -> None:
    users = ET.fromstring(clickhouse._users(stack))
    grants = [each.text for each in users.iterfind("users/default/grants/query")]
    assert grants == ["GRANT SYSTEM LISTEN ON *.*", "GRANT SELECT ON system.numbers"]


@pytest.mark.parametrize("flavour", ["embedded", "production"])
def test_tables_come_before_queues_and_queues_before_views(flavour: str) -> None:
    names = [file.name for file in clickhouse.schema_files(flavour)]
    for exchange in EXCHANGES:
        kinds = [f"create_bronze_{exchange}.sql", f"create_queue_{exchange}.sql", f"create_bronze_{exchange}_view.sql"]
        places = [next(i for i, name in enumerate(names) if name.endswith(kind)) for kind in kinds]
        assert places == sorted(places)


@pytest.mark.parametrize("flavour", ["embedded", "production"])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_silver_reads_bronze_before_bronze_reads_its_queue(flavour: str, exchange: str) -> None:
    """A production queue is consumed from the moment that Bronze's view exists: Silver must be listening by then."""
    names = [file.name for file in clickhouse.schema_files(flavour)]
    kinds = ["create_silver_trades.sql", f"create_silver_{exchange}_view.sql", f"create_bronze_{exchange}_view.sql"]
    places = [next(i for i, name in enumerate(names) if name.endswith(kind)) for kind in kinds]
    assert places == sorted(places)


def test_the_bars_differ_in_nothing_but_their_width() -> None:
    texts = {file.stem.rpartition("_")[2]: file.read_text() for file in clickhouse.DDL.glob("*_create_ohlcv_*.sql")}
    assert sorted(texts) == ["15m", "1d", "1h", "1m", "30m", "5m"]
    words = {"m": "MINUTE", "h": "HOUR", "d": "DAY"}
    forms = {
        text.replace(f"k2.ohlcv_{name}", "")
        .replace(f"toStartOfInterval(timestamp, INTERVAL {name[:-1]} {words[name[-1]]})", "")
        .replace(" ", "")
        for name, text in texts.items()
    }
    assert len(forms) == 1


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_both_queues_of_an_exchange_have_one_name_and_message(exchange: str) -> None:
    found = []
    for flavour in ("embedded", "production"):
        (file,) = (clickhouse.DDL / flavour).glob(f"*_create_queue_{exchange}.sql")
        match = re.search(r"CREATE TABLE IF NOT EXISTS (\S+)\s*\(\s*message\s+(\w+)", file.read_text())
        assert match is not None
        found.append(match.groups())
    assert found == [(f"k2.bronze_trades_{exchange}_queue", "String")] * 2


def test_kraken_s_messages_are_read_as_lines() -> None:
    (file,) = (clickhouse.DDL / "production").glob("*kraken*")
    assert "kafka_format = 'LineAsString'" in file.read_text()


def test_every_statement_can_be_repeated() -> None:
    for file in (*clickhouse.schema_files("embedded"), *clickhouse.schema_files("production")):
        statement = re.sub(r"^--.*\n", "", file.read_text(), flags=re.MULTILINE)
        assert re.match(r"CREATE (DATABASE|TABLE|MATERIALIZED VIEW|VIEW) IF NOT EXISTS ", statement)
        assert ";" not in statement, "one statement a file: HTTP takes no more"
