"""What is sent to REST and what it answers, as JSON Schema (2020-12), by name. Pure.

What a command, a timer or a queue may have comes from the tables by which
those are checked, and the limits from the settings. The tests hold real
answers against the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exesys import command, news, queues, runner, schedule
from exesys.config import Limits
from exesys.states import State
from exesys.tokens import Role

Schema = Mapping[str, Any]

ANY: Schema = {}
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
MOMENT: Schema = {"type": "integer", "description": "milliseconds since 1970"}
LONGEST_WAIT_S = 300.0
MOST_LISTED = 1000
MOST_ENDED = 10_000  # runners that have ended
MARK = "[1-9][0-9]{0,17}(-[0-9]{1,18})?"


def ref(name: str) -> Schema:
    """Return what stands for the schema of this name in a document."""
    return {"$ref": f"#/components/schemas/{name}"}


def record(needed: Mapping[str, Schema], more: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of an object that has all of the `needed` properties, perhaps those in `more`, no others."""
    properties = {**needed, **(more or {})}
    return {"type": "object", "properties": properties, "required": [*needed], "additionalProperties": False}


def list_of(items: Schema, **limits: Any) -> Schema:
    return {"type": "array", "items": items, **limits}


def map_of(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def one_of(names: Any) -> Schema:
    return {"type": "string", "enum": list(names)}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


def whole(pattern: str) -> Schema:
    """Return the schema of text that fits a pattern from end to end."""
    return {"type": "string", "pattern": f"^({pattern})$"}


STATE: Mapping[str, Schema] = {"status": {"type": "integer", "enum": [*map(int, State)]}, "state": ref("State")}
EDGE: Mapping[str, Schema] = {"from": TEXT, "to": ref("To"), "cmd": TEXT}
PROGRESS = record({"fraction": or_null({"type": "number", "minimum": 0, "maximum": 1}), "text": TEXT})
TRACED = record({"type": TEXT, "message": TEXT}, {"traceback": TEXT})
NEXT = {**or_null(TEXT), "description": "where the next page begins: the parameter `before` or `after`"}
RESULT: Schema = {"type": "object", "properties": {"EOJ": ANY}, "required": ["EOJ"]}
TIMES = {name: MOMENT for name in ("accepted_ms", "sent_ms", "began_ms", "ended_ms")}
JOB: Mapping[str, Schema] = {"job_id": ref("Name"), **STATE, "steps": list_of(ref("Step"))}
EOJ: Mapping[str, Schema] = {"EOJ": {"description": "the job's value, once all its steps have ended well"}}


def parameters() -> dict[str, Schema]:
    """Return the schemas of what stands in paths, queries and headers."""
    return {
        "Name": command.NAME_SCHEMA,
        "Text": TEXT,
        "Wait": {
            "type": "number",
            "minimum": 0,
            "maximum": LONGEST_WAIT_S,
            "description": "seconds to wait for the end",
        },
        "Timeout": {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST_WAIT_S, "description": "seconds"},
        "Limit": {"type": "integer", "minimum": 1, "maximum": MOST_LISTED, "description": "so many at most"},
        "Ended": {"type": "integer", "minimum": 0, "maximum": MOST_ENDED, "description": "so many that have ended"},
        "Mark": {**whole(MARK), "description": "`next` of the page before"},
        "Moment": {
            "anyOf": [{"type": "string", "format": "date-time"}, whole("[0-9]{1,15}")],
            "description": "a time: RFC 3339, or milliseconds since 1970",
        },
        "Kinds": {
            **whole(f"({'|'.join(news.KINDS)})(,({'|'.join(news.KINDS)}))*"),
            "description": "which events, with commas between; step,progress when left out",
        },
        "EventId": {
            **whole(news.MARK.pattern),
            "description": "the id of the last event that was had",
        },
        "OlderS": {"type": "number", "minimum": 0, "maximum": command.MAX_SECONDS, "description": "seconds"},
        "Bytes": {"type": "integer", "minimum": 0, "maximum": 1 << 62, "description": "how much was read before"},
        "RunnerType": whole(runner.TYPE.pattern),
        "RunnerUuid": whole(runner.UUID.pattern),
        "Operation": {**whole("([Ww]orkflow)?"), "description": "a step that waits, or a whole workflow"},
        "Prefer": {**TEXT, "description": "`wait=5` waits for the end, as the parameter does (RFC 7240)"},
    }


def sent(limits: Limits) -> dict[str, Schema]:
    """Return the schemas of what is sent."""
    options = {name: rule.schema for name, rule in command.OPTIONS.items()}
    targets = list_of(ref("Name"), minItems=1, maxItems=command.MAX_TARGETS, uniqueItems=True)
    data: Schema = {
        "default": None,
        "description": f"any JSON whose whole numbers have at most 64 bits, at most {limits.data_bytes:,} bytes as "
        f"MessagePack and {limits.depth} deep",
    }
    step: dict[str, Schema] = {
        "from": {"allOf": [ref("Name")], "not": {"enum": sorted(command.RESERVED)}, "default": command.DEFAULT_FROM},
        "to": {"anyOf": [ref("Name"), targets], "default": command.END},
        "data": data,
        "job_id": {"allOf": [ref("Name")], "description": "a new one when left out"},
    }
    return {
        "Command": {
            **record({"cmd": ref("Name")}, {**step, **options}),
            "not": {"required": ["at", "delay_s"]},
            "examples": [{"cmd": "add", "data": [1, 2, 3]}],
        },
        "Commands": {
            "anyOf": [ref("Command"), list_of(ref("Command"), minItems=1, maxItems=limits.array)],
            "description": f"one command, or an array of them; a workflow has at most {limits.workflow_steps:,} steps",
        },
        "NewTimer": _new_timer(data, options),
        "NewRunner": record(
            {"target": ref("Name")},
            {
                "data": data,
                "type": or_null(ref("RunnerType")),
                "uuid": or_null(ref("RunnerUuid")),
                "grace_s": {"anyOf": [{"type": "number", "minimum": 0, "maximum": runner.MAX_GRACE_S}, NULL]},
            },
        ),
        "QueueSettings": record(
            {},
            {
                "depth": _limit(queues.MOST),
                "rate": or_null({**whole("(([1-9][0-9]{0,3}|10000)/[smhd])?"), "examples": ["100/m"]}),
                "concurrency": _limit(queues.MOST_AT_ONCE),
                "key_limit": _limit(queues.MOST_OF_A_KEY),
                "paused": or_null(FLAG),
            },
        ),
        "Arguments": {"description": "an array of positional arguments, an object of named ones, or the one argument"},
    }


def _limit(most: int) -> Schema:
    return or_null({"type": "integer", "minimum": 1, "maximum": most})


def _new_timer(data: Schema, options: Mapping[str, Schema]) -> Schema:
    seconds = {"type": "number", "minimum": 0, "maximum": schedule.MOST_S}
    own: dict[str, Schema] = {
        "data": data,
        "every_s": {**seconds, "minimum": schedule.LEAST_EVERY_S},
        "cron": {**TEXT, "maxLength": schedule.MOST_CRON_CHARS, "examples": ["30 2 * * MON"]},
        "zone": {**TEXT, "examples": ["Europe/Rome"]},
        "misfire": one_of(schedule.MISFIRES),
        "overlap": one_of(schedule.OVERLAPS),
        "grace_s": seconds,
        "jitter_s": seconds,
        "start": {"type": "string", "format": "date-time"},
        "end": {"type": "string", "format": "date-time"},
    }
    name = {"allOf": [ref("Name")], "maxLength": schedule.MOST_NAME_CHARS}
    fitting = {key: options[key] for key in schedule.OPTIONS}
    ways = [{"required": ["every_s"]}, {"required": ["cron"]}]
    return {**record({"name": name, "cmd": ref("Name")}, {**own, **fitting}), "oneOf": ways}


def told() -> dict[str, Schema]:
    """Return the schemas of what REST answers."""
    problem = record({"code": TEXT, "message": TEXT, "field": TEXT, "fix": TEXT})
    failure = record({"type": TEXT, "message": TEXT, "attempts": COUNT}, {"traceback": TEXT})
    ended = {"result": RESULT, "error": failure, "waits": TEXT}
    answers = list_of({"anyOf": [ref("Answer"), ref("Error")]})
    attempts = list_of(record({"attempt": COUNT, "log": TEXT}))
    return {
        "Error": record({"error": problem}),
        "Refusal": {"anyOf": [ref("Error"), list_of(ref("Error"))]},
        "State": one_of(State.__members__),
        "To": {"anyOf": [TEXT, list_of(TEXT)]},
        "Answer": record({"job_id": ref("Name"), **EDGE, **STATE}, ended),
        "Answers": {"anyOf": [ref("Answer"), answers]},
        "Step": record(
            {**EDGE, **STATE, "attempt": COUNT},
            {
                "data": ANY,
                "queue": TEXT,
                **TIMES,
                "progress": PROGRESS,
                "worker": TEXT,
                "traceparent": TEXT,
                **ended,
                "notify": ref("Notify"),
            },
        ),
        "Notify": record({"url": TEXT}, {"state": TEXT, "tries": COUNT, "error": TEXT, "next_ms": MOMENT}),
        "Job": record(JOB, EOJ),
        "Jobs": record({"jobs": list_of(ref("Job")), "next": NEXT}),
        "Cancelled": record({**JOB, "cancelled": COUNT}, EOJ),
        "Retried": record({**JOB, "retried": COUNT}, EOJ),
        "JobLog": record(
            {
                "job_id": ref("Name"),
                "steps": list_of(record({"from": TEXT, "to": ref("To"), "attempts": attempts})),
            }
        ),
        **_dead(),
        "Callbacks": record({name: COUNT for name in ("waiting", "tried", "sent", "failed")}),
        "Functions": record({"functions": list_of(ref("Function")), "broken": map_of(TEXT)}),
        "Function": record(
            {**{name: TEXT for name in ("name", "module", "doc", "signature", "file")}, "options": map_of(ANY)}
        ),
        "Workers": record({"workers": list_of(ref("Worker"))}),
        "Worker": {
            "type": "object",
            "properties": {
                "session": TEXT,
                "queues": list_of(TEXT),
                **{name: COUNT for name in ("slots", "capacity", "held")},
                "draining": FLAG,
                "silent_s": NUMBER,
            },
            "required": ["session", "queues", "slots", "capacity", "held", "draining", "silent_s"],
            "description": "a worker, with what it tells of itself: its host, pid, …",
        },
        **_runners(),
        **_queues(),
        **_timers(),
        **_apps(),
        "Caller": record({"role": one_of(role.name for role in Role), "name": TEXT}),
        "Health": record({"status": one_of(["ok"])}),
        "Ready": record({"status": one_of(["ready"])}),
        "Document": {"type": "object", "description": "this document"},
    }


def _dead() -> dict[str, Schema]:
    swept = {"steps": COUNT, "skipped": COUNT, "next": NEXT}
    failed = {"failed_ms": MOMENT, "job_id": ref("Name"), **EDGE, "attempts": COUNT, "error": TRACED}
    return {
        "DeadJob": record(failed),
        "Dead": record({"dead": list_of(ref("DeadJob")), "next": NEXT}),
        "Purged": record({"job_id": ref("Name"), "purged": COUNT}),
        "AllRetried": record({"retried": COUNT, **swept}),
        "AllPurged": record({"purged": COUNT, **swept}),
    }


def _runners() -> dict[str, Schema]:
    needed = {name: TEXT for name in ("name", "type", "uuid", "target")}
    needed |= {"state": one_of(runner.RunnerState), "epoch": COUNT, "restarts": COUNT}
    more = {name: TEXT for name in ("how", "host", "started_by", "waits")}
    more |= {name: TIMES[name] for name in ("accepted_ms", "began_ms", "ended_ms")}
    more |= {"error": TRACED, "pid": COUNT, "progress": PROGRESS, "memory_bytes": COUNT}
    more |= {name: NUMBER for name in ("cpu_s", "uptime_s", "cpu_percent")}
    return {
        "Runner": record(needed, more),
        "Runners": record({"runners": list_of(ref("Runner"))}),
        "RunnerStopped": record({**needed, "news": FLAG}, more),
        "TypeStopped": record({"type": TEXT, "news": COUNT}),
        "RunnerLog": record({"name": TEXT, "log": TEXT, "next": COUNT}),
        "RunnerState": one_of(runner.RunnerState),
    }


def _queues() -> dict[str, Schema]:
    counts = {"waiting": COUNT, "keys": COUNT, "workers": COUNT}
    limits = {key: or_null(COUNT) for key in ("depth", "concurrency", "key_limit")}
    more = {"oldest_s": or_null(NUMBER), "running": or_null(COUNT), "rate": or_null(TEXT)}
    queue = {"name": TEXT, **counts, **more, "paused": FLAG, **limits, "origin": TEXT}
    return {"Queue": record(queue), "Queues": record({"queues": list_of(ref("Queue"))})}


def _timers() -> dict[str, Schema]:
    done = {"tick_ms": MOMENT, "due_ms": MOMENT, "late_ms": COUNT, "job_id": TEXT, "what": TEXT}
    needed = {name: TEXT for name in ("name", "cmd", "zone", "misfire", "overlap", "state", "origin", "reason")}
    needed |= {name: COUNT for name in ("ran", "skipped", "missed", "refused")}
    needed |= {"data": ANY, "grace_s": NUMBER, "paused": FLAG, "late_ms": or_null(COUNT)}
    needed |= {"last": list_of(record(done)), "next": list_of(record({"tick_ms": MOMENT, "due_ms": MOMENT}))}
    own = {"every_s": NUMBER, "cron": TEXT, "jitter_s": NUMBER, "start": TEXT, "end": TEXT}
    options = {key: command.OPTIONS[key].schema for key in schedule.OPTIONS}
    spoilt = record({"name": TEXT, "state": one_of(["spoilt"]), "reason": TEXT, "fix": TEXT})
    run = {"name": TEXT, "job_id": ref("Name"), "from": TEXT, "to": ref("To")}
    return {
        "Timer": {"anyOf": [record(needed, {**own, **options}), spoilt]},
        "Timers": record({"timers": list_of(ref("Timer")), "next": NEXT}),
        "TimerRemoved": record({"name": TEXT, "removed": {"const": True}}),
        "TimerRun": record(run),
    }


def _apps() -> dict[str, Schema]:
    app = {name: TEXT for name in ("name", "state", "reason", "class")}
    instance = {"type": "object", "properties": {"number": COUNT, "state": TEXT}, "required": ["number", "state"]}
    more = {"failed_ms": MOMENT, "processes": COUNT, "threads": COUNT, "timeout_s": NUMBER}
    listed = {"methods": list_of(map_of(TEXT)), "instances": list_of(instance)}
    whole_app = {**app, **more, **listed}
    return {
        "App": record({**whole_app, "traceback": TEXT}),
        "Apps": record({"apps": list_of(record(whole_app))}),
        "Called": record({"app": TEXT, "method": TEXT, "result": ANY}),
    }


def build(limits: Limits) -> dict[str, Schema]:
    """Return all schemas by name; `limits` are those of the settings."""
    return {**parameters(), **sent(limits), **told()}
