"""Everything bad that can be given to Coldchain, by number: which layer answers, and with which words.

`by` says who: `registry` (our reading of the file), `form` (Airflow's own check of parameters, before a run exists),
`request` (our check in the task, for whatever came past the form), `source` (our look at the table before a row moves),
`profile` (the settings), or `taken` where the input is right and must do exactly what it says. Numbers 65 to 78 are
data: moved exactly, proven row by row, or refused before anything is written. tests/unit/test_bad_input.py asks each
layer; tests/integration/test_bad_input.py runs the tasks, which write nothing and count the refusal;
tests/e2e/test_bad_input.py comes by REST and by the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Registry:
    """A field of a registry entry."""

    number: int
    field: str
    value: Any
    words: str  # what the sentence says; empty where it is taken


@dataclass(frozen=True, slots=True)
class Params:
    """The parameters of a run, and who answers."""

    number: int
    conf: dict[str, Any]
    by: str  # form | request | taken
    words: str = ""


NOT = "is not allowed"
REGISTRY = (
    Registry(1, "source", "k2.t; DROP TABLE x--", NOT), Registry(2, "source", "k2.t` UNION SELECT 1--", NOT),
    Registry(3, "source", 'k2."t"', NOT), Registry(4, "source", "a.b.c.d", NOT),
    Registry(5, "source", "../../etc", NOT),
    Registry(6, "source", "", NOT), Registry(7, "source", " ", NOT), Registry(8, "source", f"k2.{'t' * 200}", NOT),
    Registry(9, "source", "k2.t\nFROM y", NOT), Registry(10, "source", "k2.t\0", NOT),
    Registry(11, "source", "k2.таblе", NOT), Registry(12, "source", "k2.t/*x*/", NOT),  # noqa: RUF001
    Registry(13, "source", "system.users", "a table of your own"),
    Registry(13, "source", "INFORMATION_SCHEMA.tables", "a table of your own"),
    Registry(14, "source", "numbers(1e9)", NOT), Registry(15, "source", "url('http://127.0.0.1')", NOT),
    Registry(16, "source", "file('/etc/passwd')", NOT), Registry(17, "target", "cold.t.branch_main", NOT),
    Registry(17, "target", "cold.branch_main", "take this one for a table's metadata"),
    Registry(17, "target", "t.snapshots", "take this one for a table's metadata"),
    Registry(18, "branch", "main", "unknown field branch"),
    Registry(19, "source", "k2.select", ""), Registry(19, "event_time", "select`", NOT),
    Registry(22, "source", "{{ var.value.x }}", NOT), Registry(23, "source", "{{ ''.__class__ }}", NOT),
    Registry(24, "source", "$(id)", NOT), Registry(24, "source", "`id`", NOT),
    Registry(25, "source", "${env:HOME}", NOT),
    Registry(36, "grid", "-15m", NOT), Registry(36, "grid", "0m", NOT), Registry(37, "grid", "7m", "must divide a day"),
    Registry(55, "key", None, "'key' is a required property"), Registry(59, "key", ["a b"], NOT),
    Registry(59, "key", ["1st"], NOT), Registry(60, "partitioning", "hour(ts)", NOT),
    Registry(61, "parallelism", -1, "unknown field parallelism"), Registry(61, "retries", 0, "unknown field retries"),
    Registry(61, "commit.retry.num-retries", 0, "unknown field commit.retry"),
    Registry(61, "isolation-level", "snapshot", "unknown field isolation-level"),
    Registry(61, "write.wap.enabled", True, "unknown field write.wap"),
    Registry(62, "uri", "postgresql://u:p@h/d", "unknown field uri"),
    Registry(62, "source", "http://u:p@h/k2.t", NOT), Registry(62, "key", ["postgresql://u:p@h/d"], NOT),
    Registry(62, "postgresql://u:p@h/d", 1, "unknown field postgresql://***@h/d"),
)  # fmt: skip

_DAY = {"start": "2026-02-10T00:00:00Z", "end": "2026-02-11T00:00:00Z"}
PARAMS = (
    *(Params(number, {"tables": [name]}, "form", "is not one of") for number, name in (
        (1, "t; DROP TABLE x--"), (2, "t` UNION SELECT 1--"), (3, '"t"'), (5, "../../etc"), (6, ""), (7, " "),
        (8, "t" * 200), (9, "t\nFROM y"), (10, "t\0"), (11, "bronze_trаdes_kraken"), (13, "system.users"),  # noqa: RUF001
        (14, "numbers(1e9)"), (22, "{{ var.value.x }}"), (23, "{{ ''.__class__ }}"), (24, "$(id)"), (25, "${env:HOME}"),
        (21, "Bronze_Trades_Kraken"), (44, "nonsense"))),
    Params(26, {"start": _DAY["end"], "end": _DAY["start"]}, "request", "must come after start"),
    Params(27, {"start": _DAY["start"], "end": _DAY["start"]}, "request", "must come after start"),
    Params(28, {**_DAY, "start": "2026-02-10T00:07:00Z"}, "request", "is not on the table's grid of 15 minutes"),
    Params(29, {**_DAY, "start": "2026-02-10T00:00:00"}, "request", "naive time .* write the zone"),
    Params(30, {"start": "2026-02-10T05:30:00+05:30", "end": _DAY["end"]}, "taken"),
    Params(31, {**_DAY, "start": "0001-01-01T00:00:00Z"}, "request", "must lie between 1900"),
    Params(31, {**_DAY, "end": "9999-12-31T00:00:00Z"}, "request", "must lie between 1900"),
    Params(32, {**_DAY, "end": "2030-01-01T00:00:00Z"}, "taken"),  # no run looks beyond the source's clock
    Params(33, {**_DAY, "start": "2026-02-30T00:00:00Z"}, "request", "is not a time with a zone"),
    Params(34, {**_DAY, "start": "2026-03-29T02:30:00"}, "request", "naive time .* write the zone"),
    Params(35, {**_DAY, "start": "2016-02-10T00:00:00Z"}, "request", "longer than 5 years: ask for it in parts"),
    Params(38, {**_DAY, "start": 1_770_681_600}, "form", "is not of type"),
    Params(38, {"tables": "bronze_trades_kraken"}, "form", "is not of type 'array'"),
    Params(38, {"mode": None}, "form", "is not one of"), Params(38, {"allow_shrink": True}, "form", "is not of type"),
    Params(39, {"force": True}, "request", "unknown parameter force"),
    Params(41, {"tables": ["x" * 1_000_000]}, "form", "is not one of"),
    Params(42, {"tables": [[[[[["bronze_trades_kraken"]]]]]]}, "form", "is not of type 'string'"),
    Params(43, {"tables": []}, "taken"),  # none means all
    Params(45, {"tables": ["switched_off"]}, "form", "is not one of"),
    Params(46, {"watermark": "2030-01-01T00:00:00Z"}, "request", "unknown parameter watermark"),
    Params(48, {"force_publish": True}, "request", "unknown parameter force_publish"),
    Params(49, {**_DAY, "start": float("nan")}, "form", "is not of type"),
    Params(49, {**_DAY, "end": float("inf")}, "form", "is not of type"),
    Params(49, {"allow_shrink": [1e309]}, "form", "is not of type"),
    Params(50, {"where": "1=1 OR"}, "request", "unknown parameter where"),
)  # fmt: skip

# Those of which the values make a table of their own, in tests/integration/test_bad_input.py.
DATA = (65, 66, 67, 68, 69, 70, 71, 73, 74, 75)

# Covered by a test of its own, elsewhere: which, and what it shows.
ELSEWHERE = {
    20: "tests/unit/test_registry.py::test_two_targets_that_differ_by_case_at_most_are_both_refused",
    40: "tests/unit/test_bad_input.py::test_of_two_equal_keys_the_last_counts_and_is_checked",
    47: "tests/unit/test_bad_input.py::test_a_reset_needs_a_reason",
    51: "tests/unit/test_registry.py::test_a_file_that_can_not_be_read_becomes_one_failing_task",
    52: "tests/unit/test_registry.py::test_anchors_can_not_be_piled_up",
    53: "tests/unit/test_registry.py::test_a_file_that_can_not_be_read_becomes_one_failing_task",
    54: "tests/unit/test_bad_input.py::test_a_mark_and_another_line_end_change_nothing_and_a_tab_is_refused",
    56: "tests/integration/test_bad_input.py::test_an_event_time_must_be_an_instant_that_is_never_null",
    57: "tests/integration/test_bad_input.py::test_a_column_that_is_not_there_is_named",
    58: "tests/integration/test_bad_input.py::test_a_type_without_a_lossless_form_is_refused",
    63: "tests/unit/test_production.py::test_what_is_not_fit_is_named",
    64: "tests/unit/test_production.py::test_what_is_not_fit_is_named",
    72: "tests/integration/test_bad_input.py::test_72_rows_that_are_there_twice_are_moved_twice",
    **dict.fromkeys(DATA, "tests/integration/test_bad_input.py::test_awkward_data_are_moved_exactly_or_refused"),
    76: "tests/integration/test_bad_input.py::test_a_row_on_an_edge_belongs_to_the_later_window",
    77: "tests/integration/test_bad_input.py::test_a_table_without_rows_moves_nothing_and_fails_nobody",
    78: "tests/integration/test_bad_input.py::test_late_deleted_and_updated_rows_are_found",
}
