"""The messages of the bus: what they say, not how they look as bytes.

Each is an immutable tuple whose annotations are its schema: `wire.py` checks
incoming arrays against them. The grammar for writing a client in another
language is in `docs/protocol.md`; the pattern is ZeroMQ's Majordomo (guide,
chapter 4) with credit, attempts and acknowledged results added.

A *tag* is a number the client chooses; answers carry it back. A *ref* names
a step: `from:job_id`, or `from>to:job_id` for a fan-out.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

VERSION = 1


class Outcome(IntEnum):
    """How an attempt ended, as the worker saw it."""

    done = 0
    failed = 1  # the function raised, or ran out of time or memory
    crashed = 2  # the slot's process died
    returned = 3  # given back before it was started


# --- conversation ---------------------------------------------------------


class Hello(NamedTuple):
    """The first message of every peer, and again after a router's restart."""

    version: int
    role: str  # client, worker, runner, app, controller
    session: str  # made new at each boot of the peer
    token: str  # reserved for access rules
    info: dict[str, Any]


class Welcome(NamedTuple):
    version: int
    session: str
    epoch: int  # rises at every start of the router
    heartbeat_s: float
    misses: int
    limits: dict[str, Any]
    endpoints: dict[str, Any]  # results, events, and jobs for a worker
    shard: str  # this router's, "" when it is the only one
    shards: dict[str, Any]  # of all of them: name -> endpoint


class Bye(NamedTuple):
    session: str
    reason: str


class Error(NamedTuple):
    code: str
    message: str
    field: str
    fix: str


class Moved(NamedTuple):
    """What has these tags belongs to another shard, and nothing of it was kept."""

    tags: tuple[int, ...]
    shard: str
    endpoint: str


# --- clients --------------------------------------------------------------


class Item(NamedTuple):
    """One command of a SUBMIT. `data` is msgpack inside msgpack's bin type."""

    tag: int
    from_: str
    to: Any  # a name, or a list of names
    cmd: str
    data: bytes
    job_id: str
    options: dict[str, Any]
    notify: bool  # send DONE when it ends
    flow: int = 0  # 0: starts; -1: waits for what feeds it; else those with one number are a workflow, all or nothing


class Submit(NamedTuple):
    items: tuple[Item, ...]


class Answer(NamedTuple):
    """The state of one step.

    `body` is the result's bytes in state 3, [error bytes, attempts] in state
    4, nil before; with state -1 it is [code, message, field, fix].
    """

    tag: int
    state: int
    body: Any


class SubmitAck(NamedTuple):
    answers: tuple[Answer, ...]


class Done(NamedTuple):
    answers: tuple[Answer, ...]


class Query(NamedTuple):
    tag: int
    job_id: str
    from_: str
    to: str
    notify: bool


class Status(NamedTuple):
    queries: tuple[Query, ...]


class StatusReply(NamedTuple):
    answers: tuple[Answer, ...]


class Change(NamedTuple):
    """Cancel a whole job, retry what failed of it, or purge it; stop a runner, all of a type, or restart one."""

    tag: int
    what: str  # cancel, retry, purge: of a job; stop, restart: of a runner
    name: str  # a job_id; type:uuid, or for a stop a type alone


class Tune(NamedTuple):
    """Change what is kept beside jobs: a timer, or the settings of a queue.

    CHANGED answers: 1 when that changed something, 0 when it was so already.
    """

    tag: int
    kind: str  # timer, queue
    what: str  # add: there is none yet; put: these fields alone; merge: these fields; remove
    name: str
    fields: dict[str, Any]  # nil as a value takes a field away


class Start(NamedTuple):
    """Start a runner. CHANGED answers: 1 step when it is new, 0 when it was there already."""

    tag: int
    type: str
    uuid: str
    target: str
    data: bytes
    grace_s: float  # how long it may take to stop; -1: as its daemon's settings say
    job: str  # the ref of the job that starts it, or ""


class Changed(NamedTuple):
    """How many steps, or runners, have changed; or -1 and [code, message, field, fix]."""

    tag: int
    steps: int
    problem: Any


class Busy(NamedTuple):
    """These commands were not taken; send them again after `retry_s`."""

    tags: tuple[int, ...]
    reason: str
    retry_s: float


# --- workers --------------------------------------------------------------


class Job(NamedTuple):
    ref: str
    attempt: int
    to: str
    cmd: str
    data: bytes
    timeout_s: float
    traceparent: str = ""  # "" for none


class Jobs(NamedTuple):
    epoch: int
    jobs: tuple[Job, ...]


class Held(NamedTuple):
    ref: str
    attempt: int


class Note(NamedTuple):
    """What a running step has to tell: progress from 0 to 1, and its log so far."""

    ref: str
    attempt: int
    fraction: float
    text: str
    log: str


class Added(NamedTuple):
    """A step that a function adds to its own job."""

    from_: str
    to: Any  # a name, or a list of names
    cmd: str
    data: bytes
    options: dict[str, Any]


class Report(NamedTuple):
    """One finished attempt. `body` is msgpack: the result, or the error's map."""

    ref: str
    attempt: int
    outcome: int
    body: bytes
    log: str
    began_ms: int
    ended_ms: int
    added: tuple[Added, ...] = ()


class Result(NamedTuple):
    session: str
    reports: tuple[Report, ...]


class ResultAck(NamedTuple):
    acks: tuple[Held, ...]


class Cancel(NamedTuple):
    """To a worker: these attempts are not wanted any more. End them; nobody waits for their results."""

    attempts: tuple[Held, ...]


class Heartbeat(NamedTuple):
    """Credit in absolute numbers: how many jobs the worker may hold in all.

    `slots` of them run at once, the rest is prefetch. A client sends zeros.
    """

    session: str
    epoch: int
    slots: int
    capacity: int
    held: tuple[Held, ...]
    notes: tuple[Note, ...]


class StopName(NamedTuple):
    type: str
    uuid: str


class HeartbeatAck(NamedTuple):
    session: str
    epoch: int
    seq: int  # of the newest event published
    stops: tuple[StopName, ...]  # the newest, in case their event was lost


class Drain(NamedTuple):
    """A worker takes no more jobs and will say BYE when its last one ended."""

    session: str


# --- runners --------------------------------------------------------------
#
# A *name* is `type:uuid`; a runner's epoch counts its lives, from 1.


class Launch(NamedTuple):
    """One life of a runner, for the daemon that is to host it."""

    name: str
    epoch: int
    target: str
    data: bytes
    grace_s: float


class Launches(NamedTuple):
    launches: tuple[Launch, ...]


class Told(NamedTuple):
    """What a life tells of itself. `fraction` is -1 for none; `log` is what was added, the chunk of that number."""

    name: str
    epoch: int
    pid: int
    began_ms: int
    fraction: float
    text: str
    cpu_s: float
    memory_bytes: int
    chunk: int
    log: str


class Telling(NamedTuple):
    session: str
    told: tuple[Told, ...]


class Exit(NamedTuple):
    """A life is over. `ending` is one of `runner.Ending`; `body` is msgpack: the error's map, or empty."""

    name: str
    epoch: int
    ending: int
    body: bytes
    lived_ms: int


class Exits(NamedTuple):
    """Sent again until RESULT_ACK names them."""

    session: str
    exits: tuple[Exit, ...]


# --- upkeep ---------------------------------------------------------------


class Find(NamedTuple):
    """Something that stands in Redis and is to be looked at; the kinds are those of mend.lua."""

    kind: str
    place: str  # the queue, session or type it was found in, or ""
    name: str
    at: str  # where to go on with one that takes several looks; "" at first


class Mend(NamedTuple):
    """Only from the controller: look whether these fit together, and mend what does not."""

    tag: int
    finds: tuple[Find, ...]


class Repair(NamedTuple):
    """What was mended: `kind` is one of `mending.REPAIRS`."""

    kind: str
    name: str


class Mended(NamedTuple):
    """How many of the finds were looked at, from the first on: 0 when the store is away; those to go on with."""

    tag: int
    done: int
    again: tuple[Find, ...]
    repairs: tuple[Repair, ...]


# --- application servers --------------------------------------------------
#
# These two go straight between a caller and an instance, not through the router.


class Call(NamedTuple):
    """Call a method. `args` is msgpack of [positional arguments, named ones]."""

    tag: int
    method: str
    args: bytes
    timeout_s: float  # a call that could not begin for so long is not run


FAREWELL = 0  # the tag of the last RETURN on a line: no call that it did not answer was or will be run


class Return(NamedTuple):
    """The end of a call. `body` is msgpack: the value, or the map of what went wrong."""

    tag: int  # from 1, or FAREWELL
    ok: bool
    body: bytes


# --- events ---------------------------------------------------------------


class Stop(NamedTuple):
    """This runner is to stop. `uuid` may be empty: all of a type.

    From the controller, which saw it in Redis; and to a runner daemon, of a
    runner that it hosts.
    """

    type: str
    uuid: str


class Sync(NamedTuple):
    """Ask for a SNAPSHOT of the named parts: stops, workers, functions, apps, figures, metrics and more."""

    tag: int
    parts: tuple[str, ...]


class Snapshot(NamedTuple):
    tag: int
    epoch: int
    seq: int
    parts: dict[str, Any]


class Event(NamedTuple):
    """Published on PUB behind a topic frame; a gap in `seq` means: send SYNC."""

    epoch: int
    seq: int
    body: Any


Reply = Snapshot | Changed | Mended  # what answers a question with a tag

Message = (
    Hello
    | Welcome
    | Bye
    | Error
    | Moved
    | Submit
    | SubmitAck
    | Done
    | Status
    | StatusReply
    | Change
    | Changed
    | Cancel
    | Busy
    | Jobs
    | Result
    | ResultAck
    | Heartbeat
    | HeartbeatAck
    | Drain
    | Start
    | Tune
    | Launches
    | Telling
    | Exits
    | Mend
    | Mended
    | Call
    | Return
    | Stop
    | Sync
    | Snapshot
    | Event
)
