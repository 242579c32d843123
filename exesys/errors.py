"""Every error ExeSys tells a person about: one base, one stable code each.

An error crosses the bus and REST as the four fields of `Problem`: `code` is
stable and meant for programs, `message` is a sentence, `field` names the
part of the input at fault (or ""), and `fix` says what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Any, ClassVar, NamedTuple


class Problem(NamedTuple):
    """What an error looks like on the bus and in a REST answer."""

    code: str
    message: str
    field: str = ""
    fix: str = ""


class ExesysError(Exception):
    """The base of all errors raised on purpose.

    `code` and `status` (the HTTP status) belong to the class; `message`, a
    sentence, `field`, the part of the input at fault or "", and `fix`, what
    to do next, belong to the case. One with the code `internal` is a fault of
    ExeSys: `bin/exesys logs` shows more of it.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, field: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".rstrip()

    @property
    def problem(self) -> Problem:
        """The four fields that cross the bus and REST: code, message, field, fix."""
        return Problem(self.code, self.message, self.field, self.fix)


class ConfigError(ExesysError):
    """A setting is wrong. The message names file, line and key.

    Correct it as `fix` says, and start again; a running system goes on with the settings it was started with.
    """

    code = "bad_config"


class BootError(ExesysError):
    """The system cannot start or stop as asked, and nothing was left half done.

    Do what `fix` says: a port is taken, a server is missing, another system holds the home.
    """

    code = "cannot_start"


class BackupError(ExesysError):
    """A backup cannot be made, or a file is none that can be restored here.

    What was there before is as it was. `fix` says which file or server to take instead.
    """

    code = "bad_backup"


class StateError(ExesysError):
    """A step, job or runner is in a state in which this cannot be done to it. Nothing was changed.

    Look at it (`GET /jobs/<job_id>`), and wait for its end, cancel it, or retry it first.
    """

    code = "bad_state"
    status = 409


class ProtocolError(ExesysError):
    """A peer sent bytes that are no valid message. It costs only that peer.

    Correct the program that sent them: docs/protocol.md has the grammar.
    """

    code = "bad_message"
    status = 400


class BadJson(ExesysError):
    """The body of a request is no JSON. The message says where it breaks.

    Mind the quotes of the shell: single ones around all of it, double ones around names and texts.
    """

    code = "bad_json"
    status = 400


class BadCommand(ExesysError):
    """A field of a command, or a parameter, is missing, unknown or out of its range, or steps are no workflow.

    `field` names it, and `fix` what is allowed or the nearest known name.
    """

    code = "bad_field"
    status = 400


class Unauthorized(ExesysError):
    """A token is needed, and none that is known was sent.

    Send `Authorization: Bearer TOKEN`. `bin/exesys keys new` makes one, also in the place of one that has expired.
    """

    code = "unauthorized"
    status = 401


class Forbidden(ExesysError):
    """Who asks is known, and may not do this.

    Use a token with the role that the message names. Without tokens: ask by an address or `localhost`, or list the
    name or origin in `[rest] names` and `origins`.
    """

    code = "forbidden"
    status = 403


class NotFound(ExesysError):
    """There is no such job, step, runner, timer or path.

    It was never sent, has another name, or has expired: results are kept as long as `[limits] result_ttl_s` says.
    """

    code = "not_found"
    status = 404


class NotAllowed(ExesysError):
    """The path is there, but not for this method.

    `fix` names the methods it has.
    """

    code = "method_not_allowed"
    status = 405


class Conflict(ExesysError):
    """The name is taken: the same job_id, from and to with another cmd or data, a runner or timer that differs.

    Send it under another name, or leave `job_id` out to have a new one made.
    """

    code = "conflict"
    status = 409


class TooLarge(ExesysError):
    """A request, its data, an array or a workflow is larger than `[limits]` allows.

    Send less, keep large data elsewhere and send a reference, or raise the limit that `fix` names.
    """

    code = "too_large"
    status = 413


class NotJson(ExesysError):
    """A request with a body does not say that this is JSON.

    Send the header `Content-Type: application/json`.
    """

    code = "not_json"
    status = 415


class UnknownFunction(ExesysError):
    """No worker knows a function of this name.

    `fix` names the nearest, or why its module cannot be imported. After a change: `bin/exesys reload`.
    """

    code = "unknown_cmd"
    status = 422


class QueueFull(ExesysError):
    """A queue, the runners, or the calls of an application server have reached their limit.

    Wait as long as `Retry-After` says and send the same again, add workers, or raise the limit.
    """

    code = "queue_full"
    status = 429


class RateLimited(ExesysError):
    """More requests in a second than [limits] rate allows. In `wait_s` seconds it will be allowed.

    Wait as long as `Retry-After` says, or send arrays instead of single commands more slowly.
    """

    code = "rate_limited"
    status = 429

    def __init__(self, message: str, *, field: str = "", fix: str = "", wait_s: float = 1.0) -> None:
        super().__init__(message, field=field, fix=fix)
        self.wait_s = wait_s


class Unavailable(ExesysError):
    """The router, the store or all workers are away.

    Send the same again soon: a command with the same job_id runs once. If it stays so, `bin/exesys doctor` says why.
    """

    code = "unavailable"
    status = 503


class NoMongo(ExesysError):
    """A function asked for MongoDB, and there is none here.

    Set `[mongo] uri`, or have `mongod` on PATH, and restart.
    """

    code = "no_mongo"
    status = 503


class JobError(ExesysError):
    """A job ended in error. Raised where its result is asked for.

    `type` is the name of the exception class in the function, or one of
    `Timeout`, `Crashed`, `WorkerLost`; `text` is its message; `attempts`
    counts how often it was dispatched; `traceback` is the remote one, when
    there is one; `job_id` is "" where it is not known.

    Mend the function or its data, and retry the job: `client.retry(job_id)`.
    """

    code = "job_failed"

    def __init__(self, type: str, message: str, attempts: int, traceback: str = "", job_id: str = "") -> None:
        after = f" (after {attempts} attempts)" if attempts > 1 else ""
        super().__init__((f"{type}: {message}" if message else type) + after)
        self.type = type
        self.text = message
        self.attempts = attempts
        self.traceback = traceback
        self.job_id = job_id


class JobCancelled(JobError, CancelledError):
    """A job was cancelled. A JobError for those who expect that, a CancelledError for those who know futures.

    Send it again, or `bin/exesys retry` it, if it is to run after all.
    """


class UnknownApp(ExesysError):
    """No application server has this name.

    `fix` names the nearest. Declare it in a section `[appserver:NAME]`, and restart.
    """

    code = "unknown_app"
    status = 404


class UnknownMethod(ExesysError):
    """An application server has no such method, or it is not for callers.

    `fix` names the nearest; `bin/exesys app show NAME` lists them.
    """

    code = "unknown_method"
    status = 404


class BadArguments(ExesysError):
    """A method of an application server does not take these arguments. It did not run.

    `fix` shows its signature. Arguments come as an array, or by name as an object.
    """

    code = "bad_arguments"
    status = 400


class AppUnavailable(Unavailable):
    """No instance of an application server is there. The call did not run.

    Call again soon; `bin/exesys app show NAME` says why none starts.
    """

    code = "app_unavailable"


class AppLost(ExesysError):
    """The instance died while it had the call. Whether the call ran is not known.

    Look whether it did before you call again, unless it may run twice.
    """

    code = "app_lost"
    status = 503


class AppTimeout(ExesysError, TimeoutError):
    """An application server did not answer in time. Unless the message says otherwise, the call may go on there.

    Give it more time by `timeout`, or more `processes` or `threads`.
    """

    code = "app_timeout"
    status = 504


class AppError(ExesysError):
    """A method of an application server raised. Raised where it was called.

    `type` is the name of the exception class there, `text` its message,
    `traceback` the remote one; `where` names server and method.

    Mend the arguments or the class; nothing is called again by itself.
    """

    code = "app_failed"

    def __init__(self, type: str, text: str, traceback: str = "", where: str = "") -> None:
        raised = f"{type}: {text}" if text else type
        super().__init__(f"{where} raised {raised}" if where else raised)
        self.type = type
        self.text = text
        self.traceback = traceback
        if traceback:
            self.add_note(f"In the application server:\n{traceback.rstrip()}")


class ResultTimeout(ExesysError, TimeoutError):
    """The result was not there in the time the caller gave. The job goes on.

    Ask again. When the message says that the router has not answered, see whether the system is up.
    """

    code = "result_timeout"


_BY_CODE: dict[str, type[ExesysError]] = {
    kind.code: kind
    for kind in (
        StateError,
        ProtocolError,
        BadJson,
        BadCommand,
        NotFound,
        NotAllowed,
        Conflict,
        TooLarge,
        NotJson,
        UnknownFunction,
        QueueFull,
        Unavailable,
        UnknownMethod,
        BadArguments,
        AppTimeout,
        AppUnavailable,
    )
}


def from_problem(fields: Sequence[Any]) -> ExesysError:
    """Build the error a peer described. An unknown code becomes the base class."""
    problem = Problem(*(str(part) for part in fields[:4]))
    kind = _BY_CODE.get(problem.code, ExesysError)
    return kind(problem.message, field=problem.field, fix=problem.fix)


NO_JOB_FIX = (
    "It was never sent, or was purged, or has expired: results are kept for `result_ttl_s`, 24 h by default."
    " Send it again."
)


def no_job(job_id: str) -> NotFound:
    """Make the error for a job of which there is nothing."""
    return NotFound(f"there is no job {job_id}.", fix=NO_JOB_FIX)


def nearest(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """Name the known word most like `word`, or "" when none is as much alike as `cutoff`, 0 to 1."""
    # difflib costs milliseconds to import and is needed only for bad input.
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return close[0] if close else ""
