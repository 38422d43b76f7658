"""The schema and the hash on ClickHouse 24.5, the oldest engine that is promised, and on the current one: all the same.

The old engine is a wheel of its own version in an environment of its own, which is made once, below build/.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import zlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from coldchain.core.fingerprint import Fingerprint, canonical_rows, source_buckets
from coldchain.core.sql import inlined
from coldchain.core.typemap import Column, canonical_column
from coldchain.core.windows import DAY_US, Window
from coldchain.core.word import CLICKHOUSE, source_words
from coldchain.proof import read_files
from coldchain.registry import DEFAULT_PATH, load_registry
from coldchain.source import _VECTOR
from coldchain_spark.slices import Slice
from coldchain_spark.stream import STREAM_SETTINGS, rows_query
from stack.clickhouse import schema_files
from tests.market import WIDTHS_S, Delivery, binance, coinbase, kraken
from tests.unit.engine import stamped

ROOT = Path(__file__).parents[2]
PIN = "chdb==2.0.4"
VERSIONS = {"old": "24.5.", "current": "26."}
pytestmark = pytest.mark.timeout(900)

_DAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=2)
_DAY_US = int(_DAY.timestamp()) * 1_000_000
MESSAGES = (
    binance("BTCUSDT", 9, _DAY_US, "100.00000001", "0.5", is_sell=True),
    binance("BTCUSDT", 10, _DAY_US, "101", "0.00000001"),
    binance("BTCTUSD", 11, _DAY_US + 60_000_000, "0.5", "0.00000001"),
    binance("NOBODYKNOWS", 12, _DAY_US + 1_000, "0", "1"),
    kraken("XBT/USD", 5, (_DAY_US + 123_456, "8850.1", "0.1", "b"), (_DAY_US + 123_456, "8850.2", "0.1", "?")),
    kraken("XDG/XBT", 6, (_DAY_US + 86_399_999_999, "0.00000123", "7", "s")),
    coinbase("BTC-USD", 7, _DAY_US + 1, "8850.1", "0.1"),
    coinbase("ETH-USD", 8, _DAY_US + 3_600_000_000, "2500", "0.3", side="sell"),
)
CORRECTION = binance("BTCUSDT", 10, _DAY_US, "99", "3")
ROWS = "SELECT * EXCEPT (ingestion_timestamp, processed_at) FROM k2.silver_trades FINAL ORDER BY exchange, trade_id"
TYPES = "SELECT table, name, type FROM system.columns WHERE database = 'k2' ORDER BY table, position"
SETTINGS = f"SELECT name FROM system.settings WHERE name IN {tuple(STREAM_SETTINGS)}"
THE_DAY = Window(_DAY_US, _DAY_US + DAY_US)
SHIPPED = {spec.name: spec for spec in load_registry(DEFAULT_PATH).tables}
HASHES = f"SELECT {', '.join(f'toString(cityHash64({arguments}))' for arguments, _ in _VECTOR)}"
# What the word of a row is made of, NULL beside what might be taken for it.
WORD_TYPES = {
    "ts": "DateTime64(6, 'UTC')", "n": "Nullable(Int64)", "s": "LowCardinality(Nullable(String))", "b": "Bool",
    "d": "Nullable(Decimal(38, 8))", "u": "UUID", "e": "Enum8('' = 0, 'a,b' = 1)", "f": "Nullable(Float64)",
    "l": "Array(Nullable(String))", "m": "Map(String, Nullable(Int32))", "t": "Tuple(x Date, y FixedString(2))",
    "big": "UInt64",
}  # fmt: skip
WORD_ROWS = (
    "NULL, NULL, true, NULL, '00000000-0000-0000-0000-000000000001', 'a,b', NULL, [NULL, ''], "
    "map('b', NULL, 'a', 1), (toDate('2026-01-02'), 'x'), 18446744073709551615",
    "-9223372036854775808, 'NULL', false, '-0.00000001', '00000000-0000-0000-0000-000000000002', '', nan, "
    "['NULL', '~N,'], map(), (toDate('1970-01-01'), ''), 0",
)
WORD_SPEC = replace(SHIPPED["bronze_trades_kraken"], source="k2.word", event_time="ts", read="raw")
WORD_COLUMNS = [canonical_column(name, kind) for name, kind in WORD_TYPES.items()]
HUGE = """
INSERT INTO k2.silver_trades (exchange, canonical_symbol, quantity, timestamp, trade_id)
SELECT 'none', 'HUGE', CAST('990000000000000000000000000000' AS Decimal(38, 8)), now64(6), toString(number)
FROM numbers(2)
"""


@pytest.fixture(scope="session")
def old_python() -> Path:
    """Make the old engine's environment unless it is whole, and return its Python."""
    folder = ROOT / "build" / f"old-engine-{PIN.replace('=', '-')}"
    folder.parent.mkdir(exist_ok=True)
    with open(folder.parent / "old-engine.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(folder)])
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
            _run([*pip, "--no-deps", PIN])
            (folder / "whole").touch()
    return folder / "bin" / "python"


def _run(command: list[str], said: str = "") -> str:
    done = subprocess.run(command, input=said, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def sessions(old_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Return the Python and the folder of each engine's session."""
    pythons = {"old": old_python, "current": Path(sys.executable)}
    return {engine: (python, tmp_path_factory.mktemp(engine)) for engine, python in pythons.items()}


Answers = dict[str, tuple[str, str]]


def _ask(session: tuple[Path, Path], named: dict[str, str]) -> Answers:
    """Run statements in an engine's session; return (text, error) by name."""
    python, folder = session
    command = [str(python), str(ROOT / "tests" / "run_engine.py"), str(folder / "session")]
    said = json.loads(_run(command, json.dumps(list(named.values()))))
    return {name: (text, error) for name, (text, error) in zip(named, said, strict=True)}


@pytest.fixture(scope="session")
def answers(sessions: dict[str, tuple[Path, Path]]) -> dict[str, Answers]:
    """Run the same statements on both engines."""
    named = _statements()
    return {engine: _ask(session, named) for engine, session in sessions.items()}


@dataclass(frozen=True)
class Offloaded:
    """What an engine makes of the shipped tables: columns, the fingerprints of its rows, and its Parquet, stamped."""

    columns: dict[str, list[Column]]
    source: dict[str, dict[int, Fingerprint]]
    files: dict[str, Path]


@pytest.fixture(scope="session")
def offloaded(sessions: dict[str, tuple[Path, Path]], answers: dict[str, Answers]) -> dict[str, Offloaded]:
    """Offload the shipped registry's tables as the job would, by both engines."""
    return {engine: _offload(session, answers[engine]) for engine, session in sessions.items()}


def _offload(session: tuple[Path, Path], answers: Answers) -> Offloaded:
    kinds = [line.split("\t") for line in answers["types"][0].replace("\\'", "'").splitlines()[1:]]
    columns = {
        name: [canonical_column(each, kind, spec.types.get(each)) for table, each, kind in kinds
               if f"k2.{table}" == spec.source]
        for name, spec in SHIPPED.items()
    }  # fmt: skip
    files = {name: session[1] / f"{name}.parquet" for name in SHIPPED}
    known = answers["settings"][0].splitlines()[1:]
    settings = "".join(f", {name} = {STREAM_SETTINGS[name]!r}" for name in known)
    asked = {}
    for name, spec in SHIPPED.items():
        rows = inlined(rows_query(spec, columns[name], Slice(THE_DAY, THE_DAY, 0))).removesuffix(" FORMAT Parquet")
        asked[f"write {name}"] = f"{rows}{settings} INTO OUTFILE '{files[name]}' FORMAT Parquet"
        asked[f"source {name}"] = inlined(source_buckets(spec, columns[name], [THE_DAY], spec.grid_us))
    found = _ask(session, asked)
    assert {name: error for name, (_, error) in found.items() if error} == {}
    source = {}
    for name in SHIPPED:
        lines = [map(int, line.split("\t")) for line in found[f"source {name}"][0].splitlines()[1:]]
        source[name] = {start: Fingerprint(rows, hash_) for start, rows, hash_, _unhashed in lines}
        files[name].write_bytes(stamped(files[name].read_bytes(), columns[name]))
    return Offloaded(columns, source, files)


def _statements() -> dict[str, str]:
    schema = {f"{time} {file.name}": file.read_text() for time in (1, 2) for file in schema_files("embedded")}
    asked = {"version": "SELECT version()", "hashes": HASHES, "types": TYPES, "rows": ROWS, "settings": SETTINGS}
    bars = {f"ohlcv_{name}": f"SELECT * FROM k2.ohlcv_{name} ORDER BY ALL" for name in WIDTHS_S}
    bounds = f"window_start >= '{_DAY:%F %T}' AND window_start < '{_DAY + timedelta(days=1):%F %T}'"
    plans = {f"plan {name}": f"EXPLAIN indexes = 1 SELECT * FROM k2.ohlcv_{name} WHERE {bounds}" for name in WIDTHS_S}
    inserts = {f"insert {number}": _insert(each) for number, each in enumerate((*MESSAGES, *MESSAGES, CORRECTION))}
    huge = {"huge": HUGE, "overflow": "SELECT volume FROM k2.ohlcv_1d WHERE canonical_symbol = 'HUGE'"}
    return schema | inserts | asked | bars | plans | huge | _word_statements()


def _word_statements() -> dict[str, str]:
    declared = ", ".join(f"{name} {kind}" for name, kind in WORD_TYPES.items())
    rows = ", ".join(
        f"(fromUnixTimestamp64Micro({_DAY_US + number}, 'UTC'), {row})" for number, row in enumerate(WORD_ROWS)
    )
    canonical = inlined(canonical_rows(WORD_SPEC, WORD_COLUMNS, [THE_DAY]))
    return {
        "word table": f"CREATE TABLE k2.word ({declared}) ENGINE = MergeTree ORDER BY ts",
        "word rows": f"INSERT INTO k2.word VALUES {rows}",
        "word texts": f"SELECT {CLICKHOUSE.row(WORD_COLUMNS)} FROM ({canonical}) ORDER BY ts",
        "word": inlined(source_words(WORD_SPEC, WORD_COLUMNS, [THE_DAY], DAY_US)),
    }


def _insert(delivery: Delivery) -> str:
    text = delivery.text.replace("\\", "\\\\").replace("'", "\\'")
    return f"INSERT INTO k2.bronze_trades_{delivery.exchange}_queue VALUES ('{text}', {delivery.offset}, 0)"


@pytest.mark.parametrize("engine", VERSIONS)
def test_every_statement_runs_twice(answers: dict[str, Answers], engine: str) -> None:
    assert answers[engine]["version"][0].splitlines()[1].startswith(VERSIONS[engine])
    errors = {name: error for name, (_text, error) in answers[engine].items() if error and name != "overflow"}
    assert errors == {}


@pytest.mark.parametrize("name", ["types", "rows", *(f"ohlcv_{name}" for name in WIDTHS_S)])
def test_both_engines_say_the_same(answers: dict[str, Answers], name: str) -> None:
    old, current = (answers[engine][name][0].splitlines() for engine in ("old", "current"))
    assert len(old) > 1
    assert old == current


def test_the_correction_replaced_its_trade(answers: dict[str, Answers]) -> None:
    rows = answers["old"]["rows"][0].splitlines()[1:]
    trades = [row.split("\t")[1] for row in rows]
    assert len(set(trades)) == len(trades) == 9
    (corrected,) = [row.split("\t")[7:10] for row in rows if "\tBINANCE-10\t" in row]
    assert corrected == ["99", "3", "297"]


@pytest.mark.parametrize("engine", VERSIONS)
def test_the_hash_is_the_one_that_proofs_are_made_with(answers: dict[str, Answers], engine: str) -> None:
    assert answers[engine]["hashes"][0].splitlines()[1].split("\t") == [str(want) for _arguments, want in _VECTOR]


@pytest.mark.parametrize("engine", VERSIONS)
@pytest.mark.parametrize("name", WIDTHS_S)
def test_a_condition_on_a_bar_s_start_reaches_silver_s_indexes(
    answers: dict[str, Answers], engine: str, name: str
) -> None:
    conditions = [line.strip() for line in answers[engine][f"plan {name}"][0].splitlines() if "Condition:" in line]
    assert len([line for line in conditions if "toStartOfInterval(timestamp" in line]) == 2, conditions


@pytest.mark.parametrize("engine", VERSIONS)
def test_a_volume_that_does_not_fit_is_refused(answers: dict[str, Answers], engine: str) -> None:
    assert "overflow" in answers[engine]["overflow"][1]


@pytest.mark.parametrize("engine", VERSIONS)
def test_the_word_of_a_row_is_one_text(answers: dict[str, Answers], engine: str) -> None:
    """A comma ends a value, `~1` is one within, `~0` a tilde, `~N` NULL; inside a list or map all of it once more."""
    texts = answers[engine]["word texts"][0].splitlines()[1:]
    assert texts == [
        f"{_DAY_US},~N,~N,true,~N,00000000-0000-0000-0000-000000000001,a~1b,~N,2[~0N~1~1,"
        "2;a~11~1b~1~0N~1,(20455~17800~1,18446744073709551615,",
        f"{_DAY_US + 1},-9223372036854775808,NULL,false,-0.00000001,00000000-0000-0000-0000-000000000002,,"
        "9221120237041090560,2[NULL~1~00N~01~1,0;,(0~10000~1,0,",
    ]
    total = sum(zlib.crc32(text.encode()) for text in texts)
    assert answers[engine]["word"][0].splitlines()[1:] == [f"{_DAY_US}\t{len(WORD_ROWS)}\t{total}"]


@pytest.mark.parametrize("engine", VERSIONS)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_table_becomes_a_file_that_is_proven(
    offloaded: dict[str, Offloaded], engine: str, name: str
) -> None:
    """What the engine hashes is what the proof reads in the engine's own Parquet, UUID, arrays and maps included."""
    made = offloaded[engine]
    spec, path = SHIPPED[name], str(made.files[name])
    assert sum(found.rows for found in made.source[name].values()) > 1
    assert read_files(spec, made.columns[name], [path], spec.grid_us, {})[path] == made.source[name]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_reader_gets_the_same_of_either_engine_s_file(offloaded: dict[str, Offloaded], name: str) -> None:
    old, current = (pq.read_table(offloaded[engine].files[name]) for engine in ("old", "current"))
    assert old.schema.equals(current.schema, check_metadata=True)
    timed = {"ingestion_timestamp", "processed_at"}  # when it was inserted
    old, current = (table.drop_columns(sorted(timed & {*table.column_names})) for table in (old, current))
    assert old.to_pylist() == current.to_pylist()
