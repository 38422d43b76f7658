"""ClickHouse's configuration and schema as far as they can be read without a server."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from stack import clickhouse, state
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
    assert networks == ["127.0.0.1"] * 5


def test_the_offload_s_user_can_read_only_and_is_never_cut_short(stack: Stack) -> None:
    users = ET.fromstring(clickhouse._users(stack))
    profile = users.find("profiles/offload")
    assert profile is not None
    assert profile.findtext("readonly") == "2"
    for mode in clickhouse.OVERFLOW_MODES:
        assert profile.findtext(mode) == "throw"
        assert profile.find(f"constraints/{mode}/const") is not None
    grants = [each.text or "" for each in users.iterfind("users/coldchain/grants/query")]
    given = [grant for grant in grants if not grant.startswith("REVOKE ")]
    assert given
    assert all(grant.startswith("GRANT SELECT ON ") for grant in given)


def test_the_offload_s_user_can_not_take_messages_from_a_queue(stack: Stack) -> None:
    queues = [f"REVOKE SELECT ON k2.bronze_trades_{exchange}_queue" for exchange in EXCHANGES]
    production = ET.parse(clickhouse.CLONE / "docker" / "clickhouse" / "users.xml").getroot()
    for users in (ET.fromstring(clickhouse._users(stack)), production):
        grants = [each.text for each in users.iterfind("users/coldchain/grants/query")]
        assert [each for each in grants if each in queues] == queues


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
    assert clickhouse.view_grants(Path("/a+b/c.d"))[-1] == "GRANT READ ON FILE('/a[+]b/c[.]d/.*')"


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
