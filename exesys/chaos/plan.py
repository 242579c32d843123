"""What is sent, and which blows fall: both follow from a seed. Pure.

The same seed gives the same orders and the same blows in the same order;
when each falls and what is under way then is the machine's to say.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

MARKED = "chaos_work.work"
PART = "chaos_work.part"
ALWAYS = 1_000_000  # so often a step fails that is never to end well
RUN_S = 0.02  # a run takes up to so long
PARTS = 3
WORKFLOW_SHARE = 0.06
# What a workflow looks like when it is sent: from, to.
SHAPES: dict[str, list[tuple[str, list[str]]]] = {
    "chain": [("a", ["b"]), ("b", ["c"]), ("c", ["d"]), ("d", ["end_job"])],
    "diamond": [("a", ["b", "c", "d"]), ("b", ["e"]), ("c", ["e"]), ("d", ["e"]), ("e", ["end_job"])],
    "document": [("a", ["b"]), ("b", ["c"]), ("c", ["d"]), ("c", ["e"]), ("d", ["end_job"]), ("e", ["end_job"])],
    "parts": [("a", ["m"]), ("m", ["end_job"])],  # a adds steps that go to m
}


class Step(NamedTuple):
    """What shall become of one accepted command.

    `number` is what its result holds; None: it shall end in error.
    `feeders` are the refs whose results it gets; of one `key` one step runs
    at a time.
    """

    kind: str
    ref: str
    from_: str
    to: str
    number: int | None
    feeders: tuple[str, ...] = ()
    key: str = ""

    @property
    def mark(self) -> str:
        """The name under which its runs are marked."""
        return mark(self.from_, self.to, self.ref.rpartition(":")[2])


def mark(from_: str, to: str, job_id: str) -> str:
    """Name a step by what its function knows of it."""
    return f"{from_}>{to}:{job_id}"


class Order(NamedTuple):
    """One job to send: its commands in the form of REST, and what shall become of its steps."""

    job_id: str
    workflow: bool
    commands: list[dict[str, Any]]
    steps: list[Step]


# Kind -> how often, of a hundred commands, and its options.
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (60, {}),
    "urgent": (10, {"priority": 9}),
    "delayed": (10, {"delay_s": 1.0}),
    "keyed": (10, {"key": "k"}),
    "retried": (7, {"retries": 2, "backoff_s": 0.05}),
    "failing": (3, {"retries": 1, "backoff_s": 0.05}),
}
_FAILS = {"retried": 2, "failing": ALWAYS}


def orders(seed: int, sender: str) -> Iterator[Order]:
    """Give what one sender sends, without end.

    `sender` is the `from` of its single commands and the first part of its job_ids.
    """
    dice = random.Random(f"{seed} {sender}")
    weights = [share for share, _ in KINDS.values()]
    for count in itertools.count(1):
        job_id = f"{sender}-{count}"
        if dice.random() < WORKFLOW_SHARE:
            yield _workflow(dice, job_id)
            continue
        [kind] = dice.choices(list(KINDS), weights)
        number = dice.randrange(1 << 30)
        data: dict[str, Any] = {"number": number, "seconds": round(dice.uniform(0, RUN_S), 4)}
        options = dict(KINDS[kind][1])
        if kind in _FAILS:
            data["fails"] = _FAILS[kind]
        if kind == "delayed":
            options["delay_s"] = round(dice.uniform(0.1, 5), 3)
        if kind == "keyed":
            options["key"] = f"k{dice.randrange(5)}"
        command = {"from": sender, "cmd": MARKED, "data": data, "job_id": job_id, **options}
        value = None if kind == "failing" else 2 * number
        step = Step(kind, f"{sender}:{job_id}", sender, "end_job", value, key=options.get("key", ""))
        yield Order(job_id, False, [command], [step])


def _workflow(dice: random.Random, job_id: str) -> Order:
    shape = dice.choice(list(SHAPES))
    number = dice.randrange(1000)
    data: dict[str, Any] = {"number": number, "seconds": round(dice.uniform(0, RUN_S), 4)}
    if shape == "parts":
        data["parts"] = PARTS
    commands: list[dict[str, Any]] = [
        {"from": from_, "to": to, "cmd": PART, "job_id": job_id} for from_, to in SHAPES[shape]
    ]
    commands[0]["data"] = data  # a is the only root
    return Order(job_id, True, commands, _steps(shape, job_id, number))


def _steps(shape: str, job_id: str, given: int) -> list[Step]:
    """Work out what each step of a workflow gives: one more than its feeders together."""
    edges = list(SHAPES[shape])
    if shape == "parts":
        edges[1:1] = [(f"a.{part}", ["m"]) for part in range(1, PARTS + 1)]
    firsts: list[str] = []
    for from_, to in edges:
        firsts.append(f"{from_}>{','.join(to)}" if from_ in firsts else from_)
    steps: list[Step] = []
    numbers: dict[str, int] = {"a": given + 1}
    for first, (from_, to) in zip(firsts, edges, strict=True):  # feeders stand before what they feed
        feeders = tuple(other for other, (_, goes) in zip(firsts, edges, strict=True) if from_ in goes)
        if from_.startswith("a."):
            numbers[first] = int(from_.removeprefix("a.")) + 1
        elif from_ != "a":
            numbers[first] = sum(numbers[feeder] for feeder in feeders) + 1
        refs = tuple(f"{feeder}:{job_id}" for feeder in feeders)
        steps.append(Step("workflow", f"{first}:{job_id}", from_, ",".join(to), numbers[first], refs))
    return steps


# --- blows -----------------------------------------------------------------------


class Blow(NamedTuple):
    """One fault: after a pause of `after_s`, of `kind`, at `victims`, for `lasts_s`.

    `pick` chooses among several processes of one name.
    """

    after_s: float
    kind: str
    victims: tuple[str, ...]
    lasts_s: float
    pick: int

    def __str__(self) -> str:
        return f"{self.kind} {' and '.join(self.victims)}" if self.victims else self.kind

    @property
    def costs_results(self) -> bool:
        """Whether what a run gave may go with the blow, before the router has it."""
        return self.kind in ("kill", "freeze") and bool({"worker", "slot", "supervisord"} & {*self.victims})


RESET = "reset connections"
DAEMONS = ("router", "worker", "rest", "controller", "runner")
# Kind -> the victims of which each is struck in turn, and for how long.
BLOWS: dict[str, tuple[list[tuple[str, ...]], tuple[float, float]]] = {
    "kill": (
        [
            *[(name,) for name in (*DAEMONS, "slot", "instance", "redis", "supervisord")],
            *[("router", "worker"), ("rest", "controller"), ("redis", "worker"), ("router", "runner", "slot")],
        ],
        (0, 0),
    ),
    "freeze": ([(name,) for name in (*DAEMONS, "slot", "redis")], (0.3, 4.0)),
    "slow redis": ([()], (2, 4)),
    "restart redis": ([()], (0, 0)),
    "full disk": ([()], (1, 3)),
    RESET: ([(name,) for name in DAEMONS], (0, 0)),
    "late results": ([()], (2, 4)),
    "clock forward": ([()], (2, 4)),
    "clock back": ([()], (2, 4)),
}


Deck = list[tuple[str, tuple[str, ...]]]


def deck(only: Sequence[str] = ()) -> Deck:
    """Return kinds with their victims: all, or those that `only` names, such as `kill` or `kill-router`."""
    every = [(kind, victims) for kind, (each, _) in BLOWS.items() for victims in each]
    return [each for each in every if not only or _spelled(each[0]) in only or name(*each) in only]


def name(kind: str, victims: tuple[str, ...]) -> str:
    """Name a blow as the command line does."""
    return _spelled(" ".join((kind, *victims)))


def _spelled(text: str) -> str:
    return text.replace(" ", "-")


def blows(seed: int, deck: Deck, pause_s: tuple[float, float]) -> Iterator[Blow]:
    """Give blows of a deck without end: all of it, in any order, before one comes again."""
    dice = random.Random(f"{seed} blows")
    deck = list(deck)
    while True:
        dice.shuffle(deck)
        for kind, victims in deck:
            lasts_s = round(dice.uniform(*BLOWS[kind][1]), 2)
            yield Blow(round(dice.uniform(*pause_s), 2), kind, victims, lasts_s, dice.randrange(1 << 16))
