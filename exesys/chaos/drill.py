"""The drill: load and blows for some time, then the account."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from exesys import codec
from exesys.chaos import blows as striking
from exesys.chaos import going
from exesys.chaos.account import Account, Record, read_lives, read_runs
from exesys.chaos.functions import chaos_work
from exesys.chaos.load import BusSender, RestSender, Sender
from exesys.chaos.plan import Blow, Deck, Step, blows
from exesys.chaos.rig import Rig
from exesys.process import wait_until
from exesys.states import State

PAUSE_S = (0.5, 4.0)
READY_S = 90.0
END_S = 120.0
BEFORE_S, LEASE_S = 5.0, 3.0  # a result may be lost by a blow that falls so long after, or before
CLOCK_S = 5.0  # so long a timer may stand still, or run ahead, when the clock was set
DELAYED_S = 10.0  # longer than any delay
CHUNK = 500
PROOF = "proof-"
# Keys, by their names in `store/keys.py`, once nothing is under way: of jobs that were accepted; there although no job
# is under way; and gone.
OF_A_JOB = frozenset({"record", "log", "job", "flow"})
STANDING = frozenset(
    {
        *(
            "events",
            "jobs",
            "order",
            "sessions",
            "functions",
            "epoch",
            "format",
            "turn",
            "server",
            "lineage",
            "controller",
        ),
        *("ended", "queues", "runner", "runner_log", "mended", "timer_changes", "tuned", "dead", "callback_counts"),
        "run",
    }
)
GONE = frozenset(
    {
        *("recount", "tallied", "recount_left", "ready", "lane", "turns", "keyed", "running", "starts", "held"),
        *("delayed", "standby", "callbacks", "callback", "runners", "queue", "timer", "timer_state", "timers"),
    }
)


class Struck(NamedTuple):
    """One blow, what it hit, and how long it took until all was there again."""

    blow: Blow
    what: str
    back_s: float | None


class Outcome(NamedTuple):
    """What a drill came to."""

    account: Account
    struck: list[Struck]
    seconds: float
    accepted: int
    answers: Counter[str]

    @property
    def rate(self) -> float:
        """Commands accepted a second, the blows included."""
        return self.accepted / self.seconds


def drill(
    seconds: float, seed: int, rate: float, deck: Deck, tell: Callable[[str], None], keep: bool = False
) -> Outcome:
    """Put a private system under load, strike it for so many seconds, and account for all that was accepted.

    `rate` is in commands a second, `deck` has the blows; `tell` is
    called with a line for each thing that happens. With `keep` the system's
    directory stays when the account is not exact. Raises BootError.
    """
    account = Account()
    with Rig() as rig:
        tell(f"a private system runs in {rig.home}")
        senders: list[Sender] = [
            BusSender("bus", rig, seed, rate * 0.6),
            RestSender("rest", rig, seed, rate * 0.4),
        ]
        runners = going.Runners(rig)
        timed_from = going.start_timers(rig)
        since = time.monotonic()
        hands = [*senders, runners]
        for hand in hands:
            hand.start()
        struck = _strike(rig, seed, seconds, deck, account, tell)
        for hand in hands:
            hand.halt.set()
        sent_s = time.monotonic() - since
        tell("no more is sent; what is under way ends")
        timed_s = time.monotonic() - timed_from
        going.stop_timers(rig)
        _settle(rig)  # the hands wait for what they sent
        for hand in hands:
            hand.join(2 * END_S)
            for text in hand.wrong:
                account.wrong(text)
            if hand.is_alive():
                account.wrong(f"the thread {hand.name} has not ended")
        if not _settle(rig):
            account.wrong(f"jobs were still under way {END_S:g} s after the last was sent")
        ticks = _count(rig, senders, runners, account)
        slack = sum(each.blow.kind.startswith("clock") for each in struck)
        for name, every_s in going.TIMERS.items():
            count = sum(ref.partition(":")[2].startswith(f"{name}.") for ref in ticks)
            account.ticked(name, count, timed_s / every_s, slack * CLOCK_S / every_s)
        for text in rig.tracebacks():
            account.wrong(f"a traceback in a log: {text}")
        rig.down()
        account.left("processes", [str(pid) for pid in rig.processes()])
        rig.kept = keep and not account.exact
    accepted = sum(len(order.steps) for sender in senders for order in sender.orders)
    answers = sum((sender.answers for sender in senders), Counter[str]())
    return Outcome(account, struck, sent_s, accepted, answers)


def _strike(
    rig: Rig, seed: int, seconds: float, deck: Deck, account: Account, tell: Callable[[str], None]
) -> list[Struck]:
    """Let blows fall until the time is over."""
    striker = striking.Striker(rig)
    deadline = time.monotonic() + seconds
    struck: list[Struck] = []
    for blow in blows(seed, deck, PAUSE_S):
        left_s = deadline - time.monotonic()
        if left_s <= blow.after_s:
            time.sleep(max(left_s, 0))  # the load goes on for the time that was asked for
            return struck
        time.sleep(blow.after_s)  # the pause of the plan
        since = time.monotonic()
        what = striker.strike(blow)
        if blow.costs_results:
            account.costly.append((since - BEFORE_S, time.monotonic() + LEASE_S))
        back_s = rig.await_ready(READY_S)
        struck.append(Struck(blow, what, back_s))
        tell(f"{blow}: {what or 'nothing to strike'}; all there after {back_s or 0:.1f} s")
        if back_s is None:
            account.wrong(f"after {blow} ({what}) the system was not ready again within {READY_S:g} s")
            return struck
    return struck


def _settle(rig: Rig) -> bool:
    """Wait until nothing is under way; tell whether that came.

    What was to be done later, by a clock that was then set back, is due once it is set forward again.
    """
    waiting = [rig.keys(name, "*") for name in ("ready", "held", "lane")] + [rig.keys("delayed"), rig.keys("standby")]

    def at_rest() -> bool:
        with rig.redis() as connection:
            return not any(key for pattern in waiting for key in connection.scan_iter(pattern, count=10_000))

    if wait_until(at_rest, DELAYED_S, 0.1):
        return True
    rig.clock.set(2 * striking.HOUR_S)
    try:
        return wait_until(at_rest, END_S, 0.1)
    finally:
        rig.clock.set(0)


def _count(rig: Rig, senders: Sequence[Sender], runners: going.Runners, account: Account) -> list[str]:
    """Compare what was accepted with what Redis holds and what ran; return the refs of timers' jobs."""
    runs = read_runs((rig.home / chaos_work.RUNS).read_text().splitlines())
    refs: set[str] = set()
    failing: set[str] = set()
    keyed: list[Step] = []
    for sender in senders:
        for start in range(0, len(sender.orders), CHUNK):
            steps = [step for order in sender.orders[start : start + CHUNK] for step in order.steps]
            refs.update(step.ref for step in steps)
            failing.update(step.ref for step in steps if step.number is None)
            keyed += [step for step in steps if step.key]
            account.steps(steps, _records(rig, [step.ref for step in steps]), runs, sender.heard)
    account.keys(keyed, runs)
    ticks = _keys_left(rig, refs, account)
    for start in range(0, len(ticks), CHUNK):
        account.ticks(_records(rig, ticks[start : start + CHUNK]), runs, 2 * going.TICK["number"])
    with rig.redis() as connection:
        dead = {ref.decode() for ref in connection.zrange(rig.keys("dead"), 0, -1)}
        mended = [kind.decode() for kind in connection.hkeys(rig.keys("mended")) if not kind.endswith(b":at")]
    account.left("dead letters that did not fail", sorted(dead - failing))
    account.left("steps that failed and are no dead letters", sorted(failing - dead))
    account.left("kinds of what upkeep had to mend", sorted(mended))
    for uuid, stopped_s in runners.stopped.items():
        path = rig.home / chaos_work.LIVES / uuid
        account.lives(uuid, read_lives(path.read_text().splitlines()) if path.exists() else [], stopped_s)
    return ticks


def _records(rig: Rig, refs: Sequence[str]) -> dict[str, list[Record]]:
    """Read steps in all states they stand in."""
    with rig.redis() as connection:
        pipeline = connection.pipeline(transaction=False)
        for ref in refs:
            for state in State:
                pipeline.hgetall(rig.keys("record", ref, state.name))
                pipeline.ttl(rig.keys("record", ref, state.name))
        replies = iter(pipeline.execute())
    found: dict[str, list[Record]] = {ref: [] for ref in refs}
    for ref in refs:
        for state in State:
            fields, ttl_s = next(replies), next(replies)
            if fields:
                found[ref].append(_record(state.name, fields, ttl_s))
    return found


def _record(state: str, fields: dict[bytes, bytes], ttl_s: int) -> Record:
    packed = fields.get(b"result") or fields.get(b"error")
    body: Any = codec.unpack(packed) if packed else None
    return Record(state, int(fields.get(b"attempt", 0)), body["EOJ"] if b"result" in fields else body, ttl_s > 0)


def _keys_left(rig: Rig, refs: set[str], account: Account) -> list[str]:
    """Account for every key of Redis; return the refs of timers' jobs."""
    jobs = {ref.partition(":")[2] for ref in refs}
    ticks, orphans = [], []
    with rig.redis() as connection:
        for raw in connection.scan_iter(count=10_000):
            name = raw.decode()
            spelled = rig.keys.read(name)
            if spelled is None:
                orphans.append(name)
                continue
            ref = spelled.parts[0] if spelled.parts else ""
            job_id = ref.partition(":")[2] if spelled.name in ("record", "log") else ref
            if spelled.name in OF_A_JOB:
                of_timer = job_id.partition(".")[0] in going.TIMERS
                if spelled.name == "record" and of_timer:
                    ticks.append(ref)
                known = ref in refs if spelled.name == "record" else job_id in jobs
                if not known and not of_timer and not job_id.startswith(PROOF):
                    orphans.append(name)
            elif spelled.name not in STANDING:
                orphans.append(name)
    account.left("keys of no accepted job", sorted(orphans))
    return sorted(set(ticks))
