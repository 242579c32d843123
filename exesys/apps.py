"""What people do with application servers: list, show, call, reload; and wait for them at a start."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from exesys import asking, home, output, reach
from exesys.appconfig import APPSERVER
from exesys.config import Config
from exesys.errors import BootError
from exesys.process import wait_until

SETTLE_S = 5.0  # how long a start waits for application servers before it tells how they are
ANSWER_S = 2.0
LOADING = "BusyLoadingError"  # what redis-py raises meanwhile
Renewed = Callable[[], bool]


# --- the command line -----------------------------------------------------


def list_apps(config: Config, given: argparse.Namespace) -> int:
    with reach.connect(config) as client:
        listed = client.snapshot("apps")["apps"]
    if given.json:
        output.show({"apps": listed})
        return 0
    rows = [
        [
            each["name"],
            each["state"],
            f"{sum(one['state'] == 'ready' for one in each['instances'])} of {each['processes']}",
            each["class"],
            ", ".join(method["name"] for method in each["methods"]),
        ]
        for each in listed
    ]
    if rows:
        output.table(("name", "state", "there", "class", "methods"), rows)
    else:
        output.note("there is no application server. Declare [appserver:NAME] in the ini: docs/appservers.md")
    tell_failed(listed)
    return 0


def show_app(config: Config, given: argparse.Namespace) -> int:
    from exesys.bus.appcall import unknown_app

    with reach.connect(config) as client:
        listed = {each["name"]: each for each in client.snapshot("apps")["apps"]}
    if given.name not in listed:
        raise unknown_app(given.name, sorted(listed))
    app = listed[given.name]
    if given.json:
        output.show(app)
        return 0
    print(f"{app['name']}: {app['class']}, {app['state']}, {app['timeout_s']:g} s a call, {app['threads']} at a time")
    for one in app["instances"]:
        since = output.when(one["since_ms"])
        print(f"  instance {one['number']}: {one['state']}, process {one['pid']} on {one['host']}, since {since}")
    for method in app["methods"]:
        print(f"  {method['name']}{method['signature']}" + (f": {method['doc']}" if method["doc"] else ""))
    if app["reason"]:
        print(f"It does not start: {app['reason']}")
        print(app["traceback"].rstrip())
    return 0


def call_app(config: Config, given: argparse.Namespace) -> int:
    value = reach.data(given.args)
    args, kwargs = ([], value) if isinstance(value, dict) else (value if isinstance(value, list) else [value], {})
    with reach.connect(config) as client:
        result = client.apps.call(given.name, given.method, args if given.args else [], kwargs, given.timeout)
    output.show({"app": given.name, "method": given.method, "result": result} if given.json else result)
    return 0


# --- reload ---------------------------------------------------------------


def renew(config: Config, programs: Iterable[Mapping[str, Any]], ask: Callable[[], list[dict[str, Any]]]) -> Renewed:
    """Have every application server begin anew; return what tells whether all have, or cannot.

    One that does not start is tried again at once, not when supervisord would.
    """
    told = ask()
    before = {(each["name"], one["number"]): one["since_ms"] for each in told for one in each["instances"]}
    failed = {each["name"]: each["failed_ms"] for each in told}
    names = {program: server.name for server in config.appservers for program in server.programs}
    signalled = []
    for program in programs:
        if program["name"] not in names:
            continue
        signalled.append(names[program["name"]])
        if program["state"] == "RUNNING":
            os.kill(program["pid"], signal.SIGHUP)
        else:
            home.supervisor(config).restart(program["name"])

    def renewed() -> bool:
        return all(
            _is_new(each, before) or (each["state"] == "failed" and each["failed_ms"] != failed.get(each["name"]))
            for each in ask()
            if each["name"] in signalled
        )

    return renewed


def _is_new(app: Mapping[str, Any], before: Mapping[tuple[str, int], int]) -> bool:
    fresh = [
        one
        for one in app["instances"]
        if one["state"] == "ready" and one["since_ms"] != before.get((app["name"], one["number"]))
    ]
    processes: int = app["processes"]
    return len(fresh) >= processes


def tell_failed(listed: Iterable[Mapping[str, Any]]) -> None:
    """Name the servers that do not start, each with the reason."""
    for each in listed:
        if each["state"] == "failed":
            output.note(f"the application server {each['name']} does not start: {each['reason']}")


# --- at a start, and in a status --------------------------------------------


def is_app(program: str) -> bool:
    """Tell whether a program is an instance of an application server: a user's class never keeps a system down."""
    return program.startswith(f"{APPSERVER.word}-")


def settled(config: Config) -> list[dict[str, Any]]:
    """Wait a moment until each application server is ready or failed; return what REST tells of them."""
    listed: list[dict[str, Any]] = []

    def done() -> bool:
        listed[:] = ask_rest(config)
        # One that fails is tried again all the time; what counts is that it was seen to. But that
        # Redis was still reading its file is over in a moment.
        return all(
            each["state"] == "ready" or (each["state"] == "failed" and LOADING not in each["reason"]) for each in listed
        )

    if config.appservers:
        wait_until(done, SETTLE_S)
    return listed


def ask_rest(config: Config) -> list[dict[str, Any]]:
    """Return the application servers as REST tells them; none when it does not answer."""
    try:
        status, answer = asking.ask(config, "GET", "/apps", timeout_s=ANSWER_S)
    except (OSError, asking.HTTPException, BootError):
        return []
    told: list[dict[str, Any]] = answer["apps"] if status == 200 else []
    return told


def in_words(listed: Iterable[Mapping[str, Any]]) -> str:
    """Say how the application servers are, for the welcome."""
    return "; ".join(
        f"{each['name']} does not start: {each['reason'].rstrip('.')}"
        if each["state"] == "failed"
        else f"{each['name']} {each['state']}"
        for each in listed
    )
