"""The lines of the daemons' logs: text, or JSON objects for a machine to read ([logs] format).

An object has `ts` (RFC 3339, UTC), `level`, `logger`, `msg` and `program`; and
`job_id`, `cmd`, `attempt` and `trace_id` where a line is about a job: who logs
it gives them with `extra=about(…)`. An exception stands in `exc`.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from typing import Any

from exesys import trace
from exesys.command import parts_of

ABOUT = ("job_id", "cmd", "attempt", "trace_id")
_TEXT = "%(asctime)s {program} %(levelname)s %(message)s"


def about(ref: str, cmd: str = "", attempt: int = 0, traceparent: str = "") -> dict[str, Any]:
    """Return what a line tells of the step it is about, for `extra=`; what is not known is left out."""
    known = {"job_id": parts_of(ref)[1], "cmd": cmd, "attempt": attempt, "trace_id": trace.trace_id(traceparent)}
    return {name: value for name, value in known.items() if value}


def begin(program: str) -> None:
    """Write what is logged to stdout, as lines of text."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format=_TEXT.format(program=program), force=True)
    logging.captureWarnings(True)


def change(form: str, program: str) -> None:
    """Write it in the form that the settings say, text or json."""
    if form == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines(program))


class JsonLines(logging.Formatter):
    """Makes of each record one line of JSON."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        told: dict[str, Any] = {
            "ts": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "msg": record.getMessage(),
            "program": self._program,
        }
        told |= {name: getattr(record, name) for name in ABOUT if hasattr(record, name)}
        if record.exc_info:
            told["exc"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


def readable(line: str) -> str:
    """Return a line for a person: of a JSON object what it says, any other as it is."""
    if not line.startswith("{"):
        return line
    try:
        told = json.loads(line)
        text = f"{told['ts']} {told['program']} {told['level']} {told['msg']}"
    except (ValueError, TypeError, KeyError):
        return line
    marks = " ".join(f"{name}={told[name]}" for name in ABOUT if name in told)
    return "\n".join([f"{text} [{marks}]" if marks else text, *([told["exc"]] if "exc" in told else [])])
