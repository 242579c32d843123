"""Messages of any content, made from the annotations in `bus/messages.py`."""

from __future__ import annotations

import typing
from typing import Any

from hypothesis import strategies as st

from exesys.bus import messages as m

FROM_PEERS = (
    *(m.Hello, m.Submit, m.Status, m.Change, m.Start, m.Tune, m.Result, m.Heartbeat, m.Telling, m.Exits),
    *(m.Stop, m.Mend, m.Sync, m.Drain, m.Bye),
)
FROM_ROUTER = (
    *(m.Welcome, m.SubmitAck, m.StatusReply, m.Done, m.Changed, m.Cancel, m.Busy, m.Error, m.Moved, m.Jobs),
    *(m.ResultAck, m.HeartbeatAck, m.Launches, m.Stop, m.Snapshot, m.Event, m.Mended, m.Bye),
)
TO_APPS = (m.Call,)
FROM_APPS = (m.Return, m.Error)
numbers = st.integers(-3, 9) | st.integers(-(2**63), 2**64 - 1)
# What means something here comes up more often than chance would have it.
texts = st.sampled_from(
    ["a", "end_job", "a:j", "a>x:j", "a,b", "1" * 16, "2" * 16, "client", "worker", "app"]
) | st.text(max_size=12)
floats = st.floats(allow_nan=False) | st.integers(-3, 9)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | texts | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.binary(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    int: numbers,
    str: texts,
    bytes: st.binary(max_size=8),
    bool: st.booleans(),
    float: floats,
    Any: values,
}


def of(kind: Any) -> st.SearchStrategy[Any]:
    """Make messages of one kind, well formed and of any content."""
    if kind in _SCALARS:
        return _SCALARS[kind]
    origin = typing.get_origin(kind)
    if origin is tuple:
        return st.lists(of(typing.get_args(kind)[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(texts | st.binary(max_size=3), values, max_size=3)
    return st.builds(kind, **{name: of(hint) for name, hint in typing.get_type_hints(kind).items()})


def any_of(kinds: typing.Iterable[Any]) -> st.SearchStrategy[Any]:
    return st.one_of([of(kind) for kind in kinds])
