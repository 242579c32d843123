"""What stands in Redis and makes no sense as a runner: each such name or record is passed over, and told of once.

Anyone may write there, and one slip of a hand must cost no other runner.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping

from exesys.errors import BadCommand
from exesys.runner import Name, check_type, misread, parse_name
from exesys.store.keys import Keys

MOST_TOLD = 1000  # different ones; what else there is of them is passed over in silence

log = logging.getLogger(__name__)


class Oddities:
    """Reads names and records of runners, and remembers of which it has told."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._told: set[str] = set()

    def name(self, written: bytes, key: str) -> Name | None:
        """Read `type:uuid`, a member of the set or sorted set `key`. None: it is no name."""
        try:
            return parse_name(written.decode())
        except (UnicodeDecodeError, BadCommand):
            remove = "ZREM" if key == "ended" else "SREM"
            self._tell(
                f"{written!r:.160} in {self._keys(key)} is no name of a runner and is passed over. "
                f"Delete it: {remove} {self._keys(key)} NAME."
            )
            return None

    def stop(self, written: bytes) -> Name | None:
        """Read the name of a stop key without its prefix; a type alone ends with its colon. None: it is no such key."""
        try:
            type_, _, uuid = written.decode().removeprefix("run:").partition(":")
            return parse_name(f"{type_}:{uuid}") if uuid else Name(check_type(type_), "")
        except (UnicodeDecodeError, BadCommand):
            self._tell(
                f"the key {written!r:.220} was written and is no stop of a runner: it is passed over. "
                "Those are run:TYPE:UUID. Delete it if it is yours and was meant to be one."
            )
            return None

    def spoilt(self, name: Name, fields: Mapping[bytes, bytes]) -> bool:
        """Whether a runner's record cannot be read."""
        why = misread(fields)
        if why:
            self.tell_spoilt(name, why)
        return bool(why)

    def tell_spoilt(self, name: Name, why: str) -> None:
        """Tell of a record that cannot be read."""
        record = self._keys("runner", str(name))
        self._tell(
            f"the record of the runner {name} cannot be read and is passed over: {why}. "
            f"Mend {record} in Redis and `bin/exesys runner restart {name}`, "
            f"or delete it: DEL {record}, SREM {self._keys('runners')} {name}."
        )

    def _tell(self, text: str) -> None:
        if text not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(text)
            log.warning("%s", text)


def texts(members: Iterable[bytes]) -> list[str]:
    """Decode the members of a list of ours; what is no text is no name of ours, and passed over."""
    found = []
    for raw in members:
        with contextlib.suppress(UnicodeDecodeError):
            found.append(raw.decode())
    return found
