"""Reading the stream of news: where it ends, and what was added behind a place."""

from __future__ import annotations

from exesys import news
from exesys.news import Entry
from exesys.store.connection import Connection

EMPTY = "0-0"


class Tail(Connection):
    """The stream `exesys:events`, read by whoever tells others of it. Raises StoreAway."""

    def newest(self) -> str:
        """Return the place of the last entry."""
        found = self._do(self._redis.xrevrange, self.keys("events"), "+", "-", 1)
        return found[0][0].decode() if found else EMPTY

    def since(self, place: str, most: int, whole: bool = False) -> tuple[list[Entry], bool]:
        """Return up to `most` entries behind a place (`whole`: from it on), and whether some in between are gone."""
        key = self.keys("events")
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.xrange(key, place if whole else news.after(place), "+", most)
        pipeline.xrange(key, "-", "+", 1)
        found, first = self._do(pipeline.execute)
        gone = bool(first) and place != EMPTY and news.later(first[0][0].decode(), place)
        return news.entries(found), gone
