"""Adding a table is one registry entry: discovered on the live server, pasted, and its rows move."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from coldchain.core.errors import BadRequest, Permanent
from coldchain.core.request import Request
from coldchain.core.table import TableSpec
from coldchain.discover import describe, entry, main
from coldchain.registry import load_registry
from tests.lab import Lab, yesterday

START = yesterday()


@pytest.fixture
def other(lab: Lab) -> Iterator[Lab]:
    """A lab beside which the test makes a table of its own."""
    yield lab
    lab.execute(f"DROP TABLE IF EXISTS k2.{lab.name}_other")


def discovered(lab: Lab, source: str, folder: Path) -> TableSpec:
    """Paste the entry into a registry of its own, and load it."""
    path = folder / "tables.yaml"
    path.write_text("tables:\n" + entry(describe(lab.client, source)), encoding="utf-8")
    registry = load_registry(path)
    assert registry.problems == ()
    return registry.tables[0]


@pytest.mark.parametrize(
    "name", ["bronze_trades_binance", "bronze_trades_kraken", "bronze_trades_coinbase", "silver_trades"]
)
def test_the_shipped_tables_are_discovered_as_they_are_shipped(lab: Lab, name: str, tmp_path: Path) -> None:
    found, shipped = discovered(lab, f"k2.{name}", tmp_path), load_registry().table(name)
    for field in ("layer", "source", "target", "event_time", "sequence", "key", "read", "partitioning", "sort_order",
                  "retention_us", "types"):  # fmt: skip
        assert getattr(found, field) == getattr(shipped, field), field


def test_a_discovered_table_moves(lab: Lab, tmp_path: Path) -> None:
    lab.insert_many(START, 100, 60_000_000)
    spec = discovered(lab, lab.spec.source, tmp_path)
    assert (spec.name, spec.read, spec.partitioning) == (lab.name, "final", ("day(ts)",))
    lab.spec = spec
    lab.run()
    lab.check_equal(100)


def test_a_table_that_is_disabled_or_taken_out_stands_still_and_goes_on_from_its_watermark(
    lab: Lab, tmp_path: Path
) -> None:
    lab.insert_many(START, 60, 60_000_000)
    lab.spec = discovered(lab, lab.spec.source, tmp_path)
    lab.run(Request(None, lab.window(START, START + timedelta(hours=1)).end_us))
    path = tmp_path / "tables.yaml"
    text = "tables:\n" + entry(describe(lab.client, lab.spec.source))
    path.write_text(text + "    enabled: false\n", encoding="utf-8")
    assert [table.enabled for table in load_registry(path).tables] == [False]
    path.write_text("tables: []\n", encoding="utf-8")  # or it is taken out altogether
    assert (load_registry(path).tables, load_registry(path).problems) == ((), ())
    lab.insert_many(START + timedelta(hours=1), 60, 60_000_000, first=100)
    path.write_text(text, encoding="utf-8")
    (lab.spec,) = load_registry(path).tables
    reading = lab.run(run_key="test/enabled")
    assert [w.window.start_us for w in reading.plan.windows] == [
        lab.window(START + timedelta(hours=1), START + timedelta(hours=2)).start_us
    ]
    lab.check_equal(120)


def test_another_target_is_another_table_and_the_old_one_stays(lab: Lab) -> None:
    lab.insert_many(START, 60, 60_000_000)
    lab.run()
    old = lab.spec
    lab.spec = TableSpec.from_json({**old.to_json(), "name": f"{old.name}_v2", "target": f"{old.target}_v2"})
    lab.name = lab.spec.name
    lab.run()
    lab.check_equal(60)
    assert len(lab.lake.require(old.target).scan().to_arrow()) == 60
    lab.name = old.name


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("(ts DateTime64(6), n UInt64) ENGINE = Null", "is a Null table, which holds no rows of its own"),
        ("(n UInt64, d Date) ENGINE = MergeTree ORDER BY n", r"no column of type DateTime or DateTime64\(0 to 6\)"),
        ("(n UInt64, t Nullable(DateTime)) ENGINE = MergeTree ORDER BY n", "that is not Nullable"),
    ],
)
def test_what_can_not_be_offloaded_is_said_in_a_sentence(other: Lab, table: str, words: str) -> None:
    other.execute(f"CREATE TABLE k2.{other.name}_other {table}")
    with pytest.raises(Permanent, match=words):
        entry(describe(other.client, f"k2.{other.name}_other"))


def test_what_a_person_must_decide_is_said(other: Lab) -> None:
    other.execute(
        f"CREATE TABLE k2.{other.name}_other (day DateTime, id UInt64, sums AggregateFunction(sum, UInt64), "
        "j SimpleAggregateFunction(max, Int256)) "
        "ENGINE = AggregatingMergeTree PARTITION BY toYYYYMM(day) ORDER BY (id, day) TTL day + INTERVAL 3 MONTH"
    )
    text = entry(describe(other.client, f"k2.{other.name}_other"))
    (found,) = yaml.safe_load(text)
    assert (found["event_time"], found["retention"], found["partitioning"]) == ("day", "89d", ["month(day)"])
    assert "decide: AggregatingMergeTree merges rows" in text
    assert "decide: column sums AggregateFunction(sum, UInt64)" in text
    assert found["types"] == {"id": "long"}, "no form is chosen for a column that is refused"
    assert "decide: column j SimpleAggregateFunction(max, Int256)" in text


@pytest.mark.parametrize(
    ("column", "table", "retention", "said"),
    [
        ("", "TTL ts + INTERVAL 3 DAY TO VOLUME 'default', ts + INTERVAL 90 DAY", "90d", ""),
        ("TTL ts + INTERVAL 1 DAY", "TTL ts + INTERVAL 30 DAY", "1d", "source takes rows after 30d, column v after 1d"),
        ("", "TTL ts + INTERVAL 7 DAY DELETE WHERE v = 'a, b', ts + INTERVAL 30 DAY", "7d", "some rows after 7d"),
        ("", "TTL addDays(ts, 7)", "7d", ""),
        (
            "",
            "TTL toDateTime(if(v = 'a, b', ts, at)) + INTERVAL 7 DAY",
            None,
            "row is there and whole: rows by TTL toDa",
        ),
        ("", "TTL at + INTERVAL 7 DAY", None, "how long after ts a row is there and whole: rows by TTL at + "),
    ],
)
def test_a_retention_is_what_the_ttls_leave(
    other: Lab, column: str, table: str, retention: str | None, said: str
) -> None:
    other.execute(
        f"CREATE TABLE k2.{other.name}_other (ts DateTime('UTC'), at DateTime('UTC'), v String {column}) "
        f"ENGINE = MergeTree ORDER BY ts {table}"
    )
    text = entry(describe(other.client, f"k2.{other.name}_other"))
    (found,) = yaml.safe_load(text)
    assert found.get("retention") == retention
    (line,) = [line for line in text.splitlines() if "retention" in line]
    assert ("decide:" in line) == bool(said), line
    assert said in line


def test_a_replacing_table_with_a_loose_key_is_discovered_with_a_warning(other: Lab) -> None:
    other.execute(
        f"CREATE TABLE k2.{other.name}_other (ts DateTime('UTC'), n UInt64) ENGINE = ReplacingMergeTree ORDER BY n"
    )
    text = entry(describe(other.client, f"k2.{other.name}_other"))
    assert "read: final            # decide: ts is not in the sorting key" in text


def test_the_command_prints_an_entry_or_says_why_not(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    assert main([lab.spec.source]) == 0
    assert capsys.readouterr().out == entry(describe(lab.client, lab.spec.source))
    assert main(["k2.nothing"]) == Permanent.exit_code
    assert "source k2.nothing does not exist" in capsys.readouterr().err
    assert main(["nothing"]) == BadRequest.exit_code
    for wrong in ([], [""], ["k2.a", "k2.b"]):
        assert main(wrong) == 64
        assert "usage: " in capsys.readouterr().err


def test_an_unknown_table_and_a_name_that_is_none_are_refused(lab: Lab) -> None:
    with pytest.raises(Permanent, match=r"source k2\.nothing does not exist"):
        describe(lab.client, "k2.nothing")
    with pytest.raises(BadRequest, match=r"is not a table: write it as database\.table"):
        describe(lab.client, "nothing")
