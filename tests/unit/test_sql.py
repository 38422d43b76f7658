"""Names become SQL only through an allow-list; values never do."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given, strategies as st

from coldchain.clickhouse import render
from coldchain.core.errors import BadRequest
from coldchain.core.sql import Query, comma, in_windows, quote, quote_table
from coldchain.core.windows import MAX_US, MIN_US, Window
from tests.unit.engine import Engine

BAD = {
    "empty": "",
    "injection": "ts`; DROP TABLE k2.t; --",
    "quote": "ts'",
    "double quote": 'ts"',
    "backtick": "`ts`",
    "backslash": "ts\\",
    "comment": "ts--",
    "block comment": "ts/**/",
    "parenthesis": "now()",
    "asterisk": "*",
    "space": "event time",
    "leading space": " ts",
    "line break": "ts\n",
    "return": "ts\r",
    "tab": "ts\t",
    "NUL": "ts\0",
    "dot": "k2.t",
    "dollar": "ts$1",
    "placeholder": "{s0:Int64}",
    "digit first": "1ts",
    "Cyrillic e": "exchangе_timestamp",  # noqa: RUF001
    "full width": "ｔｓ",  # noqa: RUF001
    "accent": "prénom",
    "Arabic digit": "ts٣",
    "zero width space": "ts\u200b",
    "right to left": "\u202ests",
    "too long": "a" * 129,
}
GOOD = ["ts", "_", "_1", "A", "exchange_timestamp", "SELECT", "a" * 128]


@pytest.mark.parametrize("what", BAD)
def test_a_name_off_the_list_is_refused(what: str) -> None:
    with pytest.raises(BadRequest, match="letters, digits and _ only, at most 128 characters") as refused:
        quote(BAD[what])
    assert repr(BAD[what]) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", GOOD)
def test_a_plain_name_is_quoted(name: str) -> None:
    assert quote(name) == f"`{name}`"


@given(st.text(max_size=140))
def test_whatever_is_quoted_can_not_end_the_quote(text: str) -> None:
    try:
        quoted = quote(text)
    except BadRequest:
        return
    assert re.fullmatch(r"`[A-Za-z0-9_]{1,128}`", quoted, re.ASCII)


@pytest.mark.parametrize("name", GOOD)
def test_the_engine_reads_the_name_that_was_meant(engine: Engine, name: str) -> None:
    assert engine(Query(f"SELECT {quote(name)} FROM (SELECT 7 AS {quote(name)})", {})) == [(7,)]


def test_a_table_is_quoted_part_by_part() -> None:
    assert quote_table("k2.bronze_trades_kraken") == "`k2`.`bronze_trades_kraken`"


@pytest.mark.parametrize("source", ["", "trades", "a.b.c", ".", "k2.", ".t", "k2..t", "k2.t FINAL", "k2.t\n", "k2.`t`"])
def test_a_table_of_any_other_form_is_refused(source: str) -> None:
    with pytest.raises(BadRequest, match=r"source=|identifier="):
        quote_table(source)


# -- windows ---------------------------------------------------------------------------------------------------------

INSTANTS = st.integers(MIN_US, MAX_US - 1) | st.integers(-3, 3)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    start = draw(INSTANTS)
    return Window(start, draw(st.integers(start + 1, MAX_US) | st.integers(start + 1, min(MAX_US, start + 5))))


@given(st.lists(windows(), max_size=4))
def test_numbers_are_bound_and_never_written(some: list[Window]) -> None:
    condition = in_windows("`ts`", some)
    for window in some:
        assert {window.start_us, window.end_us} <= set(condition.parameters.values())
    assert not re.search(r"-?\d{3,}", re.sub(r"fromUnixTimestamp64Micro|Int64", "", condition.text))
    assert len(condition.parameters) == 2 * len(some)


@given(some=st.lists(windows(), max_size=3), instants=st.lists(INSTANTS, min_size=1, max_size=6))
def test_the_condition_holds_for_the_instants_of_the_windows(
    engine: Engine, some: list[Window], instants: list[int]
) -> None:
    """Half open, with microseconds, on both sides of 1970."""
    instants = instants + [us for w in some for us in (w.start_us, w.end_us - 1, w.end_us) if us < MAX_US]
    condition = in_windows("ts", some)
    found = engine(
        Query(
            "SELECT toUnixTimestamp64Micro(ts) AS us FROM (SELECT fromUnixTimestamp64Micro(arrayJoin("
            f"{instants}::Array(Int64)), 'UTC') AS ts) WHERE {condition.text}",
            condition.parameters,
        )
    )
    assert sorted(us for (us,) in found) == sorted(
        us for us in instants if any(window.start_us <= us < window.end_us for window in some)
    )


def test_no_windows_hold_nothing() -> None:
    assert in_windows("ts", []) == Query("0", {})


# -- values ----------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8), max_size=4
    )
)
def test_a_list_of_any_texts_arrives_as_it_was_sent(engine: Engine, texts: list[str]) -> None:
    query = Query("SELECT base64Encode(arrayJoin({texts:Array(String)})) AS t", {"texts": texts})
    assert [base64.b64decode(text).decode() for (text,) in engine(query)] == texts


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_number_arrives_as_it_was_sent(engine: Engine, number: int) -> None:
    assert engine(Query("SELECT {n:Int64}", {"n": number})) == [(number,)]


def test_values_are_written_as_clickhouse_reads_them() -> None:
    assert render(["a'b", "c\\d"]) == "['a\\'b','c\\\\d']"
    assert render(-7) == "-7"
    assert comma(["a", "b"]) == "a, b"
