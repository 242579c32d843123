"""The reference of the Python API, made from docstrings and signatures."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

import reference

import exesys
from exesys import context, flow, testing
from exesys.bus import aclient, appcall, future, handle, jobhandle, listener

WIDTH = 92
# What daemons ask of a client. It is public among modules, and no part of what is offered to users.
INTERNAL = {
    *("send", "send_workflow", "follow", "snapshot", "tune", "ask_later", "tell", "session", "introduce"),
    *("connected", "full", "adopt", "held_up", "added", "stop", "graph", "apps"),
    *("withdraw", "shown_state", "settled", "ends", "value"),
}


class Part(NamedTuple):
    """One thing of the reference: the name that users write, and the object. `made_by` says how one comes by it."""

    name: str
    thing: Any
    made_by: str = ""


PARTS = (
    Part("exesys.Client", exesys.Client),
    Part("Handle", handle.Handle, "`Client.submit` and `Client.submit_many` return it."),
    Part("JobHandle", jobhandle.JobHandle, "`Client.workflow` returns it."),
    Part("exesys.Executor", exesys.Executor, "`Client.executor` returns it."),
    Part("JobFuture", future.JobFuture, "`Executor.submit` and `Handle.future` return it."),
    Part("Events", listener.Events, "`Client.events` returns it."),
    Part("App", appcall.App, "`Client.app` and `ctx.app` return it."),
    Part("exesys.AsyncClient", exesys.AsyncClient),
    Part("AsyncHandle", aclient.AsyncHandle, "`AsyncClient.submit` returns it."),
    Part("AsyncJobHandle", aclient.AsyncJobHandle, "`AsyncClient.workflow` returns it."),
    Part("exesys.Workflow", exesys.Workflow),
    Part("Task", flow.Task, "`Workflow.step` returns it."),
    Part("exesys.function", exesys.function),
    Part("ctx", context.Context, "A function with a second parameter `ctx` gets it."),
    Part("ctx of a runner", context.RunnerContext, "A function that is started as a runner gets it."),
    Part("exesys.testing.run", testing.run),
    Part("Outcome", testing.Outcome, "`exesys.testing.run` returns it."),
    Part("exesys.testing.run_workflow", testing.run_workflow),
    Part("Flow", testing.Flow, "`exesys.testing.run_workflow` returns it."),
    Part("StepOutcome", testing.StepOutcome, "`Flow.steps` has one for each step."),
    Part("exesys.testing.PrivateSystem", testing.PrivateSystem, "The fixture `exesys_system` is one."),
    Part("exesys.testing.PrivateRedis", testing.PrivateRedis, "The fixture `exesys_redis` is a client of one."),
    Part("exesys.ExesysError", exesys.ExesysError),
    Part("exesys.JobError", exesys.JobError),
    Part("exesys.JobCancelled", exesys.JobCancelled),
    Part("exesys.AppError", exesys.AppError),
)


def python() -> str:
    """Return the page of the Python API."""
    parts = [
        "# Python",
        "What `import exesys` gives to programs and to functions. All times are seconds; options are those of"
        " [a command](functions.md#options). Every error that is raised on"
        " purpose is an `exesys.ExesysError`; [errors](errors.md) lists them.",
    ]
    for part in PARTS:
        parts.append(f"## {part.name}")
        parts.append(part.made_by)
        parts.append(_described(part.name, part.thing))
        if inspect.isclass(part.thing):
            parts += [_member(part, name, member) for name, member in members(part.thing)]
    return reference.page(parts)


def members(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties of a class, those of its bases first, in the order of the source."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("exesys"):
            found |= vars(base)
    for name, member in found.items():
        shown = isinstance(member, property) or inspect.isfunction(member)
        if shown and not name.startswith("_") and name not in INTERNAL:
            yield name, member


def _member(part: Part, name: str, member: Any) -> str:
    short = part.name.rpartition(".")[2].partition(" ")[0]
    text = documented(member)
    if isinstance(member, property):
        kind = inspect.signature(member.fget).return_annotation if member.fget else ""
        return reference.page([f"### {short}.{name}", f"```python\n{name}: {kind}\n```", text])
    return reference.page([f"### {short}.{name}", f"```python\n{signature(name, member)}\n```", text])


def _described(name: str, thing: Any) -> str:
    short = name.rpartition(".")[2]
    made = thing.__init__ if inspect.isclass(thing) and name.startswith("exesys.") else None
    called = signature(short, made or thing) if made or inspect.isfunction(thing) else ""
    return reference.page([f"```python\n{called}\n```" if called else "", documented(thing)])


def documented(thing: Any) -> str:
    """Return what a thing says of itself as Markdown. Raises LookupError when that is nothing."""
    text = inspect.getdoc(thing)
    if not text:
        raise LookupError(f"{thing!r} has no docstring, and the reference shows it.")
    # Angle brackets are no HTML there. An indented block is Python, and stays as it is.
    return re.sub(r"(?<!`)<", r"\\<", text)


def signature(name: str, function: Any) -> str:
    """Write how a function is called, over several lines when it is long."""
    # An overload that names more than the function itself says more of it.
    ways = [function, *typing.get_overloads(function)]
    told = max(map(inspect.signature, ways), key=lambda way: len(way.parameters))
    given = [_parameter(each) for each in _shown(told)]
    returns = f" -> {told.return_annotation}" if told.return_annotation not in (inspect.Signature.empty, "None") else ""
    prefix = "async " if inspect.iscoroutinefunction(function) else ""
    line = f"{prefix}{name}({', '.join(given)}){returns}"
    if len(line) <= WIDTH:
        return line
    return f"{prefix}{name}(\n" + "".join(f"    {each},\n" for each in given) + f"){returns}"


def _shown(told: inspect.Signature) -> Iterator[inspect.Parameter | str]:
    """Yield the parameters but `self`, and the star after which they are given by name."""
    starred = False
    for each in told.parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not starred:
            yield "*"
        starred = starred or each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        yield each


def _parameter(each: inspect.Parameter | str) -> str:
    if isinstance(each, str):
        return each
    star = "*" if each.kind is each.VAR_POSITIONAL else "**" if each.kind is each.VAR_KEYWORD else ""
    kind = "" if each.annotation is each.empty else f": {each.annotation}"
    return f"{star}{each.name}{kind}" + ("" if each.default is each.empty else f" = {each.default!r}")
