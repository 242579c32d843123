"""What a hand, a bug or a lost write may do to a store, at random."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from store.fake import Dump, FakeStore, RealStore, Turns
from store.turns import ONE, TWO

from exesys.states import State

KINDS = ("start", "standby", "processing", "data_available", "error")


class Hand(Protocol):
    """The few commands of Redis that break things."""

    def delete(self, key: str) -> Any: ...
    def hset(self, key: str, /, **fields: Any) -> Any: ...
    def hdel(self, key: str, *fields: str) -> Any: ...
    def zadd(self, key: str, member: str, score: float) -> Any: ...
    def zrem(self, key: str, *members: str) -> Any: ...
    def sadd(self, key: str, *members: str) -> Any: ...
    def srem(self, key: str, member: str) -> Any: ...
    def expire(self, key: str, ttl_s: int) -> Any: ...
    def persist(self, key: str) -> Any: ...


class RealHand:
    """The same on a real server."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def hset(self, key: str, /, **fields: Any) -> None:
        self._client.hset(key, mapping=fields)

    def zadd(self, key: str, member: str, score: float) -> None:
        self._client.zadd(key, {member: score})


def hand_of(store: Turns) -> Hand:
    if isinstance(store, FakeStore):
        return store.db
    assert isinstance(store, RealStore)
    hand: Hand = RealHand(store.client)
    return hand


class Breakage:
    """Breaks one thing at a time. The same seed over the same content breaks the same."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._broken: set[str] = set()  # jobs of which the index or the flow was lost already: not both

    def strike(self, hand: Hand, dump: Dump) -> str:
        """Break something; return what."""
        ways: list[Callable[[Hand, Dump], str]] = [
            *(self._lose_entry, self._lose_entry, self._add_orphan, self._lose_session, self._add_session),
            *(self._lose_record, self._lose_step, self._add_step, self._lose_key, self._miscount, self._misgraph),
            *(self._keep_for_ever, self._let_expire, self._lose_worker, self._double, self._misplace, self._mark),
        ]
        return self.rng.choice(ways)(hand, dump)

    def _open(self, dump: Dump, kind: str) -> str:
        """Choose the index or flow of a job that is under way: what has ended expires as it is."""
        keys = (key for key in dump if key.startswith(f"exesys:{kind}:"))
        found = sorted(key for key in keys if dump.get(f"exesys:job:{key.rpartition(':')[2]}", ("", 0))[1] is None)
        return self.rng.choice(found) if found else ""

    def _some(self, dump: Dump, prefixes: str | tuple[str, ...]) -> str:
        found = sorted(key for key in dump if key.startswith(prefixes))
        return self.rng.choice(found) if found else ""

    def _record(self, dump: Dump, *kinds: str) -> str:
        ends = tuple(f":{kind}" for kind in kinds or KINDS)
        found = sorted(key for key in dump if key.endswith(ends) and not key.startswith("exesys:"))
        return self.rng.choice(found) if found else ""

    def _lose_entry(self, hand: Hand, dump: Dump) -> str:
        lists = ("ready:", "lane:", "turns:", "keyed:", "running:", "delayed", "standby", "held:")
        at = self._some(dump, tuple(f"exesys:{name}" for name in lists))
        if not at:
            return ""
        member = self.rng.choice(sorted(dump[at][0]))
        remove = hand.srem if at.startswith(("exesys:keyed:", "exesys:running:")) else hand.zrem
        remove(at, member)
        return f"remove {member} from {at}"

    def _add_orphan(self, hand: Hand, dump: Dump) -> str:
        lists = ("ready:default", "ready:other", "delayed", "standby", "dead", f"held:{ONE}", f"held:{'9' * 16}")
        sets = ("keyed:default", "running:default=k", "running:fast")
        at, member = f"exesys:{self.rng.choice((*lists, *sets))}", self.rng.choice(("no:where", "a:j", "b>x:k", "a:p"))
        if at.removeprefix("exesys:") in sets:
            hand.sadd(at, member)
        else:
            hand.zadd(at, member, self.rng.randrange(10**6))
        return f"add {member} to {at}"

    def _lose_session(self, hand: Hand, dump: Dump) -> str:
        session = self.rng.choice((ONE, TWO))
        hand.srem("exesys:sessions", session)
        return f"SREM exesys:sessions {session}"

    def _add_session(self, hand: Hand, dump: Dump) -> str:
        hand.sadd("exesys:sessions", "8" * 16)
        return "SADD exesys:sessions"

    def _lose_record(self, hand: Hand, dump: Dump) -> str:
        record = self._record(dump)
        if record and dump.get(f"exesys:job:{record.split(':')[1]}", ("", 0))[1] is None:
            hand.delete(record)
        return f"DEL {record}"

    def _lose_step(self, hand: Hand, dump: Dump) -> str:
        index = self._some(dump, "exesys:job:")
        firsts = sorted(first for first in dump[index][0] if first[0] != ":") if index else []
        if not firsts or index.rpartition(":")[2] in self._broken:
            return ""
        hand.hdel(index, first := self.rng.choice(firsts))
        return f"HDEL {index} {first}"

    def _add_step(self, hand: Hand, dump: Dump) -> str:
        index = self._open(dump, "job")
        if index:
            hand.hset(index, **{"made_up": "x"})
        return f"HSET {index} made_up"

    def _lose_key(self, hand: Hand, dump: Dump) -> str:
        key = self.rng.choice(
            (
                *(self._open(dump, "job"), self._open(dump, "flow")),
                self._some(dump, ("exesys:held:", "exesys:ready:", "exesys:lane:", "exesys:turns:", "exesys:standby")),
            )
        )
        kind, _, job_id = key.partition(":")[2].partition(":")
        if not key or (kind in ("job", "flow") and job_id in self._broken):
            return ""
        self._broken.add(job_id)
        hand.delete(key)
        return f"DEL {key}"

    def _miscount(self, hand: Hand, dump: Dump) -> str:
        index = self._open(dump, "job")
        if not index or ":open" not in dump[index][0]:
            return ""
        hand.hset(index, **{":open": (count := self.rng.choice((0, 1, 2, 17, -3)))})
        return f"HSET {index} :open {count}"

    def _misgraph(self, hand: Hand, dump: Dump) -> str:
        flow = self._open(dump, "flow")
        if not flow or flow.rpartition(":")[2] in self._broken:
            return ""
        field = self.rng.choice(sorted(dump[flow][0]))
        if field[0] == "#":
            hand.hset(flow, **{field: (count := self.rng.choice((0, 1, 5, -2)))})
            return f"HSET {flow} {field} {count}"
        hand.hdel(flow, field)
        return f"HDEL {flow} {field}"

    def _mark(self, hand: Hand, dump: Dump) -> str:
        record = self._record(dump, "standby")
        if record:
            hand.hset(record, unfed=1)
        return f"HSET {record} unfed"

    def _keep_for_ever(self, hand: Hand, dump: Dump) -> str:
        key = self._mortal(dump, expires=True)
        if key:
            hand.persist(key)
        return f"PERSIST {key}"

    def _let_expire(self, hand: Hand, dump: Dump) -> str:
        key = self._mortal(dump, expires=False)
        if key:
            hand.expire(key, 5000)
        return f"EXPIRE {key}"

    def _mortal(self, dump: Dump, expires: bool) -> str:
        kinds = ("exesys:job:", "exesys:flow:", "exesys:log:")
        keys = (key for key in dump if key.startswith(kinds) or key.rpartition(":")[2] in KINDS)
        found = sorted(key for key in keys if (dump[key][1] is not None) == expires)
        return self.rng.choice(found) if found else ""

    def _lose_worker(self, hand: Hand, dump: Dump) -> str:
        record = self._record(dump, "processing")
        if record:
            hand.hdel(record, "worker")
        return f"HDEL {record} worker"

    def _double(self, hand: Hand, dump: Dump) -> str:
        record = self._record(dump, "start", "processing", "error")
        if not record:
            return ""
        ref, _, kind = record.rpartition(":")
        other = self.rng.choice([each.name for each in State if each.name != kind and each is not State.data_available])
        moving = ("worker", "unfed", "peer", "sent", "progress", "note", "counted")
        fields = {name: value for name, value in dump[record][0].items() if name not in moving}
        hand.hset(f"{ref}:{other}", **fields)
        return f"HSET {ref}:{other}, beside {kind}"

    def _misplace(self, hand: Hand, dump: Dump) -> str:
        at = self._some(dump, ("exesys:ready:", "exesys:held:", "exesys:delayed"))
        if not at:
            return ""
        member = self.rng.choice(sorted(dump[at][0]))
        to = self.rng.choice(("exesys:ready:fast", "exesys:ready:default", f"exesys:held:{TWO}", "exesys:delayed"))
        if to != at:
            hand.zrem(at, member)
            hand.zadd(to, member, 5)
        return f"ZREM {at} {member}, ZADD {to}"


def break_some(breakage: Breakage, store: Turns, times: int) -> list[str]:
    hand = hand_of(store)
    return [what for _ in range(times) if (what := breakage.strike(hand, store.dump()))]


def strike_both(breakage: Breakage, one: Turns, other: Turns, times: int) -> list[str]:
    """Break the same in two stores with the same content."""
    told = []
    for _ in range(times):
        state, broken, before = breakage.rng.getstate(), set(breakage._broken), one.dump()
        told.append(breakage.strike(hand_of(one), before))
        breakage.rng.setstate(state)
        breakage._broken = broken
        breakage.strike(hand_of(other), before)
    return told


def unended(dump: Dump) -> Iterable[str]:
    """Name the records of steps that have not ended."""
    ends = (":start", ":standby", ":processing")
    return sorted(key for key in dump if key.endswith(ends) and not key.startswith("exesys:"))
