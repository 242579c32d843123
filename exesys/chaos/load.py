"""The load: senders with patience. What they had accepted is in the account; they send until it is.

Each is a thread that owes so many commands a second, and catches up after
a blow. What is on its way is bounded, so nothing piles up.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter, deque
from typing import Any

from exesys import asking
from exesys.bus.client import Client
from exesys.bus.handle import Handle
from exesys.bus.jobhandle import JobHandle
from exesys.chaos.hands import PATIENCE_S, TURN_S, Hand, patiently
from exesys.chaos.plan import Order, orders
from exesys.chaos.rig import Rig
from exesys.errors import ExesysError, JobError, StateError, Unavailable
from exesys.process import wait_until

BURST_S = 0.25  # what is due is sent in bursts, so that jobs wait and run when a blow falls
MOST_UNDER_WAY = 4000  # commands of one sender, accepted or not, that have not ended
PER_ARRAY = 50
REST_S = 10.0


class Sender(Hand):
    """Sends its orders at `rate` commands a second until it is told to stop.

    `orders` are those that were accepted, `heard` the results that it was
    told, `answers` what the attempts to send came to.
    """

    def __init__(self, name: str, rig: Rig, seed: int, rate: float) -> None:
        super().__init__(name, rig)
        self.rate = rate
        self.orders: list[Order] = []
        self.heard: dict[str, Any] = {}
        self.answers: Counter[str] = Counter()
        self._coming = orders(seed, name)

    def work(self) -> None:
        """Send what is due."""
        since = time.monotonic()
        sent = 0
        while not self.halt.wait(BURST_S):
            due = int((time.monotonic() - since) * self.rate) - sent
            while due > 0 and not self.halt.is_set() and self.under_way() < MOST_UNDER_WAY:
                count = self.send(min(due, PER_ARRAY))
                sent += count
                due -= count
        self.settle()

    def take(self, count: int) -> list[Order]:
        """Take so many commands' worth of orders, or some more."""
        taken: list[Order] = []
        while sum(len(order.commands) for order in taken) < count:
            taken.append(next(self._coming))
        return taken

    @abstractmethod
    def send(self, count: int) -> int:
        """Send about so many commands; return how many it were."""

    @abstractmethod
    def under_way(self) -> int:
        """Count what was sent and has not ended."""

    def settle(self) -> None:
        """Have all that was sent accepted."""


class BusSender(Sender):
    """Over the bus, and hears of each end."""

    def __init__(self, name: str, rig: Rig, seed: int, rate: float) -> None:
        super().__init__(name, rig, seed, rate)
        self.client = Client(rig.config)
        self._sent: deque[tuple[Order, Handle | JobHandle]] = deque()

    def send(self, count: int) -> int:
        self._gather()
        sent = 0
        for order in self.take(count):
            self._sent.append((order, self._send(order)))
            sent += len(order.commands)
        return sent

    def _send(self, order: Order) -> Handle | JobHandle:
        if order.workflow:
            return self.client.workflow(order.commands)
        command = dict(order.commands[0])
        named = {"job_id": command.pop("job_id"), "from_": command.pop("from")}
        return self.client.submit(command.pop("cmd"), command.pop("data"), **named, **command)

    def under_way(self) -> int:
        self._gather()
        return len(self._sent)

    def _gather(self) -> None:
        for _ in range(len(self._sent)):
            order, handle = self._sent.popleft()
            if handle.done():
                self._take(order, handle)
            else:
                self._sent.append((order, handle))

    def _take(self, order: Order, handle: Handle | JobHandle) -> None:
        self.orders.append(order)
        self.answers["taken"] += 1
        ends = [step for step in order.steps if step.to == "end_job"]
        try:
            value = handle.result(REST_S)
        except JobError as error:
            if ends[0].number is not None:
                self.wrong.append(f"{ends[0].ref}: a client was told of an error: {error}")
            return
        except ExesysError as error:
            self.wrong.append(f"{order.job_id}: a client that waits was told: {error}")
            return
        if len(ends) == 1:
            self.heard[ends[0].ref] = value
        else:
            self.heard |= {end.ref: value[end.ref.partition(":")[0]] for end in ends}

    def settle(self) -> None:
        """Wait for every end."""
        wait_until(lambda: not self.under_way(), PATIENCE_S, TURN_S)
        for order, _ in self._sent:
            self.orders.append(order)
        self.client.close()


class RestSender(Sender):
    """Over REST, in arrays, each sent again until all of it was taken."""

    def send(self, count: int) -> int:
        taken = self.take(count)
        single = [order for order in taken if not order.workflow]
        if single:
            self._post([command for order in single for command in order.commands], {})
        for order in taken:
            if order.workflow:
                self._post(order.commands, {"Operation": "workflow"})
            self.orders.append(order)
        return sum(len(order.commands) for order in taken)

    def under_way(self) -> int:
        return 0

    def _post(self, commands: list[dict[str, Any]], headers: dict[str, str]) -> None:
        # What was sent once may have been accepted: it is sent again until that is known.
        patiently(lambda: self._post_once(commands, headers))

    def _post_once(self, commands: list[dict[str, Any]], headers: dict[str, str]) -> None:
        try:
            status, answer = asking.ask(self.rig.config, "POST", "/sys_cmd", commands, REST_S, headers)
        except (OSError, asking.HTTPException) as error:
            self.answers[type(error).__name__] += 1
            raise Unavailable(f"REST does not answer: {error}") from error
        self.answers[str(status)] += 1
        taken = status in (200, 202)
        refused = [item["error"]["code"] for item in answer if "state" not in item] if taken else []
        if taken and not refused:
            return
        text = f"REST answered {status}: {answer!r:.300}"
        if status in (429, 503) or (taken and set(refused) == {"unavailable"}):
            raise Unavailable(text)
        raise StateError(text)
