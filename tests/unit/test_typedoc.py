"""docs/types.md says what the type map does."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldchain.core import typedoc
from coldchain.core.typemap import _PLAIN, _REFUSED, CHOICES, WORDS
from tests.unit.engine import Engine

PAGE = Path(__file__).parents[2] / "docs" / "types.md"


def test_the_page_is_what_the_type_map_makes() -> None:
    command = "PYTHONPATH=plugins python -m coldchain.core.typedoc > docs/types.md"
    assert PAGE.read_text() == typedoc.render(), f"docs/types.md is stale: {command}"
    assert command in PAGE.read_text()


def test_the_page_is_printed_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    typedoc.main()
    assert capsys.readouterr().out == PAGE.read_text()


def test_every_type_of_the_engine_is_on_the_page(engine: Engine) -> None:
    """A type that a new version of ClickHouse brings is looked at before it is called refused."""
    names = engine.execute("SELECT name FROM system.data_type_families WHERE alias_to = ''", "TSV").decode().split()
    spelled = {"Enum": "Enum8", "DateTime32": "DateTime", "Decimal32": "Decimal", "Decimal64": "Decimal"}
    spelled |= {"Decimal128": "Decimal", "Decimal256": "Decimal"}
    page = PAGE.read_text()
    missing = [
        name
        for name in sorted(spelled.get(name, name) for name in names)
        if f"{name}`" not in page and f"{name}(" not in page and not name.startswith("Interval")
    ]
    assert missing == []


def test_every_entry_of_the_map_is_on_the_page() -> None:
    page = PAGE.read_text()
    assert [name for name in (*_PLAIN, *_REFUSED) if f"`{name}`" not in page and f"{name}(" not in page] == []
    assert [name for name in CHOICES if f"{name} as `" not in page and f"{name}, " not in page] == []
    assert [word for word in WORDS if f"as `{word}`" not in page] == []
