"""Data as bytes: msgpack with six extension types, and never pickle.

Unpickling what a stranger sent runs their code; msgpack only makes values.
What msgpack lacks travels as extension types, so that a function gets back
what the caller sent:

    1 datetime   ISO 8601 text        4 set        msgpack array
    2 UUID       16 bytes             5 frozenset  msgpack array
    3 Decimal    its text             6 tuple      msgpack array (only inside sets)

`bytes` is msgpack's own bin type. A date without a time, or any other type,
is refused by name.
"""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from typing import Any

import msgpack

from exesys.errors import BadCommand, TooLarge

_DATETIME, _UUID, _DECIMAL, _SET, _FROZENSET, _TUPLE = range(1, 7)


def _members(values: Any) -> bytes:
    """Pack a set's members; a tuple among them must come back hashable."""
    tagged = [msgpack.ExtType(_TUPLE, _members(v)) if isinstance(v, tuple) else v for v in values]
    return pack(tagged)


def _default(value: Any) -> msgpack.ExtType:
    if isinstance(value, dt.datetime):
        return msgpack.ExtType(_DATETIME, value.isoformat().encode())
    if isinstance(value, uuid.UUID):
        return msgpack.ExtType(_UUID, value.bytes)
    if isinstance(value, decimal.Decimal):
        return msgpack.ExtType(_DECIMAL, str(value).encode())
    if isinstance(value, set):
        return msgpack.ExtType(_SET, _members(value))
    if isinstance(value, frozenset):
        return msgpack.ExtType(_FROZENSET, _members(value))
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _extension(code: int, body: bytes) -> Any:
    if code == _DATETIME:
        return dt.datetime.fromisoformat(body.decode())
    if code == _UUID:
        return uuid.UUID(bytes=body)
    if code == _DECIMAL:
        return decimal.Decimal(body.decode())
    if code == _SET:
        return set(unpack(body))
    if code == _FROZENSET:
        return frozenset(unpack(body))
    if code == _TUPLE:
        return tuple(unpack(body))
    raise ValueError(f"extension type {code} is unknown")


def pack(value: Any) -> bytes:
    """Turn a value into msgpack bytes.

    Raises BadCommand naming the type when the value cannot be sent, or when
    it is nested too deep or an integer is beyond 64 bits.
    """
    try:
        return msgpack.packb(value, default=_default)  # type: ignore[no-any-return]  # untyped library
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadCommand(
            f"the data cannot be packed: {error}.",
            field="data",
            fix="Send None, bool, int (64 bit), float, str, bytes, list, dict, set, datetime, UUID or Decimal.",
        ) from error


def unpack(packed: bytes) -> Any:
    """Turn msgpack bytes into a value. Raises BadCommand when they are none."""
    try:
        return msgpack.unpackb(packed, ext_hook=_extension, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, ArithmeticError, msgpack.UnpackException) as error:
        raise BadCommand(f"the data is not valid msgpack: {error!r}", field="data") from error


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
    value = unpack(packed)
    # Every level of nesting costs at least one byte: short data cannot be deep.
    if len(packed) > max_depth:
        check_depth(value, max_depth)


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
