"""Data as bytes: what goes in comes out, and no bytes do harm."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import math
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exesys import codec
from exesys.errors import BadCommand, TooLarge

HOUSE = Path(codec.__file__).parent.parent
MERSENNE = 2**61 - 1  # integers, and so UUIDs, that differ by it have the same hash

zones = st.integers(-1439, 1439).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.datetimes()
    | st.datetimes(timezones=zones)
)
members = st.recursive(scalars, lambda inner: st.frozensets(inner, max_size=3) | st.tuples(inner, inner), max_leaves=6)
keys = st.recursive(scalars, lambda inner: st.frozensets(inner, max_size=2) | st.tuples(inner, inner), max_leaves=3)
values = st.recursive(
    scalars | st.sets(members, max_size=4) | st.frozensets(members, max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


class Pairs(list[Any]):
    """A map as pairs, so that it can have any keys."""


def as_bytes(value: Any) -> bytes:
    """Pack what `codec.pack` never would."""
    if type(value) is Pairs:
        body = b"".join(as_bytes(key) + as_bytes(item) for key, item in value)
        return msgpack.Packer().pack_map_header(len(value)) + body  # type: ignore[no-any-return]  # untyped library
    if type(value) is list:
        return msgpack.Packer().pack_array_header(len(value)) + b"".join(map(as_bytes, value))  # type: ignore[no-any-return]  # untyped library
    return msgpack.packb(value)  # type: ignore[no-any-return]  # untyped library


# Extensions of any kind around any bytes, and maps with any keys.
wild = st.recursive(
    st.none()
    | st.integers(-5, 5)
    | st.floats()
    | st.text(max_size=5)
    | st.builds(msgpack.ExtType, st.integers(0, 8), st.binary(max_size=17))
    | st.builds(msgpack.Timestamp, st.integers(-(2**63), 2**63 - 1), st.integers(0, 999_999_999)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(st.tuples(inner, inner), max_size=3).map(Pairs)
        | st.builds(lambda code, body: msgpack.ExtType(code, as_bytes(body)), st.integers(1, 6), inner)
    ),
    max_leaves=8,
)


def nested(depth: int, code: int) -> bytes:
    """Pack an extension with one member, in one, in one …"""
    packed: bytes = msgpack.packb(None)
    for _ in range(depth):
        packed = msgpack.packb(msgpack.ExtType(code, b"\x91" + packed))
    return packed


@given(values)
def test_a_value_comes_back(value: Any) -> None:
    assert codec.unpack(codec.pack(value)) == as_lists(value)


def as_lists(value: Any) -> Any:
    if isinstance(value, list):
        return [as_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return value


def test_types_come_back() -> None:
    sent = [1, 1.0, True, b"x", "x", {1}, frozenset({(1, (2, 3))}), uuid.UUID(int=5), decimal.Decimal("1.50")]
    assert [type(item) for item in codec.unpack(codec.pack(sent))] == [type(item) for item in sent]
    assert str(codec.unpack(codec.pack(decimal.Decimal("1.50")))) == "1.50"
    assert math.isnan(codec.unpack(codec.pack(math.nan)))
    assert codec.unpack(codec.pack((1, 2))) == [1, 2]


def test_the_timestamp_of_msgpack_is_a_datetime() -> None:
    packed = msgpack.packb(dt.datetime(2026, 1, 2, tzinfo=dt.UTC), datetime=True)
    codec.check_packed(packed, 100, 10)
    assert codec.unpack(packed) == dt.datetime(2026, 1, 2, tzinfo=dt.UTC)


def test_equal_sets_are_equal_bytes_in_every_process() -> None:
    code = "from exesys import codec; print(codec.pack({'a', 'b', 'c', ('d', 'e'), frozenset('fgh')}).hex())"
    answers = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, cwd=HOUSE
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(answers) == 1


def endless() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


def deep_set(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = frozenset({found})
    return found


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (object(), "a object cannot be sent"),
        (dt.date(2026, 1, 1), "a date cannot be sent"),
        ([{"a": {"b": complex(1)}}], "a complex cannot be sent"),
        ({2**64}, "beyond 64 bits"),
        (-(2**63) - 1, "beyond 64 bits"),
        ("\ud800", "surrogates not allowed"),
        (endless(), "recursion limit"),
        (deep_set(codec.MAX_SETS_DEEP + 1), "sets are nested deeper than 16 levels"),
        (deep_set(5000), "sets are nested deeper than 16 levels"),
    ],
)
def test_what_cannot_be_packed_is_named(value: Any, reason: str) -> None:
    with pytest.raises(BadCommand, match=reason):
        codec.pack(value)


def test_sets_may_be_as_deep_as_is_said() -> None:
    value = deep_set(codec.MAX_SETS_DEEP)
    packed = codec.pack(value)
    codec.check_packed(packed, 1000, 100)
    assert codec.unpack(packed) == value


@pytest.mark.parametrize("code", [4, 5, 6])
@pytest.mark.parametrize("depth", [17, 200, 5000])
def test_deep_extensions_are_refused(code: int, depth: int) -> None:
    """Two hundred of them overran the C stack: a segmentation fault in the router."""
    with pytest.raises(BadCommand, match="deeper than 16"):
        codec.check_packed(nested(depth, code), 1 << 20, 100)
    with pytest.raises(BadCommand, match="deeper than 16"):
        codec.unpack(nested(depth, code))


@pytest.mark.parametrize(
    "make",
    [
        lambda members: msgpack.ExtType(4, msgpack.packb(members)),
        lambda members: dict.fromkeys(members, 0),
        lambda members: msgpack.ExtType(4, msgpack.packb([msgpack.ExtType(6, msgpack.packb([m])) for m in members])),
    ],
)
def test_equal_hashes_cost_nothing_at_the_door(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of UUIDs with one hash compares each with each: minutes for a megabyte."""
    members = [msgpack.ExtType(2, (n * MERSENNE).to_bytes(16, "big")) for n in range(100)]
    packed = msgpack.packb(make(members))
    compared = []

    def compare(one: uuid.UUID, other: object) -> bool:
        compared.append(one)
        return one is other

    monkeypatch.setattr(uuid.UUID, "__eq__", compare)
    codec.check_packed(packed, 1 << 20, 100)
    assert not compared
    codec.unpack(packed)
    assert compared  # so the door is where it matters


@given(st.binary(max_size=200))
def test_random_bytes_raise_one_error(packed: bytes) -> None:
    for read in (codec.unpack, lambda data: codec.check_packed(data, 1000, 10)):
        with contextlib.suppress(BadCommand):
            read(packed)


@given(wild)
def test_what_passes_the_door_can_be_unpacked(value: Any) -> None:
    packed = as_bytes(value)
    try:
        codec.check_packed(packed, 1 << 20, 100)
    except BadCommand:
        return
    codec.unpack(packed)


@given(values)
def test_what_was_packed_passes_the_door(value: Any) -> None:
    codec.check_packed(codec.pack(value), 1 << 20, 100)


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        b"\x01\x02",
        msgpack.packb(msgpack.ExtType(7, b"")),
        msgpack.packb(msgpack.ExtType(2, b"short")),
        msgpack.packb(msgpack.ExtType(3, b"1.2.3")),
        msgpack.packb(msgpack.ExtType(1, b"yesterday")),
        msgpack.packb(msgpack.ExtType(4, b"\x05")),
        msgpack.packb(msgpack.ExtType(4, b"\x91\x90")),
        msgpack.packb(msgpack.ExtType(4, msgpack.packb([msgpack.ExtType(3, b"sNaN")]))),
        as_bytes(Pairs([(Pairs([]), 1)])),
        as_bytes(Pairs([([1, Pairs([])], 1)])),
        as_bytes(Pairs([(msgpack.ExtType(4, b"\x90"), 1)])),
    ],
)
def test_bad_bytes_are_refused_at_the_door_and_after(packed: bytes) -> None:
    with pytest.raises(BadCommand):
        codec.check_packed(packed, 1000, 10)
    with pytest.raises(BadCommand):
        codec.unpack(packed)


def test_size_and_depth() -> None:
    packed = codec.pack([[[["x" * 20]]]])
    codec.check_packed(packed, len(packed), 4)
    with pytest.raises(TooLarge, match=f"has {len(packed)} bytes; at most {len(packed) - 1}"):
        codec.check_packed(packed, len(packed) - 1, 4)
    with pytest.raises(BadCommand, match="deeper than 3"):
        codec.check_packed(packed, len(packed), 3)


@pytest.mark.parametrize(("wrap", "adds"), [(lambda v: [v], 1), (lambda v: {"k": v}, 1), (lambda v: {"k": [v]}, 2)])
def test_every_container_counts_as_a_level(wrap: Callable[[Any], Any], adds: int) -> None:
    value: Any = "x"
    for _ in range(12):
        value = wrap(value)
    codec.check_depth(value, 12 * adds)
    codec.check_packed(codec.pack(value), 1000, 12 * adds)
    with pytest.raises(BadCommand, match="nested deeper"):
        codec.check_depth(value, 12 * adds - 1)
    with pytest.raises(BadCommand, match="nested deeper"):
        codec.check_packed(codec.pack(value), 1000, 12 * adds - 1)


def test_depth_counts_inside_sets_and_keys() -> None:
    for value in ({("a", ("b", ("c",)))}, {("a", ("b", ("c", ("d",)))): "x"}):
        packed = codec.pack(value)
        codec.check_packed(packed, 1000, 4 if isinstance(value, set) else 5)
        with pytest.raises(BadCommand, match="nested deeper"):
            codec.check_packed(packed, 1000, 2)


def test_the_order_of_a_map_makes_no_other_data() -> None:
    one = {"a": 1, "b": [{"x": 1, "y": {"p": None, "q": b"2"}}], 3: {uuid.UUID(int=1), "z"}}
    other = {3: {"z", uuid.UUID(int=1)}, "b": [{"y": {"q": b"2", "p": None}, "x": 1}], "a": 1}
    assert codec.pack(one) != codec.pack(other)
    assert codec.regular(codec.pack(one)) == codec.regular(codec.pack(other))


@given(values, values)
def test_data_that_differs_stays_different(one: Any, other: Any) -> None:
    packed, beside = codec.pack(one), codec.pack(other)
    if packed != beside and codec.regular(packed) == codec.regular(beside) and "nan" not in repr(one):
        assert codec.unpack(packed) == codec.unpack(beside)


@pytest.mark.parametrize("packed", [b"", b"\xc1", b"\x81", b"\x92\x01", b"\x91" * 3000, b"\x81\xc1\xc0"])
def test_bytes_that_are_no_data_are_left_to_others(packed: bytes) -> None:
    assert codec.regular(packed) == packed
