"""What holds of everything in a store, whatever was done."""

from __future__ import annotations

from typing import NamedTuple

from store.fake import Dump

from exesys.command import END, parts_of
from exesys.states import State


class Record(NamedTuple):
    state: State
    fields: dict[str, bytes]
    ttl_s: int | None


def records(dump: Dump) -> dict[str, Record]:
    """Return the records by ref. Each step stands in one state."""
    found: dict[str, Record] = {}
    for key, (value, ttl_s) in dump.items():
        ref, _, state = key.rpartition(":")
        if state in State.__members__ and not key.startswith("exesys:"):
            assert ref not in found, f"{ref} stands in two states"
            found[ref] = Record(State[state], value, ttl_s)
    return found


def check_places(dump: Dump) -> None:
    """Each step has one record; one that waits is in one queue, one that runs is with its worker."""
    steps = records(dump)
    places: dict[str, list[str]] = {}
    for key, (value, _) in dump.items():
        if key.startswith(("exesys:ready:", "exesys:lane:", "exesys:held:", "exesys:delayed", "exesys:standby")):
            for member in value:
                places.setdefault(member, []).append(key)
    assert places.keys() <= steps.keys()
    for ref, (state, fields, _) in steps.items():
        at = places.get(ref, [])
        if state is State.start:
            queue, key = (fields.get(name, b"default").decode() for name in ("queue", "key"))
            waits = f"exesys:lane:{queue}={key}" if "key" in fields else f"exesys:ready:{queue}"
            assert at in ([waits], ["exesys:delayed"]), (ref, at)
        elif state is State.processing:
            assert at == [f"exesys:held:{fields['worker'].decode()}"]
        elif state is State.standby:
            assert at == (["exesys:standby"] if "unfed" in fields else []), (ref, at)
        else:
            assert not at, (ref, at)
            assert not {"peer", "worker", "sent", "progress", "note", "unfed"} & fields.keys()
    check_queues(dump, steps)
    for key, (value, ttl_s) in dump.items():
        if key.startswith("exesys:job:"):
            check_job(dump, steps, key.removeprefix("exesys:job:"), value, ttl_s)
        elif key.startswith("exesys:flow:"):
            assert f"exesys:job:{key.removeprefix('exesys:flow:')}" in dump


def check_queues(dump: Dump, steps: dict[str, Record]) -> None:
    """Lanes have turns unless enough of their key run, and what counts as running does."""
    counted: dict[str, set[str]] = {}
    for ref, (state, fields, _) in steps.items():
        queue = fields.get("queue", b"default").decode()
        assert state is State.processing or "counted" not in fields, ref
        if state is State.processing and "counted" in fields:
            counted.setdefault(queue, set()).add(ref)
        if state is State.processing and "key" in fields:
            counted.setdefault(f"{queue}={fields['key'].decode()}", set()).add(ref)
    running = {key.removeprefix("exesys:running:"): value for key, (value, _) in dump.items() if ":running:" in key}
    assert running == counted
    lanes: dict[str, set[str]] = {}
    for key, (value, _) in dump.items():
        if key.startswith("exesys:lane:"):
            queue, _, called = key.removeprefix("exesys:lane:").partition("=")
            lanes.setdefault(queue, set()).update(value)
            turns = dump.get(f"exesys:turns:{queue}", ({}, None))[0]
            assert called in turns or f"{queue}={called}" in running, f"{called} never gets a turn in {queue}"
    keyed = {key.removeprefix("exesys:keyed:"): value for key, (value, _) in dump.items() if ":keyed:" in key}
    assert keyed == lanes


def check_job(
    dump: Dump, steps: dict[str, Record], job_id: str, index: dict[str, bytes], ttl_s: int | None, took_s: float = 0.0
) -> None:
    """What a job counts is so, and it expires as one when its last step ended; it ended within `took_s`."""
    mine = {first: steps[f"{first}:{job_id}"] for first in index if not first.startswith(":")}
    unfinished = sum(not record.state.final for record in mine.values())
    assert int(index.get(":open", unfinished)) == unfinished
    lives = [dump[f"exesys:log:{first}:{job_id}"][1] for first in mine if f"exesys:log:{first}:{job_id}" in dump]
    lives += [record.ttl_s for record in mine.values()] + [ttl_s]
    flow = {}
    if f"exesys:flow:{job_id}" in dump:
        flow, flow_lives = dump[f"exesys:flow:{job_id}"]
        lives.append(flow_lives)
    assert {life is None for life in lives} == {bool(unfinished)}, (job_id, lives)
    if unfinished == 0:
        known = [life for life in lives if life is not None]
        assert max(known) - min(known) <= 5 + took_s, (job_id, lives)
    for first, record in mine.items():
        assert record.state.final or ("many" in record.fields) == (":open" in index), (first, record)
    if ":open" in index:
        check_flow(mine, index, flow)


def check_flow(mine: dict[str, Record], index: dict[str, bytes], flow: dict[str, bytes]) -> None:
    """The graph that is kept is that of the steps, and no step waits for nothing."""
    feeders: dict[str, set[str]] = {}
    named: dict[str, set[str]] = {}
    for first in mine:
        named.setdefault(first.partition(">")[0], set()).add(first)
        for name in index[first].decode().split(","):
            if name != END:
                feeders.setdefault(name, set()).add(first)
    listed = {field: value.decode().split("\n") for field, value in flow.items() if field[0] in "<>"}
    assert {name: set(listed[f"<{name}"]) for name in feeders} == feeders
    assert all(len(set(each)) == len(each) for each in listed.values())
    counts = {field for field in flow if field[0] == "#"}
    assert counts == {f"#{name}" for name in feeders}
    for name, firsts in feeders.items():
        unended = sum(mine[first].state is not State.data_available for first in firsts)
        assert int(flow[f"#{name}"]) == unended, (name, flow)
    for name, firsts in named.items():
        assert {name, *listed.get(f">{name}", ())} >= firsts
    for first, (state, fields, _) in mine.items():
        name = parts_of(first)[0]
        if state is State.standby:
            fed = feeders.get(name, set())
            assert (not fed) <= ("unfed" in fields)
            assert not fed or any(mine[feeder].state is not State.data_available for feeder in fed), f"{first} is stuck"
            assert not any(mine[feeder].state is State.error for feeder in fed), f"{first} can never be fed"
