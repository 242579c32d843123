"""The client's side of the conversation. Pure: calls, messages and `now` in, messages out.

Every command stays here until its end is known. What the router did not
acknowledge is sent again after a reconnect, which is safe: a command is
identified by job_id, from and to, and the same one sent twice runs once. What
it did acknowledge is asked for (STATUS) after a reconnect, and now and then,
in case a DONE was lost.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from exesys import troubles
from exesys.bus import messages as m
from exesys.bus.handle import Handle
from exesys.errors import ExesysError, Unavailable, from_problem
from exesys.states import State

HELLO_AGAIN_S = 1.0
RECHECK_S = 5.0
MOST_RECHECKED = (
    100  # at a time, and so many each RECHECK_EVERY_S: hundreds of thousands under way do not flood the router
)
RECHECK_EVERY_S = 0.1
MOST_IN_MESSAGE = 1000
MOST_BYTES_IN_MESSAGE = 4 << 20
UNANSWERED_S = 10.0
STATES = tuple(State)


@dataclass(slots=True)
class Flight:
    """A command or question under way."""

    handle: Handle
    item: m.Item | None  # None once acknowledged, or for a question
    notify: bool
    patient: bool  # waits while the router is busy or away
    sent_at: float = 0.0
    rechecked: bool = False  # whether it stands in the desk's list of rechecks
    moves: int = 0  # how often it was told to belong to another shard


@dataclass(slots=True)
class Asked:
    """A question with a tag of its own: what CHANGED or a SNAPSHOT answers."""

    message: Any
    then: Callable[[m.Reply], None]
    moves: int = 0


class Desk:
    """All that one client has under way. The caller holds `lock` around every call."""

    def __init__(self, session: str, window: int, role: str = "client", lock: threading.Lock | None = None) -> None:
        """`lock` is another desk's, for desks between which commands move."""
        self.session = session
        self.role = role
        self.info: dict[str, Any] = {}  # what HELLO tells of this peer
        self.window = window
        self.lock = lock or threading.Lock()
        self.on_moved: Callable[[m.Moved], list[tuple[Handle, Callable[[Handle], None]]]] = lambda moved: []
        self.welcome: m.Welcome | None = None
        self.refusal = ""  # why the router does not take this client at all
        self._tag = 0
        self._flights: dict[int, Flight] = {}
        self._unanswered: dict[int, Flight] = {}  # of these, the ones without any answer yet
        self._outbox: deque[int] = deque()
        self._later: list[tuple[float, list[int]]] = []  # BUSY: when to send them again
        self._recheck: deque[tuple[float, int]] = deque()
        self._workflows: dict[int, list[int]] = {}  # number -> tags of its steps, until it is known to be taken
        self._asks: dict[int, Asked] = {}
        self._gone: dict[int, Callable[[], None]] = {}  # questions that moved -> how to forget them
        self._to_tell: list[m.Message] = []
        self._hello_at = self._beat_at = self._heard_at = self._resend_at = self._recheck_at = float("-inf")

    # --- calls ------------------------------------------------------------

    @property
    def full(self) -> bool:
        return len(self._unanswered) >= self.window

    @property
    def unanswered(self) -> int:
        """How many commands and questions have had no answer yet."""
        return len(self._unanswered)

    def put(self, handle: Handle, item: m.Item | None, notify: bool, patient: bool) -> int:
        """Take a command (or, without `item`, a question) to be sent."""
        self._tag += 1
        tag = self._tag
        if item is not None:
            item = m.Item(tag, *item[1:])
        self._flights[tag] = self._unanswered[tag] = Flight(handle, item, notify, patient)
        self._outbox.append(tag)
        return tag

    def put_workflow(self, handles: Sequence[Handle], items: Sequence[m.Item], patient: bool) -> None:
        """Take the steps of a workflow: they go in one message, and are stored together or not at all."""
        number = self._tag + 1
        for handle, item in zip(handles, items, strict=True):
            self.put(handle, item._replace(flow=number), item.notify, patient)
        self._workflows[number] = list(range(number, self._tag + 1))

    def ask(self, question: Callable[[int], m.Message], then: Callable[[m.Reply], None]) -> int:
        """Ask the router for a SNAPSHOT, or for what CHANGED answers; `question` makes the message with its tag.

        It is asked again after a reconnect. Returns the tag, for `forget`.
        """
        self._tag += 1
        asked = question(self._tag)
        self._asks[self._tag] = Asked(asked, then)
        self._to_tell.append(asked)
        return self._tag

    def tell(self, message: m.Message) -> None:
        """Send a message that has no answer, once the router is there."""
        self._to_tell.append(message)

    def forget(self, tag: int) -> None:
        """Wait no longer for this tag's answer; a command not yet sent stays unsent."""
        self._asks.pop(tag, None)
        self._flights.pop(tag, None)
        self._unanswered.pop(tag, None)
        if tag in self._gone:
            self._gone.pop(tag)()

    def leave(self, tags: Iterable[int]) -> list[Flight]:
        """Give away what has these tags, for another desk to `adopt`."""
        left = [flight for tag in tags if (flight := self._flights.pop(tag, None)) is not None]
        for tag in tags:
            self._unanswered.pop(tag, None)
        for flight in left:
            if flight.item is not None:
                self._workflows.pop(flight.item.flow, None)
        return left

    def adopt(self, flights: Iterable[Flight]) -> None:
        """Take over what another desk has left; the steps of a workflow come together, and stay so."""
        numbers: dict[int, int] = {}
        for flight in flights:
            item, number = flight.item, 0
            if item is not None and item.flow > 0:
                number = numbers.setdefault(item.flow, self._tag + 1)
                item = item._replace(flow=number)
            tag = self.put(flight.handle, item, flight.notify, flight.patient)
            self._flights[tag].moves = flight.moves + 1
            if number:
                self._workflows.setdefault(number, []).append(tag)

    def leave_asked(self, tag: int) -> Asked | None:
        """Give away a question, for another desk to `adopt_asked`."""
        return self._asks.pop(tag, None)

    def adopt_asked(self, asked: Asked, before: Desk, was: int) -> None:
        """Take over a question that had the tag `was` at the desk `before`; to forget it there is to do so here."""

        def then(reply: m.Reply) -> None:
            before._gone.pop(was, None)
            asked.then(reply)

        tag = self.ask(lambda tag: asked.message._replace(tag=tag), then)
        self._asks[tag].moves = asked.moves + 1
        before._gone[was] = lambda: self.forget(tag)

    def withdraw(self, handle: Handle, error: ExesysError) -> list[tuple[Handle, Callable[[Handle], None]]]:
        """Have a command that has not ended end so for its caller; not sent yet, it stays unsent. Returns callbacks."""
        if handle.done():
            return []
        self.drop(handle)
        return [(handle, call) for call in handle._fail(error)]

    def drop(self, handle: Handle) -> None:
        """Wait no longer for what is told of a command; not sent yet, it stays unsent."""
        for tag in [tag for tag, flight in self._flights.items() if flight.handle is handle]:
            self.forget(tag)

    def abandon(self, error: ExesysError) -> list[tuple[Handle, Callable[[Handle], None]]]:
        """Nobody serves this desk any more: nothing more will be heard of what is under way. Returns callbacks."""
        left = [flight.handle for flight in self._flights.values() if not flight.handle.done()]
        self._flights.clear()
        self._unanswered.clear()
        return [(handle, call) for handle in left for call in handle._fail(error)]

    # --- in ---------------------------------------------------------------

    def receive(self, message: m.Message, now: float) -> list[tuple[Handle, Callable[[Handle], None]]]:
        """Take a message from the router. Returns callbacks to call without the lock."""
        self._heard_at = now
        calls: list[tuple[Handle, Callable[[Handle], None]]] = []
        match message:
            case m.SubmitAck(answers) | m.Done(answers) | m.StatusReply(answers):
                for answer in answers:
                    flight = self._flights.get(answer.tag)
                    if flight is not None:
                        calls += [(flight.handle, call) for call in self._answer(flight, answer, now)]
            case m.Busy(tags, reason, retry_s):
                calls = self._busy(tags, reason, now + retry_s)
            case m.Welcome():
                self._greeted(message)
            case m.Error("bad_version"):
                self.refusal = message.message
            case m.Error("unknown_session") | m.Bye():
                self.welcome, self._hello_at = None, float("-inf")
            case m.Snapshot() | m.Changed() | m.Mended():
                asked = self._asks.pop(message.tag, None)
                if asked is not None:
                    asked.then(message)
            case m.Moved():
                calls = self.on_moved(message)
        return calls

    def _answer(self, flight: Flight, answer: m.Answer, now: float) -> list[Callable[[Handle], None]]:
        tag, number, body = answer
        self._settle(flight)
        self._unanswered.pop(tag, None)
        if number < 0:
            del self._flights[tag]
            return flight.handle._fail(from_problem(body))
        state = STATES[number]
        if state.final or not flight.notify:
            del self._flights[tag]
        elif not flight.rechecked:
            flight.rechecked = True
            self._recheck.append((now + RECHECK_S, tag))
        return flight.handle._change(state, body)

    def _settle(self, flight: Flight) -> None:
        """A command was taken or refused: it is not sent again, nor is what came with it."""
        if flight.item is not None and flight.item.flow > 0:
            for tag in self._workflows.pop(flight.item.flow, ()):
                other = self._flights.get(tag)
                if other is not None:
                    other.item = None
        flight.item = None

    def _busy(self, tags: Iterable[int], reason: str, at: float) -> list[tuple[Handle, Callable[[Handle], None]]]:
        calls = []
        again = []
        trouble = troubles.named(reason) or troubles.BUSY
        for tag in tags:
            flight = self._flights.get(tag)
            if flight is None:
                continue
            if flight.patient or flight.handle.state is not None:
                flight.handle.held_up = trouble
                again.append(tag)  # one that was taken is only asked for again
                continue
            self.forget(tag)
            if flight.item is not None:
                self._workflows.pop(flight.item.flow, None)
            error = Unavailable(trouble.why, fix=trouble.fix)
            calls += [(flight.handle, call) for call in flight.handle._fail(error)]
        self._later.append((at, again))
        return calls

    def _greeted(self, welcome: m.Welcome) -> None:
        """WELCOME came, perhaps from a new router: everything under way goes out again."""
        self.welcome = welcome
        self._beat_at = float("-inf")
        self._outbox = deque(self._flights)
        self._unanswered = dict(self._flights)  # also the questions may be lost, and are then asked again
        self._later = []
        self._to_tell += [asked.message for asked in self._asks.values() if asked.message not in self._to_tell]
        self._recheck.clear()
        for flight in self._flights.values():
            flight.rechecked = False

    # --- out --------------------------------------------------------------

    def outgoing(self, now: float) -> list[m.Message]:
        """Return what is due to be sent."""
        if self.welcome is None:
            if now - self._hello_at < HELLO_AGAIN_S:
                return []
            self._hello_at = now
            return [m.Hello(m.VERSION, self.role, self.session, "", self.info)]
        messages: list[m.Message] = []
        self._call_back(now)
        if self._outbox:
            messages += self._pack(now)
        if self._to_tell:
            messages += self._to_tell
            self._to_tell = []
        if now - self._beat_at >= self.welcome.heartbeat_s:
            self._beat_at = now
            messages.append(m.Heartbeat(self.session, self.welcome.epoch, 0, 0, (), ()))
        return messages

    def _call_back(self, now: float) -> None:
        """Put back into the outbox what was BUSY, and what was not heard of for long."""
        due = [tags for at, tags in self._later if at <= now]
        if due:
            self._later = [(at, tags) for at, tags in self._later if at > now]
            self._outbox.extend(tag for tags in due for tag in tags)
        if self._recheck and now >= max(self._recheck_at, self._recheck[0][0]):
            self._recheck_at = now + RECHECK_EVERY_S
            self._ask_again(now)
        if now >= self._resend_at:
            self._resend_at = now + UNANSWERED_S / 4
            # Lest a message was lost: what got no answer at all goes out again.
            late = [tag for tag, flight in self._unanswered.items() if 0 < flight.sent_at < now - UNANSWERED_S]
            self._outbox.extend(late)

    def _ask_again(self, now: float) -> None:
        """Ask for what was not heard of for long. The answer puts it back among these; so does silence."""
        for _ in range(MOST_RECHECKED):
            if not self._recheck or self._recheck[0][0] > now:
                break
            tag = self._recheck.popleft()[1]
            flight = self._flights.get(tag)
            if flight is not None:
                flight.rechecked = False
                flight.sent_at = now
                self._unanswered[tag] = flight
                self._outbox.append(tag)

    def _pack(self, now: float) -> list[m.Message]:
        items: list[m.Item] = []
        queries: list[m.Query] = []
        size = 0
        whole: set[int] = set()  # the workflows in this message
        while self._outbox:
            flight = self._flights.get(self._outbox[0])
            flow = flight.item.flow if flight is not None and flight.item is not None else 0
            full = len(items) + len(queries) >= MOST_IN_MESSAGE or size >= MOST_BYTES_IN_MESSAGE
            if full and flow not in whole:
                break  # the other steps of a workflow went with its first
            tag = self._outbox.popleft()
            if flight is None:
                continue
            flight.sent_at = now
            if flight.item is not None and flight.item.flow > 0:
                if flight.item.flow not in whole:
                    whole.add(flight.item.flow)
                    steps = self._steps(flight.item.flow, now)
                    items += steps
                    size += sum(len(item.data) for item in steps)
            elif flight.item is not None:
                items.append(flight.item)
                size += len(flight.item.data)
            else:
                handle = flight.handle
                queries.append(m.Query(tag, handle.job_id, handle.from_, handle.to, flight.notify))
                size += 64
        messages: list[m.Message] = []
        if items:
            messages.append(m.Submit(tuple(items)))
        if queries:
            messages.append(m.Status(tuple(queries)))
        return messages

    def _steps(self, number: int, now: float) -> list[m.Item]:
        """Return all steps of a workflow: the router takes it whole."""
        items = []
        for tag in self._workflows[number]:
            flight = self._flights.get(tag)
            if flight is not None and flight.item is not None:
                flight.sent_at = now
                items.append(flight.item)
        return items

    @property
    def pressing(self) -> bool:
        """Whether something waits to be sent at once."""
        return self.welcome is not None and bool(self._outbox or self._to_tell)

    def silent(self, now: float) -> bool:
        """Whether the router was not heard for a lease: the socket is to be built anew."""
        if self.welcome is None:
            return False
        return now - self._heard_at > self.welcome.heartbeat_s * self.welcome.misses

    def rebuilt(self) -> None:
        self.welcome, self._hello_at = None, float("-inf")

    def wake_in_s(self, now: float) -> float:
        """Return how long the loop may sleep if nothing comes in."""
        if self.welcome is None:
            return max(0.0, self._hello_at + HELLO_AGAIN_S - now)
        if self.pressing:
            return 0.0
        wait = self._beat_at + self.welcome.heartbeat_s - now
        if self._later:
            wait = min(wait, min(at for at, _ in self._later) - now)
        if self._recheck:
            wait = min(wait, max(self._recheck[0][0], self._recheck_at) - now)
        return max(0.0, wait)
