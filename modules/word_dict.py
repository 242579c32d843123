"""An application server: the words of `text.py`'s indexes, held in memory to find near ones fast.

    [appserver:words]
    class = word_dict:Dictionary

    bin/exesys app call words suggest '["licens", "demo"]'

What `text.py` keeps in Redis is read here, never written:

    text:indexes           set          the indexes there are
    text:<index>:terms     sorted set   term -> how many documents have it
    text:<index>:changed   text         another one after each change

Near words are found as in SymSpell (W. Garbe, 2012): two words that differ
little become equal when a few letters are left out of both. So each word is
listed under what its first letters become without up to two of them, and a
question looks there for its own; only what is found is compared in full.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import Any

FIRST_LETTERS = 7  # of a word, that its variants are made of
MOST_LEFT_OUT = 2
SHORT = 4  # a word of so many letters may differ in one, a longer one in two
MOST_SUGGESTED = 100
CHUNK = 10_000


class Dictionary:
    """The words of each index, and how many documents have each."""

    def __init__(self, ctx: Any) -> None:
        self._redis = ctx.redis
        self._log = ctx.log
        self._indexes: dict[str, _Words] = {}

    def start(self) -> None:
        """Read all indexes, so that the first question is as fast as the others."""
        for name in sorted(index.decode() for index in self._redis.smembers("text:indexes")):
            self._log.info("%s: %d words", name, self.size(name))

    def suggest(self, word: str, index: str = "default", limit: int = 3) -> list[str]:
        """Return words of an index that are spelt almost like this one, the best first."""
        if not 1 <= limit <= MOST_SUGGESTED:
            raise ValueError(f"`limit` is {limit}; give 1 to {MOST_SUGGESTED}.")
        return self._words(index).near(word.casefold())[:limit]

    def known(self, words: list[str], index: str = "default") -> dict[str, int]:
        """Return how many documents have each of the words."""
        counts = self._words(index).counts
        return {word: counts.get(word.casefold(), 0) for word in words}

    def size(self, index: str = "default") -> int:
        """Return how many words an index has."""
        return len(self._words(index).counts)

    def refresh(self, index: str = "default") -> bool:
        """Read an index again if it has changed; return whether it had.

        `text.py` asks for it, so that the next question need not wait for that.
        """
        before = self._indexes.get(index)
        seen = before.changed if before is not None else b""
        return self._words(index).changed != seen

    def _words(self, index: str) -> _Words:
        """Return the words of an index as they are now."""
        changed = self._redis.get(f"text:{index}:changed")
        if changed is None:
            self._indexes.pop(index, None)
            return _Words()
        words = self._indexes.setdefault(index, _Words())
        if words.changed != changed:
            # The mark first: what changes while we read is read again the next time.
            words.update(self._read(index), changed)
        return words

    def _read(self, index: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        key = f"text:{index}:terms"
        for start in range(0, self._redis.zcard(key) + CHUNK, CHUNK):
            rows = self._redis.zrange(key, start, start + CHUNK - 1, withscores=True)
            counts.update((term.decode(), int(count)) for term, count in rows)
        return counts


class _Words:
    """The words of one index, and where each is found by its variants."""

    def __init__(self) -> None:
        self.changed = b""
        self.counts: dict[str, int] = {}
        self._by_variant: defaultdict[str, set[str]] = defaultdict(set)

    def update(self, counts: dict[str, int], changed: bytes) -> None:
        """Take over what an index has now; only words that came or went cost more than their number."""
        for word in self.counts.keys() - counts.keys():
            for variant in _variants(word):
                self._by_variant[variant].discard(word)
                if not self._by_variant[variant]:
                    del self._by_variant[variant]
        for word in counts.keys() - self.counts.keys():
            for variant in _variants(word):
                self._by_variant[variant].add(word)
        self.counts, self.changed = counts, changed

    def near(self, word: str) -> list[str]:
        """Return the words that differ little from this one: the nearest first, of equals the one most used."""
        most = 1 if len(word) <= SHORT else MOST_LEFT_OUT
        found = {each for variant in _variants(word) for each in self._by_variant.get(variant, ())}
        apart = {each: _distance(word, each, most) for each in found if abs(len(each) - len(word)) <= most}
        fitting = [each for each in apart if 0 < apart[each] <= most]
        return sorted(fitting, key=lambda each: (apart[each], -self.counts[each], each))


def _variants(word: str) -> Iterator[str]:
    """Give what a word's first letters become without up to MOST_LEFT_OUT of them."""
    first = word[:FIRST_LETTERS]
    seen = set()
    for left_out in range(MOST_LEFT_OUT + 1):
        for kept in combinations(first, max(0, len(first) - left_out)):
            variant = "".join(kept)
            if variant not in seen:
                seen.add(variant)
                yield variant


def _distance(one: str, other: str, most: int) -> int:
    """Count the letters to add, leave out, change or swap to make one word of the other; `most` + 1 for more.

    Damerau's distance in its simple form, each letter touched once.
    """
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        older, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
        if min(row) > most:
            return most + 1
    return row[-1]
