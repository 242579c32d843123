"""Tokens as text: what is written is read again, and anything else lets nobody in."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exesys import tokens
from exesys.tokens import GRANTED, Role, Token

names = st.from_regex(re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII), fullmatch=True)
moments = st.integers(0, 4_000_000_000)
entries = st.builds(Token, names, st.sampled_from(GRANTED), st.binary(min_size=32, max_size=32), moments, moments)


def entry(name: str = "a", role: Role = Role.read, text: str = "exs_x", expires_s: int = 0) -> Token:
    return Token(name, role, tokens.digest_of(text), 1_000_000_000, expires_s)


def test_a_token_has_256_random_bits_in_43_characters() -> None:
    text = tokens.spell(secrets.token_bytes(tokens.RANDOM_BYTES))
    assert re.fullmatch(r"exs_[A-Za-z0-9_-]{43}", text)


def test_roles_are_ordered() -> None:
    assert Role.anyone < Role.read < Role.submit < Role.admin
    assert Role.anyone not in GRANTED


@given(st.lists(entries, max_size=20))
def test_what_is_written_is_read_again(kept: list[Token]) -> None:
    assert tokens.parse(tokens.dump(kept).encode()) == tuple(kept)


def test_the_file_holds_no_token() -> None:
    assert "exs_x" not in tokens.dump([entry()])
    assert set(entry().shown()) == {"name", "role", "created", "expires"}


GOOD = json.loads(tokens.dump([entry(expires_s=2_000_000_000)]))


def changed(**keys: Any) -> dict[str, Any]:
    return {**GOOD, "tokens": [{**GOOD["tokens"][0], **keys}]}


@pytest.mark.parametrize(
    "whole",
    [
        *([], {}, None, "x", 1),
        {**GOOD, "version": 2},
        {**GOOD, "more": 1},
        {"version": 1},
        {**GOOD, "tokens": {}},
        {**GOOD, "tokens": [None]},
        {**GOOD, "tokens": GOOD["tokens"] * (tokens.MOST + 1)},
        *(changed(role="anyone"), changed(role="root"), changed(role=3), changed(role=None)),
        *(changed(sha256=""), changed(sha256="00"), changed(sha256="x" * 64), changed(sha256=None)),
        *(changed(name=""), changed(name="a b"), changed(name=None), changed(name=["a"])),
        *(changed(created=0), changed(created="yesterday"), changed(expires="never"), changed(expires=None)),
        changed(expire="2001-01-01T00:00:00Z"),
    ],
    ids=lambda whole: json.dumps(whole)[:60],
)
def test_any_other_form_is_refused(whole: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        tokens.parse(json.dumps(whole).encode())


@given(st.binary(max_size=200) | st.integers(0, 400).map(lambda cut: tokens.dump([entry(), entry("b")]).encode()[:cut]))
def test_any_bytes_are_tokens_or_one_error(text: bytes) -> None:
    try:
        assert tokens.parse(text) in ((), (entry(), entry("b")))
    except ValueError:
        return


def test_one_is_found_among_many_and_others_are_not() -> None:
    kept = [entry(f"n{number}", text=f"exs_{number}") for number in range(50)]
    assert [tokens.find(kept, f"exs_{number}") for number in (0, 25, 49)] == [kept[0], kept[25], kept[49]]
    for other in ("", "exs_50", "exs_", "EXS_1", "exs_1 ", "é\ud800"):
        assert tokens.find(kept, other) is None


def test_every_entry_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    real = tokens.hmac.compare_digest

    def count(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return real(one, other)

    monkeypatch.setattr(tokens.hmac, "compare_digest", count)
    kept = [entry(f"n{number}", text=f"exs_{number}") for number in range(5)]
    for given_text in ("exs_0", "exs_4", "unknown"):
        compared.clear()
        tokens.find(kept, given_text)
        assert compared == [each.digest for each in kept]


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer exs_a", "exs_a"),
        ("bearer  exs_a ", "exs_a"),
        ("Bearer", ""),
        ("Bearer ", ""),
        ("Basic exs_a", ""),
        ("exs_a", ""),
        ("", ""),
    ],
)
def test_the_header_is_read(header: str, token: str) -> None:
    assert tokens.bearer(header) == token


def test_a_token_expires_at_its_second() -> None:
    assert not entry().expired(4_000_000_000)
    assert not entry(expires_s=100).expired(99.9)
    assert entry(expires_s=100).expired(100.0)
