"""What has happened to steps, as those who follow are told. Pure.

The store notes it in the stream `exesys:events`, in the commit that changes
the step (see `store/news.lua`); here its entries are read, and put into words:
as maps for Python, and as server-sent events for HTTP
(https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from exesys.command import NAME, parts_of
from exesys.errors import BadCommand
from exesys.states import State

KINDS = ("step", "progress", "stats")
MARK = re.compile(r"([0-9]{1,15})-([0-9]{1,15})(?:-([0-9]{1,6}))?")
LONG = "*"  # in the place of where a step goes, when that is a long list
PLAIN = 100  # so many news of one frame are told one by one
MOST = 400  # so many news are in a frame at most


class Mark(NamedTuple):
    """A place in the stream: an entry, and how many of its news were had already."""

    entry: str
    had: int

    def __str__(self) -> str:
        return f"{self.entry}-{self.had}"


class Entry(NamedTuple):
    """One entry of the stream, as Redis gives it."""

    id: str
    fields: Mapping[bytes, bytes]


class Moved(NamedTuple):
    """A step stands in another state. `to` is "" where that is a long list."""

    mark: Mark
    job_id: str
    from_: str
    to: str
    cmd: str
    state: State
    attempt: int

    @property
    def kind(self) -> str:
        return "step"

    def told(self) -> dict[str, Any]:
        """Return it as a map that JSON can hold."""
        named = {"job_id": self.job_id, "from": self.from_, "to": self.to, "cmd": self.cmd}
        state = {"status": int(self.state), "state": self.state.name}
        return {**named, **state, "at_ms": at_ms(self.mark.entry), "attempt": self.attempt}


class Progress(NamedTuple):
    """What a running step tells of itself. `fraction` is None when it told none; `log`: there is more of its log."""

    mark: Mark
    job_id: str
    from_: str
    attempt: int
    fraction: float | None
    text: str
    log: bool

    @property
    def kind(self) -> str:
        return "progress"

    def told(self) -> dict[str, Any]:
        """Return it as a map that JSON can hold."""
        named = {"job_id": self.job_id, "from": self.from_, "attempt": self.attempt}
        return {**named, "fraction": self.fraction, "text": self.text, "log": self.log, "at_ms": at_ms(self.mark.entry)}


News = Moved | Progress


class Wanted(NamedTuple):
    """Which news somebody wants: of these kinds, and of one job, cmd or state alone where one is named."""

    kinds: frozenset[str] = frozenset({"step", "progress"})
    job_id: str = ""
    cmd: str = ""
    state: State | None = None

    def fits(self, news: News) -> bool:
        if news.kind not in self.kinds or (self.job_id and news.job_id != self.job_id):
            return False
        if isinstance(news, Progress):
            return not self.cmd and self.state is None
        return (not self.cmd or news.cmd == self.cmd) and (self.state is None or news.state is self.state)


class Frame(NamedTuple):
    """The news of one moment, the oldest first, and how many were left out."""

    news: list[News]
    left_out: int


def at_ms(entry: str) -> int:
    """Return when an entry was written, in ms since 1970, by the clock of Redis."""
    return int(entry.partition("-")[0])


def after(entry: str) -> str:
    """Return the first place behind an entry, as XRANGE wants it."""
    return f"({entry}"


def mark(text: str) -> Mark:
    """Read the mark of a place, as it was told with some news. Raises BadCommand."""
    found = MARK.fullmatch(text)
    if found is None:
        fix = "Send the `id` of an event as it came, or leave it out."
        raise BadCommand(f"Last-Event-ID is {text[:40]!r}.", field="Last-Event-ID", fix=fix)
    return Mark(f"{int(found[1])}-{int(found[2])}", int(found[3] or 0))


def later(one: str, other: str) -> bool:
    """Tell whether an entry came after another."""
    return _place(one) > _place(other)


def _place(entry: str) -> tuple[int, int]:
    time_ms, _, number = entry.partition("-")
    return int(time_ms), int(number or 0)


def read(entry: Entry, had: int = 0) -> list[News]:
    """Return the news of an entry, without the first `had`. What makes no sense is passed over."""
    lines = entry.fields.get(b"e")
    if lines is None:
        found = _progress(entry) if not had else None
        return [found] if found else []
    texts = lines.decode("utf-8", "replace").split("\n")
    return [
        moved for number, text in enumerate(texts[had:], had + 1) if (moved := _moved(Mark(entry.id, number), text))
    ]


def _moved(mark: Mark, line: str) -> Moved | None:
    try:
        ref, number, attempt, cmd, to = line.split(" ")
        from_, job_id = parts_of(ref)
        return Moved(mark, job_id, from_, "" if to == LONG else to, cmd, State(int(number)), int(attempt))
    except ValueError:
        return None


def _progress(entry: Entry) -> Progress | None:
    def text(name: bytes) -> str:
        return entry.fields.get(name, b"").decode("utf-8", "replace")

    try:
        from_, job_id = parts_of(text(b"p"))
        fraction = float(text(b"f"))
        share = fraction if fraction >= 0 else None
        return Progress(Mark(entry.id, 1), job_id, from_, int(text(b"a")), share, text(b"t"), b"l" in entry.fields)
    except ValueError:
        return None


def gathered(entries: Sequence[Entry], wanted: Wanted, had: Mark | None = None) -> Frame:
    """Return what is wanted of new entries.

    Few are told one by one. Of many only the newest state of each step is told, and of very many
    only the last `MOST`; of one job nothing is left out. `had` is where an earlier frame broke off.
    """

    def of(entry: Entry) -> list[News]:
        skipped = had.had if had is not None and entry.id == had.entry else 0
        return [news for news in read(entry, skipped) if wanted.fits(news)]

    if wanted.job_id:
        sought = wanted.job_id.encode()
        near = [entry for entry in entries if any(sought in value for value in entry.fields.values())]
        return Frame([news for entry in near for news in of(entry)], 0)
    if wanted.cmd or wanted.state is not None:
        picks = _picking(wanted)
        entries = [entry for entry in entries if picks.search(entry.fields.get(b"e", b""))]
    found: list[News] = []
    left_out = 0
    for entry in reversed(entries):
        if len(found) < MOST:
            found += reversed(of(entry))
        else:
            left_out += entry.fields.get(b"e", b"").count(b"\n") + 1
    if len(found) + left_out > PLAIN:
        newest: dict[tuple[str, str, str, str], News] = {}
        for news in found:
            newest.setdefault((news.kind, news.job_id, news.from_, news.to if isinstance(news, Moved) else ""), news)
        kept = list(newest.values())[:MOST]
        left_out += len(found) - len(kept)
        found = kept
    found.reverse()
    return Frame(found, left_out)


def _picking(wanted: Wanted) -> re.Pattern[bytes]:
    """Return what finds a line that may be wanted, faster than reading it."""
    state = rb"\d" if wanted.state is None else b"%d" % wanted.state
    cmd = rb"\S*" if not wanted.cmd else re.escape(wanted.cmd.encode())
    return re.compile(rb"(?m)^\S+ %s \d+ %s " % (state, cmd))


# --- server-sent events -------------------------------------------------------


def event(kind: str, body: Any, mark: Mark | None = None) -> bytes:
    """Spell one server-sent event. `body` is what JSON can hold, or JSON already."""
    data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    place = f"id: {mark}\n".encode() if mark is not None else b""
    return b"%sevent: %s\ndata: %s\n\n" % (place, kind.encode(), data.strip())


def gap(left_out: int | None) -> bytes:
    """Spell that news were left out; None: how many is not known."""
    return event("gap", {"left_out": left_out})


def spelt(frame: Frame) -> bytes:
    """Spell a frame: its news, before them how many were left out."""
    pieces = [gap(frame.left_out)] if frame.left_out else []
    return b"".join([*pieces, *(event(news.kind, news.told(), news.mark) for news in frame.news)])


def checked(kinds: str | None, cmd: str | None, state: str | None) -> Wanted:
    """Read what somebody wants, from the parameters of a request. Raises BadCommand."""
    named = frozenset(filter(None, (kinds or "step,progress").split(",")))
    unknown = sorted(named - set(KINDS))
    if unknown or not named:
        shown = unknown[0][:40] if unknown else ""
        raise BadCommand(f"the kind {shown!r} is unknown.", field="kinds", fix=f"Known: {', '.join(KINDS)}.")
    if cmd is not None and not NAME.fullmatch(cmd):
        raise BadCommand(f"`cmd` is {cmd[:40]!r}.", field="cmd", fix="Give the name of a function.")
    if state is not None and state not in State.__members__:
        fix = f"Known: {', '.join(State.__members__)}."
        raise BadCommand(f"the state {state[:40]!r} is unknown.", field="state", fix=fix)
    return Wanted(named, "", cmd or "", None if state is None else State[state])


def entries(raw: Iterable[tuple[bytes, Any]]) -> list[Entry]:
    """Read what XRANGE gives, as a map or as a list of fields and values."""

    def fields(given: Any) -> Mapping[bytes, bytes]:
        return given if isinstance(given, Mapping) else dict(zip(given[::2], given[1::2], strict=True))

    return [Entry(id_.decode(), fields(given)) for id_, given in raw if given is not None]
