"""Names of data files: what a path says about the segment that owns it, however the path is spelled."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given, strategies as st

from coldchain.core.windows import MAX_US, MIN_US, Window
from coldchain.lake import Owner, branch_name, file_name, normalised, owner_of

UNIQUE = "0123456789abcdef0123456789abcdef"
TOKEN = "11111111-2222-3333-4444-555555555555-17"
NAME = f"0_900000000_{TOKEN}_{UNIQUE}.parquet"


@st.composite
def windows(draw: st.DrawFn) -> Window:
    start = draw(st.integers(MIN_US, MAX_US - 1))
    return Window(start, draw(st.integers(start + 1, MAX_US)))


TOKENS = st.builds(lambda epoch, n: f"{epoch}-{n}", st.uuids(), st.integers(1, 10**12))


@given(windows(), TOKENS, st.uuids(), st.sampled_from(["", "/w/cold/t/data/", "file:/w/", "s3://bucket/a_b/1_2_3/"]))
def test_a_name_says_whose_it_is_wherever_the_file_lies(
    window: Window, token: str, unique: uuid.UUID, folder: str
) -> None:
    name = file_name(window, token, unique.hex)
    assert "/" not in name
    assert owner_of(folder + name) == Owner(window, token)


@given(windows(), windows(), TOKENS, TOKENS)
def test_names_of_different_windows_or_tokens_differ(one: Window, other: Window, first: str, second: str) -> None:
    same = (one, first) == (other, second)
    assert (file_name(one, first, UNIQUE) == file_name(other, second, UNIQUE)) == same


def test_a_window_before_1970_is_read_back() -> None:
    window = Window(-86_400_000_000, -1)
    assert owner_of(file_name(window, TOKEN, UNIQUE)) == Owner(window, TOKEN)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/w/00000-0-2f0a1c.parquet",
        "/w/part-00000-5d1c.c000.zstd.parquet",
        f"/w/{NAME}.crc",
        f"/w/.{NAME}",
        f"/w/{NAME}/",
        f"/w/{NAME}\n",
        NAME.replace(".parquet", ".orc"),
        NAME.replace(UNIQUE, UNIQUE[1:]),
        NAME.replace(UNIQUE, UNIQUE.upper()),
        NAME.replace("-17_", "_"),
        NAME.replace("0_900000000", "0.5_900000000"),
        NAME.replace("0_900000000", "900000000"),
        NAME.replace("0_900000000", "0_٩٠٠"),
    ],
)
def test_a_file_that_coldchain_did_not_name_has_no_owner(path: str) -> None:
    assert owner_of(path) is None


@pytest.mark.parametrize("numbers", ["900000000_0", "5_5", f"0_{10**20}", f"-{10**20}_0"])
def test_a_name_whose_numbers_are_no_window_has_no_owner(numbers: str) -> None:
    """It is a foreign file then, and named as such; a read must not die of it."""
    assert owner_of(NAME.replace("0_900000000", numbers)) is None


@pytest.mark.parametrize("path", ["file:/w/a.parquet", "file:///w/a.parquet", "/w/a.parquet"])
def test_every_spelling_of_a_local_path_is_one(path: str) -> None:
    assert normalised(path) == "/w/a.parquet"
    assert normalised(normalised(path)) == normalised(path)


@pytest.mark.parametrize("path", ["s3://bucket/w/a.parquet", "s3a://b/a", "/w/file:/a.parquet", "/w/a b%20c.parquet"])
def test_other_paths_stay_as_they_are(path: str) -> None:
    assert normalised(path) == path


def test_an_attempt_stages_on_a_branch_of_its_own() -> None:
    assert branch_name(TOKEN) == f"coldchain-{TOKEN}"
    assert branch_name(TOKEN) != branch_name(TOKEN.replace("-17", "-18"))
