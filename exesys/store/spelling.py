"""How steps, claims and runners are spelt for the Lua, and how its answers are read. Pure.

What stands here on one side stands in the head of the script on the other.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack

from exesys.bus.messages import Find, Repair
from exesys.command import DEFAULT_PRIORITY, DEFAULT_QUEUE, digest_of
from exesys.states import State
from exesys.turn import (
    Assign,
    Claim,
    Ended,
    Enlist,
    Found,
    Halt,
    Loglines,
    Looked,
    Noted,
    Placed,
    Revive,
    RunnerDone,
    RunnerOp,
    Stored,
    Taken,
)
from exesys.workflow import Graph

STATES = tuple(State)
NEW = Taken("new", "", State.start, None)
# Options that a step's record keeps.
RECORDED = ("timeout_s", "retries", "backoff_s", "key", "key_limit", "notify", "traceparent", "result_ttl_s")

Argument = str | bytes | int | float


# --- to the scripts -------------------------------------------------------


def values(*given: Any) -> bytes:
    """Write at most 15 values so that Lua has them by `cmsgpack.unpack`, each by itself.

    Half the price, on both sides, of an argument for each.
    """
    # It has no format for bytes; and without the one byte that says how many there are, they are no array.
    packed: bytes = msgpack.packb(given, use_bin_type=False)
    return packed[1:]


def step(placed: Placed) -> tuple[bytes, bytes]:
    """Spell a step as step.lua reads it; of the options those that a record keeps."""
    command, options, peer, due_ms, waits = placed
    from_, to, cmd, data, _, _ = command
    digest = digest_of(cmd, data)
    if not options:
        return values(from_, to, cmd, digest, peer, due_ms, waits), data
    recorded = [part for name in RECORDED if name in options for part in (name, _plain(options[name]))]
    if "result_ttl_s" in options:
        recorded[-1] = str(math.ceil(options["result_ttl_s"]))  # EXPIRE takes whole seconds
    queue, priority = options.get("queue", DEFAULT_QUEUE), options.get("priority", DEFAULT_PRIORITY)
    return values(from_, to, cmd, digest, peer, due_ms, waits, queue, priority, recorded), data


def _plain(value: Any) -> str | bytes:
    """Spell a value as Redis keeps it."""
    return value if isinstance(value, str | bytes) else str(value)


def runner_op(op: RunnerOp) -> list[Argument]:
    """Spell an operation as runner.lua reads it."""
    match op:
        case Enlist(_, target, data, digest, grace_s, job):
            told: list[Argument] = ["target", target, "data", data, "size", len(data), "grace_s", grace_s, "job", job]
            return ["enlist", digest, *told]
        case Assign(_, epoch, session, host):
            return ["assign", epoch, session, host]
        case Noted(_, epoch, final, fields):
            return ["note", epoch, int(final), *(part for pair in fields.items() for part in pair)]
        case Halt(name, loaded):
            return ["forget" if not name.uuid else "heed" if loaded else "halt"]
        case Revive():
            return ["revive"]
        case Loglines(_, epoch, chunk, text):
            return ["log", epoch, chunk, text]


def flow_fields(graph: Graph) -> list[Argument]:
    """Spell a graph as graph.lua keeps it."""
    fields: list[Argument] = []
    for name, steps in graph.named.items():
        feeders = graph.feeders.get(name)
        if feeders:
            fields += (f"<{name}", "\n".join([graph.firsts[number] for number in feeders]), f"#{name}", len(feeders))
        if len(steps) > 1:
            fields += (f">{name}", "\n".join([graph.firsts[number] for number in steps[1:]]))
    return fields


def spelt_claims(claims: list[Claim]) -> list[Argument]:
    """Write claims as the scripts read them (deal.lua)."""
    arguments: list[Argument] = [len(claims)]
    for session, count, queues in claims:
        arguments += (session, count, len(queues), *queues)
    return arguments


# --- from the scripts -----------------------------------------------------


def text(raw: bytes | None) -> str:
    """Read text; nil is empty."""
    return raw.decode() if raw else ""


def body_of(state: int, raw: Any) -> Any:
    """Read what `body_of` in common.lua gives."""
    if state == State.error and raw:
        return [raw[0] or b"", int(raw[1] or 0)]
    return raw


def taken(raw: Any) -> Taken:
    if raw == 1:
        return NEW
    verdict, ref, state, body, others = raw
    also = tuple(failed(each) for each in others)
    return Taken(verdict.decode(), ref.decode(), STATES[state], body_of(state, body), also)


def failed(raw: Any) -> Ended:
    """Read one of the steps that graph.lua says failed."""
    ref, attempt, peer, body, cmd = raw
    return Ended(ref.decode(), int(attempt), False, State.error, text(peer), [body, int(attempt)], cmd=text(cmd))


def stored(raw: Any) -> Stored:
    verdict, ref, steps = raw
    return Stored(
        verdict.decode(),
        ref.decode(),
        tuple([(step.decode(), STATES[state], body_of(state, body)) for step, state, body in steps]),
    )


def done(raw: Any) -> RunnerDone:
    verdict, flat = raw
    return RunnerDone(verdict.decode(), dict(zip(flat[::2], flat[1::2], strict=True)))


def found(raw: Any) -> Found:
    ref, state, body = raw
    return Found(ref.decode(), None if state < 0 else STATES[state], body_of(state, body))


def _anything(raw: bytes) -> str:
    # It may be a name that somebody wrote by hand.
    return raw.decode("utf-8", "replace")


def looked(raw: Any) -> Looked:
    """Read what mend.lua gives."""
    done, again, repairs, strays, rejoined, ended = raw
    return Looked(
        int(done),
        tuple([Find(*map(text, find)) for find in again]),
        tuple([Repair(*map(_anything, repair)) for repair in repairs]),
        tuple(map(_anything, strays)),
        tuple(map(_anything, rejoined)),
        tuple([failed(each) for each in ended]),
    )
