"""One finding of the doctor."""

from __future__ import annotations

from typing import NamedTuple


class Check(NamedTuple):
    """One finding. `state` is ok, warn or fail; `fix` says what to do, or is empty."""

    name: str
    state: str
    message: str
    fix: str = ""
