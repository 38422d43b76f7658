"""A table of a thousand columns."""

from __future__ import annotations

from tests.lab import Lab, yesterday

KINDS = (
    "Nullable(Decimal(38, 8)) DEFAULT if(seq % 3 = 0, NULL, seq)",
    "LowCardinality(Nullable(String)) DEFAULT if(seq % 5 = 0, NULL, toString(seq))",
    "Float64 DEFAULT seq / 7",
    "Nullable(DateTime64(3)) DEFAULT if(seq % 2 = 0, NULL, ts)",
    "UInt64 DEFAULT seq",
)


def test_a_thousand_columns_move(lab: Lab) -> None:
    """Issue 7, growth: queries over them are longer than what ClickHouse reads by default (262,144 bytes)."""
    lab.insert_many(yesterday(), 40, 1_000_000)
    named = ", ".join(
        f"ADD COLUMN measured_value_of_the_sensor_{number} {KINDS[number % len(KINDS)]}" for number in range(990)
    )
    lab.execute(f"ALTER TABLE k2.{lab.name} {named}")
    lab.run()
    assert len(lab.lake.require(lab.spec.target).schema().fields) == 1000
    lab.check_equal(40)
