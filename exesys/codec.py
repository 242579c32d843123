"""Data as bytes: msgpack with six extension types, and never pickle.

Unpickling what a stranger sent runs their code; msgpack only makes values.
What msgpack lacks travels as extension types, so that a function gets back
what the caller sent:

    1 datetime   ISO 8601 text        4 set        msgpack array
    2 UUID       16 bytes             5 frozenset  msgpack array
    3 Decimal    its text             6 tuple      msgpack array (only inside sets)

`bytes` is msgpack's own bin type, and msgpack's own timestamp is read as a
datetime in UTC. A tuple comes back as a list, but as a tuple where it is a
map's key or a set's member. A set's members are sorted by their bytes, so
that equal sets are equal bytes in every process. A date without a time, or
any other type, is refused by name.
"""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import msgpack

from exesys.errors import BadCommand, TooLarge

_DATETIME, _UUID, _DECIMAL, _SET, _FROZENSET, _TUPLE = range(1, 7)
# An extension inside an extension costs the C decoder 40 kB of stack; some 200 would end the process.
MAX_SETS_DEEP = 16
_MAPS_AND_ARRAYS = frozenset({*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF})  # the first bytes of their formats
_NOT_PACKED = (TypeError, ValueError, OverflowError, RecursionError)
_NOT_UNPACKED = (ValueError, TypeError, RecursionError, ArithmeticError, msgpack.UnpackException)


# --- values to bytes ------------------------------------------------------


def pack(value: Any) -> bytes:
    """Turn a value into msgpack bytes.

    Raises BadCommand naming the type when the value cannot be sent, or when
    it is nested too deep or an integer is beyond 64 bits.
    """
    try:
        return msgpack.packb(value, default=_default)  # type: ignore[no-any-return]  # untyped library
    except _NOT_PACKED as error:
        raise BadCommand(
            f"the data cannot be packed: {error}.",
            field="data",
            fix="Send None, bool, int (64 bit), float, str, bytes, list, dict, set, datetime, UUID or Decimal.",
        ) from error


def _default(value: Any, depth: int = 0) -> msgpack.ExtType:
    if isinstance(value, dt.datetime):
        return msgpack.ExtType(_DATETIME, value.isoformat().encode())
    if isinstance(value, uuid.UUID):
        return msgpack.ExtType(_UUID, value.bytes)
    if isinstance(value, decimal.Decimal):
        return msgpack.ExtType(_DECIMAL, str(value).encode())
    if isinstance(value, set):
        return msgpack.ExtType(_SET, _members(value, depth))
    if isinstance(value, frozenset):
        return msgpack.ExtType(_FROZENSET, _members(value, depth))
    if isinstance(value, int):
        raise OverflowError("an integer is beyond 64 bits")
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _members(values: Collection[Any], depth: int) -> bytes:
    """Pack the members of a set, or of a tuple inside one, which must come back hashable."""
    if depth >= MAX_SETS_DEEP:
        raise ValueError(f"sets are nested deeper than {MAX_SETS_DEEP} levels")
    default = partial(_default, depth=depth + 1)
    parts = []
    for value in values:
        if isinstance(value, tuple):
            value = msgpack.ExtType(_TUPLE, _members(value, depth + 1))
        parts.append(msgpack.packb(value, default=default))
    if not isinstance(values, tuple):
        parts.sort()
    head: bytes = msgpack.Packer().pack_array_header(len(parts))
    return head + b"".join(parts)


# --- bytes to values ------------------------------------------------------


def unpack(packed: bytes) -> Any:
    """Turn msgpack bytes into a value. Raises BadCommand when they are none."""
    try:
        return _read(packed, _extension, _with_tuple_keys)
    except _NOT_UNPACKED as error:
        raise BadCommand(f"the data is not valid msgpack: {error!r}", field="data") from error


def _read(packed: bytes, hook: Callable[[int, bytes], Any], make_map: Callable[[list[Any]], Any]) -> Any:
    """Read bytes; `make_map` makes the maps where one has an array among its keys."""
    try:
        return msgpack.unpackb(packed, ext_hook=hook, strict_map_key=False, timestamp=3)
    except TypeError:
        return msgpack.unpackb(packed, ext_hook=hook, strict_map_key=False, timestamp=3, object_pairs_hook=make_map)


def regular(packed: bytes) -> bytes:
    """Return bytes that are equal for equal data, in whatever order its maps were written.

    Only good to be compared: what comes back is not the data's msgpack. Data
    that holds no map comes back as it is.
    """
    if not packed or packed[0] not in _MAPS_AND_ARRAYS:
        return packed
    try:
        tree = msgpack.unpackb(packed, object_pairs_hook=_sorted_pairs, ext_hook=msgpack.ExtType, strict_map_key=False)
        return msgpack.packb(tree)  # type: ignore[no-any-return]  # untyped library
    except (*_NOT_UNPACKED, *_NOT_PACKED):
        return packed  # to be refused elsewhere


def _sorted_pairs(pairs: list[tuple[Any, Any]]) -> Any:
    """Stand for a map as no array can: by an extension, then its pairs in the order of their packed keys."""
    return [msgpack.ExtType(_TUPLE, b""), *sorted((msgpack.packb(key), msgpack.packb(value)) for key, value in pairs)]


def _extension(code: int, body: bytes, depth: int = 0) -> Any:
    if code in _SCALARS:
        return _SCALARS[code](body)
    if code in _CONTAINERS:
        return _CONTAINERS[code](_inside(body, _extension, depth))
    raise ValueError(f"extension type {code} is unknown")


def _inside(body: bytes, hook: Callable[..., Any], depth: int) -> list[Any]:
    """Read the members of a set or tuple."""
    if depth >= MAX_SETS_DEEP:
        raise ValueError(f"sets are nested deeper than {MAX_SETS_DEEP} levels")
    members = msgpack.unpackb(body, ext_hook=partial(hook, depth=depth + 1), strict_map_key=False, timestamp=3)
    if type(members) is not list:
        raise TypeError("a set's members are no array")
    return members


_SCALARS: dict[int, Callable[[bytes], Any]] = {
    _DATETIME: lambda body: dt.datetime.fromisoformat(body.decode()),
    _UUID: lambda body: uuid.UUID(bytes=body),
    _DECIMAL: lambda body: decimal.Decimal(body.decode()),
}
_CONTAINERS: dict[int, type[Any]] = {_SET: set, _FROZENSET: frozenset, _TUPLE: tuple}


def _with_tuple_keys(pairs: list[Any]) -> dict[Any, Any]:
    return {_frozen(key): value for key, value in pairs}


def _frozen(key: Any) -> Any:
    return tuple([_frozen(part) for part in key]) if type(key) is list else key


# --- bytes from outside ---------------------------------------------------


def check_packed(packed: bytes, max_bytes: int, max_depth: int) -> None:
    """Check bytes from outside: size, validity and nesting.

    Raises TooLarge past `max_bytes`, BadCommand when the bytes are no single
    msgpack value or hold containers nested deeper than `max_depth`.
    """
    if len(packed) > max_bytes:
        raise TooLarge(
            f"the data has {len(packed):,} bytes; at most {max_bytes:,} are allowed.",
            field="data",
            fix="Send less, store it elsewhere and send a reference, or raise [limits] data_bytes.",
        )
    try:
        value = _read(packed, _checked_extension, _checked_map)
    except _NOT_UNPACKED as error:
        raise BadCommand(f"the data is not valid msgpack: {error!r}", field="data") from error
    # Every level of nesting costs at least one byte: short data cannot be deep.
    if len(packed) > max_depth:
        check_depth(value, max_depth)


class _Hashed(tuple[Any, ...]):
    """Stands for an extension while bytes are checked, with its members.

    Its hash is its address. The hashes of UUIDs, Decimals and tuples can be
    chosen: a set of fifty thousand that are equal would hold the router for
    minutes. msgpack's own types give no such choice.
    """

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class _Unhashed(list[Any]):
    """Stands for an extension, or a map, that cannot be a key or a member."""


def _checked_extension(code: int, body: bytes, depth: int = 0) -> Any:
    if code not in _CONTAINERS:
        value = _extension(code, body)
        return _Unhashed() if code == _DECIMAL and value.is_snan() else _Hashed()
    members = _inside(body, _checked_extension, depth)
    for member in members:
        hash(member)  # raises TypeError
    return _Unhashed(members) if code == _SET else _Hashed(members)


def _checked_map(pairs: list[Any]) -> _Unhashed:
    for key, _ in pairs:
        hash(_frozen(key))
    return _Unhashed([part for pair in pairs for part in pair])


def check_depth(value: Any, max_depth: int) -> None:
    """Raise BadCommand when containers nest deeper than `max_depth`."""
    level: list[Any] = [value]
    for _ in range(max_depth + 1):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper.extend(item.values())
                deeper.extend(key for key in item if isinstance(key, (tuple, frozenset)))
            elif isinstance(item, (list, tuple, set, frozenset)):
                deeper.extend(item)
        if not deeper:
            return
        level = deeper
    raise BadCommand(
        f"the data is nested deeper than {max_depth} levels.",
        field="data",
        fix="Flatten it, or raise [limits] depth.",
    )
