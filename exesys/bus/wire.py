"""Framing: messages to bytes and back. Nothing else in the house packs a frame.

A frame is one msgpack array: the kind's name, then the message's fields in
order; nested tuples are arrays. What arrives is checked against the
annotations in `messages.py`, field by field; anything amiss raises
ProtocolError and nothing else.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgpack

from exesys.bus import messages as m
from exesys.errors import ProtocolError

MAX_FRAME_BYTES = 64 << 20
MAX_ITEMS = 100_000  # in one array: a single message must not hold up the others

_TO_ROUTER: dict[str, type[Any]] = {
    "HELLO": m.Hello,
    "SUBMIT": m.Submit,
    "STATUS": m.Status,
    "CHANGE": m.Change,
    "START": m.Start,
    "TUNE": m.Tune,
    "RESULT": m.Result,
    "HB": m.Heartbeat,
    "TOLD": m.Telling,
    "EXIT": m.Exits,
    "MEND": m.Mend,
    "STOP": m.Stop,
    "SYNC": m.Sync,
    "DRAIN": m.Drain,
    "BYE": m.Bye,
}
_FROM_ROUTER: dict[str, type[Any]] = {
    "WELCOME": m.Welcome,
    "SUBMIT_ACK": m.SubmitAck,
    "STATUS": m.StatusReply,
    "DONE": m.Done,
    "CHANGED": m.Changed,
    "MENDED": m.Mended,
    "CANCEL": m.Cancel,
    "BUSY": m.Busy,
    "ERROR": m.Error,
    "MOVED": m.Moved,
    "JOB": m.Jobs,
    "RESULT_ACK": m.ResultAck,
    "LAUNCH": m.Launches,
    "STOP": m.Stop,
    "HB_ACK": m.HeartbeatAck,
    "SNAPSHOT": m.Snapshot,
    "EVENT": m.Event,
    "BYE": m.Bye,
}
# Between a caller and an application server, without the router.
_TO_APP: dict[str, type[Any]] = {"CALL": m.Call}
_FROM_APP: dict[str, type[Any]] = {"RETURN": m.Return, "ERROR": m.Error}
_KIND_OF = {kind: name for table in (_TO_ROUTER, _FROM_ROUTER, _TO_APP, _FROM_APP) for name, kind in table.items()}

_PLAIN = (int, str, bytes, bool)
Check = Callable[[Any, str], Any]
Checks = Mapping[str, Check]


def encode(message: m.Message) -> bytes:
    """Turn a message into the bytes of its frame."""
    packed: bytes = msgpack.packb([_KIND_OF[type(message)], *message])
    return packed


def decode_at_router(frame: bytes) -> m.Message:
    """Read a frame that a peer sent. Raises ProtocolError."""
    return _decode(frame, _ROUTER_CHECKS)


def decode_at_peer(frame: bytes) -> m.Message:
    """Read a frame that the router sent. Raises ProtocolError."""
    return _decode(frame, _PEER_CHECKS)


def decode_at_app(frame: bytes) -> m.Message:
    """Read a frame that a caller sent to an application server. Raises ProtocolError."""
    return _decode(frame, _APP_CHECKS)


def decode_at_caller(frame: bytes) -> m.Message:
    """Read a frame that an application server sent. Raises ProtocolError."""
    return _decode(frame, _CALLER_CHECKS)


def _decode(frame: bytes, checks: Checks) -> m.Message:
    try:
        array = msgpack.unpackb(frame)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"the frame is not msgpack: {error!r:.200}") from error
    if type(array) is not list or not array or type(array[0]) is not str:
        raise ProtocolError("the frame is not an array that begins with the name of a message")
    check = checks.get(array[0])
    if check is None:
        raise ProtocolError(f"the message {array[0]!r:.40} is unknown here")
    name = array.pop(0)
    try:
        message: m.Message = check(array, name)
    except ProtocolError:
        version: Any = array[0] if array else None
        if name == "HELLO" and type(version) is int and version != m.VERSION:
            return m.Hello(version, "", "", "", {})  # of another version it is enough to know which
        raise
    return message


def _checker(kind: Any) -> Check:
    """Build the check for one annotation."""
    if kind is Any:
        return lambda value, where: value
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _list_of(_checker(typing.get_args(kind)[0]))
    if isinstance(kind, type) and issubclass(kind, tuple):
        return _array_of(kind)
    allowed: tuple[type, ...] = {float: (float, int), dict: (dict,)}.get(origin or kind, (kind,))

    def scalar(value: Any, where: str) -> Any:
        if type(value) not in allowed:
            raise ProtocolError(f"{where} must be {allowed[0].__name__}, not {type(value).__name__}")
        return value

    return scalar


def _list_of(check: Check) -> Check:
    def every(value: Any, where: str) -> Any:
        if type(value) is not list:
            raise ProtocolError(f"{where} must be an array, not {type(value).__name__}")
        if len(value) > MAX_ITEMS:
            raise ProtocolError(f"{where} has {len(value):,} items; at most {MAX_ITEMS:,} are allowed")
        return tuple([check(item, where) for item in value])

    return every


def _array_of(kind: Any) -> Check:
    """Check an array's fields and make the tuple. All plain ones in one comparison: this is the hot path."""
    hints = typing.get_type_hints(kind)
    plain: list[Any] = [
        hint if hint in _PLAIN else dict if typing.get_origin(hint) is dict else Any for hint in hints.values()
    ]
    names, size = tuple(hints), len(hints)
    loose = [position for position, hint in enumerate(plain) if hint is Any]
    others = [
        (position, f".{name}", _checker(hint))
        for position, (name, hint) in enumerate(hints.items())
        if plain[position] is Any and hint is not Any
    ]
    new = tuple.__new__  # what `_make` calls, without its second look at the size

    def check(value: Any, where: str) -> Any:
        if type(value) is not list or len(value) != size:
            raise ProtocolError(f"{where} must be an array of {size}: {', '.join(names)}")
        kinds: list[Any] = [*map(type, value)]
        for position in loose:
            kinds[position] = Any
        if kinds != plain:
            position = next(position for position in range(size) if kinds[position] is not plain[position])
            wanted, got = plain[position].__name__, kinds[position].__name__
            raise ProtocolError(f"{where}.{names[position]} must be {wanted}, not {got}")
        for position, name, nested in others:
            value[position] = nested(value[position], where + name)
        return new(kind, value)

    return check


_ROUTER_CHECKS: Checks = MappingProxyType({name: _array_of(kind) for name, kind in _TO_ROUTER.items()})
_PEER_CHECKS: Checks = MappingProxyType({name: _array_of(kind) for name, kind in _FROM_ROUTER.items()})
_APP_CHECKS: Checks = MappingProxyType({name: _array_of(kind) for name, kind in _TO_APP.items()})
_CALLER_CHECKS: Checks = MappingProxyType({name: _array_of(kind) for name, kind in _FROM_APP.items()})
