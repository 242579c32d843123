"""W3C Trace Context: the header `traceparent`, read and written. Pure.

https://www.w3.org/TR/trace-context/: version, trace id, parent id and flags,
each in lower-case hexadecimal. One that is malformed counts as none; one of a
later version is read as far as this version goes.
"""

from __future__ import annotations

import re

_SHAPE = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KNOWN = "00"
_NONE = "ff"  # a version that there is not


def parent(text: str) -> str:
    """Return a traceparent as this version writes it, "" when it is none."""
    found = _SHAPE.fullmatch(text.strip(" \t"))
    if found is None:
        return ""
    version, trace_id, parent_id, flags, more = found.groups()
    if version == _NONE or (version == _KNOWN and more) or not (trace_id.strip("0") and parent_id.strip("0")):
        return ""
    if version != _KNOWN:
        flags = f"{int(flags, 16) & 1:02x}"  # whether it is sampled; what else they mean is not known here
    return f"{_KNOWN}-{trace_id}-{parent_id}-{flags}"


def trace_id(traceparent: str) -> str:
    """Return the id of the trace, "" without one."""
    return traceparent[3:35]
