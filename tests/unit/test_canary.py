"""A search for secrets is worth what it would find."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest

from tests.canary import SHORTEST, Canaries

SECRET = "s3cret/with+odd:ch@racters?"


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("length", range(SHORTEST, SHORTEST + 4))
def test_a_secret_inside_of_base64_is_found_wherever_it_stands(encode, length):  # type: ignore[no-untyped-def]
    secret = (SECRET * 2)[:length]
    for before in range(7):
        for after in range(4):
            sent = encode(b"u" * before + secret.encode() + b"!" * after)
            assert Canaries({"it": secret}).found_in([("a header", b"Basic " + sent)]) == ["it in a header"]


def test_a_secret_is_found_in_every_other_form() -> None:
    forms = [SECRET, quote(SECRET, safe=""), SECRET.encode().hex(), json.dumps({"a": SECRET})]
    for form in forms:
        assert Canaries({"it": SECRET}).found_in([("a file", form.encode())]) == ["it in a file"]
    assert Canaries({"it": SECRET}).found_in([("a file", b"nothing of it")]) == []
