"""A command: what a client sends, checked. Pure; the same checks at every door.

REST, the Python client and the router all build commands here, so a name
that one of them refuses, all refuse. Data is already packed (see `codec`):
only the slot that runs the function opens it.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from exesys import callbacks, codec, trace
from exesys.errors import BadCommand, ExesysError, TooLarge, nearest

END = "end_job"
DEFAULT_FROM = "client"
DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 4
MAX_TARGETS = 10_000
MAX_SECONDS = 366 * 86_400
MAX_RETRIES = 1_000

Schema = Mapping[str, Any]  # JSON Schema

NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
NAME_SCHEMA: Schema = {"type": "string", "pattern": f"^{NAME.pattern}$"}
REF = re.compile(rf"{NAME.pattern}(>[A-Za-z0-9_.,-]+)?:{NAME.pattern}")
FIELDS = ("from", "to", "cmd", "data", "job_id")
# A record's key begins with its step's `from`; two names begin the system's own keys, one ends jobs.
RESERVED = frozenset({"exesys", "run", END})
_NAME_RULE = "Use 1 to 128 of the characters A-Z a-z 0-9 _ . -"


class Limits(NamedTuple):
    """How much one command may be. Units in the names."""

    data_bytes: int = 1 << 20
    depth: int = 100


def digest_of(cmd: str, data: bytes) -> bytes:
    """Return what tells whether two commands for the same function have the same data."""
    return hashlib.blake2b(cmd.encode() + b"\0" + codec.regular(data), digest_size=9).digest()


class Command(NamedTuple):
    """One checked command.

    `data` is msgpack; `options` holds only what was given, under the names
    of the wire (`at` as RFC 3339 text). `to` joins a list by commas.
    """

    from_: str
    to: str
    cmd: str
    data: bytes
    job_id: str
    options: Mapping[str, Any]

    @property
    def digest(self) -> bytes:
        """Nine bytes that tell whether two commands ask for the same work."""
        return digest_of(self.cmd, self.data)


@functools.lru_cache(maxsize=4096)
def _is_name(text: str) -> bool:
    return NAME.fullmatch(text) is not None


def check_name(value: Any, field: str) -> str:
    """Return the name, or raise BadCommand saying what is wrong with it."""
    if type(value) is str and len(value) <= 128 and _is_name(value):
        return value
    return _other_name(value, field)


def _other_name(value: Any, field: str) -> str:
    """Return the plain text of a name of a subclass of str, such as a StrEnum's member; or raise BadCommand."""
    if isinstance(value, str) and NAME.fullmatch(value):
        return value[:]
    if not isinstance(value, str):
        problem = f"`{field}` must be a string, not {_json_type(value)}."
    elif not value:
        problem = f"`{field}` is empty."
    elif len(value) > 128:
        problem = f"`{field}` has {len(value)} characters."
    else:
        bad = next(char for char in value if not NAME.fullmatch(char))
        problem = f"`{field}` holds the character {bad!r}."
    raise BadCommand(problem, field=field, fix=_NAME_RULE)


def _check_job_id(value: Any) -> str:
    """Check as `check_name` does what comes but once, so that it is not worth being remembered."""
    return value if type(value) is str and NAME.fullmatch(value) else _other_name(value, "job_id")


def check_to(value: Any) -> str:
    """Return the target, a list joined by commas."""
    if not isinstance(value, (list, tuple)):
        return check_name(value, "to")
    if not 1 <= len(value) <= MAX_TARGETS:
        raise BadCommand(f"`to` lists {len(value)} names.", field="to", fix=f"List 1 to {MAX_TARGETS:,} names.")
    names = [check_name(name, "to") for name in value]
    if len(set(names)) != len(names):
        raise BadCommand("`to` lists a name twice.", field="to", fix="List each name once.")
    return ",".join(names)


class Number(NamedTuple):
    """The rule of an option that is a number."""

    low: float
    high: float
    unit: str

    def __call__(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            quoted = ", without quotes" if isinstance(value, str) else ""
            fix = f"Give {self.low:g} to {self.high:,.0f} {self.unit}{quoted}."
            raise BadCommand(f"`{key}` must be a number, not {_json_type(value)}.", field=key, fix=fix)
        if not self.low <= value <= self.high:  # so is NaN refused; an integer may be too large for a float
            fix = f"Give {self.low:g} to {self.high:,.0f} {self.unit}."
            raise BadCommand(f"`{key}` is {value!r:.40}.", field=key, fix=fix)
        return value

    @property
    def schema(self) -> Schema:
        return {"type": "number", "minimum": self.low, "maximum": self.high}


class Whole(NamedTuple):
    """The rule of an option that is a whole number."""

    low: int
    high: int

    def __call__(self, key: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # to JSON, 3.0 is 3
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            fix = f"Give a whole number, {self.low} to {self.high:,}."
            raise BadCommand(f"`{key}` is {value!r:.40}.", field=key, fix=fix)
        return value

    @property
    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


class Text(NamedTuple):
    """The rule of an option that is text: what checks it, and what JSON Schema can say of that."""

    check: Callable[[str, Any], str]
    schema: Schema

    def __call__(self, key: str, value: Any) -> str:
        return self.check(key, value)


def _moment(key: str, value: Any) -> str:
    due_ms(value)
    return str(value)


def _traceparent(key: str, value: Any) -> str:
    """Return what is handed on; "" for one that is malformed, which is as good as none."""
    if not isinstance(value, str):
        fix = "Send it as it came in the header, or leave it out."
        raise BadCommand(f"`{key}` must be a string, not {_json_type(value)}.", field=key, fix=fix)
    return trace.parent(value)


_NAMED = Text(lambda key, value: check_name(value, key), NAME_SCHEMA)
OPTIONS: dict[str, Number | Whole | Text] = {
    "queue": _NAMED,
    "priority": Whole(0, 9),
    "delay_s": Number(0, MAX_SECONDS, "seconds"),
    "at": Text(_moment, {"type": "string", "format": "date-time"}),
    "timeout_s": Number(0.01, MAX_SECONDS, "seconds"),
    "retries": Whole(0, MAX_RETRIES),
    "backoff_s": Number(0, 86_400, "seconds"),
    "key": _NAMED,
    "key_limit": Whole(1, 10_000),
    "result_ttl_s": Number(1, MAX_SECONDS, "seconds"),
    "notify": Text(lambda key, value: callbacks.check_url(value), callbacks.URL_SCHEMA),
    "traceparent": Text(_traceparent, {"type": "string"}),
}


class Options(TypedDict, total=False):
    """The options of a command as keyword arguments; `OPTIONS` has their rules."""

    queue: str
    priority: int
    delay_s: float
    at: str
    timeout_s: float
    retries: int
    backoff_s: float
    key: str
    key_limit: int
    result_ttl_s: float
    notify: str
    traceparent: str


class Sending(Options, total=False):
    """What a client may say of a command by name: the options, and which step it is."""

    job_id: str | None
    from_: str
    to: str | Sequence[str]
    standby: bool


def due_ms(at: Any) -> int:
    """Turn RFC 3339 text into milliseconds since 1970. Raises BadCommand."""
    fix = "Write it like 2026-01-31T12:00:00Z or 2026-01-31T13:00:00+01:00."
    if not isinstance(at, str):
        raise BadCommand(f"`at` must be a string, not {_json_type(at)}.", field="at", fix=fix)
    try:
        moment = dt.datetime.fromisoformat(at)
    except ValueError:
        raise BadCommand(f"`at` is {at!r:.60}, which is no date and time.", field="at", fix=fix) from None
    if moment.tzinfo is None:
        raise BadCommand(f"`at` is {at!r:.60}, which has no time zone.", field="at", fix=fix)
    return int(moment.timestamp() * 1000)


def check_options(given: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the options, each checked. Raises BadCommand naming the key."""
    checked: dict[str, Any] = {}
    for key, value in given.items():
        check = OPTIONS.get(key)
        if check is None:
            raise _unknown_key(key)
        kept = check(key, value)
        if kept != "":
            checked[key] = kept
    if "at" in checked and "delay_s" in checked:
        raise BadCommand("`at` and `delay_s` are both given.", field="at", fix="Give one of them.")
    return checked


def build(from_: Any, to: Any, cmd: Any, data: bytes, job_id: Any, options: Mapping[Any, Any]) -> Command:
    """Make a command from parts. Raises BadCommand; the data is not looked at."""
    name = check_name(from_, "from")
    if name in RESERVED:
        raise BadCommand(f"`from` is {name!r}, a name of the system's own.", field="from", fix="Choose another name.")
    return Command(
        name,
        check_to(to),
        check_name(cmd, "cmd"),
        data,
        _check_job_id(job_id),
        check_options(options) if options else {},
    )


def from_json(body: Any, limits: Limits, new_id: Callable[[], str], traceparent: str = "") -> Command:
    """Make a command from the JSON object a client sent over REST.

    `new_id` makes the job_id when there is none; `traceparent` is that of a
    command without one. Raises BadCommand or TooLarge.
    """
    if not isinstance(body, dict):
        raise BadCommand(
            f"a command must be a JSON object, not {_json_type(body)}.",
            fix='Send {"from": …, "to": …, "cmd": …, "data": …, "job_id": …}.',
        )
    if "cmd" not in body:
        unknown = [key for key in body if key not in FIELDS and key not in OPTIONS]
        if unknown:
            raise _unknown_key(unknown[0])
        raise BadCommand("`cmd` is missing.", field="cmd", fix="Name the function to run.")
    codec.check_depth(body.get("data"), limits.depth)
    data = codec.pack(body.get("data"))
    if len(data) > limits.data_bytes:
        raise TooLarge(
            f"the data has {len(data):,} bytes; at most {limits.data_bytes:,} are allowed.",
            field="data",
            fix="Send less, store it elsewhere and send a reference, or raise [limits] data_bytes.",
        )
    options = {key: value for key, value in body.items() if key not in FIELDS}
    if traceparent:
        options.setdefault("traceparent", traceparent)
    job_id = body["job_id"] if "job_id" in body else new_id()
    return build(body.get("from", DEFAULT_FROM), body.get("to", END), body["cmd"], data, job_id, options)


def workflow_from_json(
    bodies: Sequence[Any], limits: Limits, new_id: Callable[[], str], traceparent: str = ""
) -> list[Command]:
    """Make the commands of a workflow from the objects a client sent.

    All have one job_id: that which any of them names, else one of `new_id`;
    `traceparent` is that of commands without one. Raises BadCommand or TooLarge, saying which of them it is about.
    """
    named = [body["job_id"] for body in bodies if isinstance(body, dict) and "job_id" in body]
    for other in named:
        if other != named[0]:
            raise BadCommand(
                f"the workflow names two jobs, {named[0]!r:.60} and {other!r:.60}.",
                field="job_id",
                fix="Give all its commands the same job_id, or none.",
            )
    job_id = check_name(named[0], "job_id") if named else new_id()
    commands = []
    for place, body in enumerate(bodies, 1):
        try:
            named_body = {**body, "job_id": job_id} if isinstance(body, dict) else body
            commands.append(from_json(named_body, limits, new_id, traceparent))
        except ExesysError as error:
            error.message = f"command {place} of {len(bodies)}: {error.message}"
            raise
    return commands


def _unknown_key(key: Any) -> BadCommand:
    known = [*FIELDS, *OPTIONS]
    shown = str(key)[:60].encode(errors="backslashreplace").decode()  # half a surrogate pair cannot be answered
    close = nearest(shown, known)
    fix = f"Did you mean `{close}`?" if close else f"Known keys: {', '.join(known)}."
    return BadCommand(f"the key {shown!r} is unknown.", field=shown, fix=fix)


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")


def parts_of(ref: str) -> tuple[str, str]:
    """Split a step's ref, `from:job_id` or `from>to:job_id`, into from and job_id."""
    first, _, job_id = ref.partition(":")
    return first.partition(">")[0], job_id
