"""`bin/exesys dev`: the system in the foreground, for who writes functions.

It shows all logs as they grow, and reloads when a module was saved: what is
callable then, and the traceback of what is not. A system that it started ends
with it; one that ran already it only looks at, and leaves running.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from exesys import apps, bootstrap, changes, environment, home, output, process, reach, reloading, welcome
from exesys.config import Config
from exesys.errors import ExesysError
from exesys.states import State
from exesys.teardown import Teller
from exesys.usage import PROGRAM

LOOK_S = 0.2
ME = "dev"
JOBS = "jobs"
_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def dev(config: Config, given: argparse.Namespace) -> int:
    """Start the system, or find the one that runs; look after it until it ends, or a signal comes. Returns 0 then."""
    say = output.Columns(given.json)
    tell = Teller(quiet=given.json)
    supervisord, done = bootstrap.bring_up(config, tell, attached=True)
    tell(welcome.welcome(config, done, apps.settled(config)))
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    with contextlib.ExitStack() as around:
        around.enter_context(_following(config, say))
        if given.jobs:
            around.enter_context(_telling_ends(config, say))
        say(ME, _first_words(config, ours=supervisord is not None))
        _look_after(config, say, ours=supervisord is not None)
        if supervisord is None:
            say(ME, f"The system goes on. Stop it with: {welcome.down_text(config)}")
        elif supervisord.poll() is None:
            bootstrap.end(config, supervisord, lambda text: say(ME, text))
    return _ended(supervisord)


def _first_words(config: Config, ours: bool) -> str:
    watched = ", ".join(_short(path) for path in config.module_dirs)
    how = "Ctrl-C stops everything." if ours else "It ran already: Ctrl-C ends only this view of it."
    return f"Watching {watched}: what is saved there is loaded at once. {how}"


def _ended(supervisord: subprocess.Popen[bytes] | None) -> int:
    return 0 if supervisord is None or supervisord.returncode == 0 else 1


@contextlib.contextmanager
def _following(config: Config, say: output.Columns) -> Iterator[None]:
    """Print what is added to the logs meanwhile, in a thread: a reload may take long, and they go on."""
    tails, over = changes.Tails(config.log), threading.Event()

    def follow() -> None:
        while True:
            last = over.wait(LOOK_S)
            for program, line in tails.read():
                say(program, line)
            if last:
                return

    thread = threading.Thread(target=follow, name="logs")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        tails.close()


@contextlib.contextmanager
def _telling_ends(config: Config, say: output.Columns) -> Iterator[None]:
    """Print a line for the end of each step meanwhile, as the router tells it."""
    with reach.connect(config) as client, client.events(kinds=("step",)) as events:

        def tell() -> None:
            for event in events:
                if event["event"] == "gap":
                    say(JOBS, "some was not heard.", "yellow")
                elif State(event["status"]).final:
                    again = f", attempt {event['attempt']}" if event["attempt"] > 1 else ""
                    style = "red" if event["status"] == State.error else "green"
                    say(JOBS, f"{event['state']} {event['job_id']} {event['from']} {event['cmd']}{again}", style)

        thread = threading.Thread(target=tell, name="jobs")
        thread.start()
        try:
            yield
        finally:
            events.close()
            thread.join()


def _look_after(config: Config, say: output.Columns, ours: bool) -> None:
    """Reload when modules change, and say when the settings do, until a signal comes or the system ends."""
    saved = changes.Saved(lambda: changes.sources(config.module_dirs))
    ini = config.ini or config.root / "etc" / "exesys.ini"
    settings = changes.Saved(lambda: changes.files([ini]))
    waiting: list[Path] = []
    refused = ""
    while process.is_locked(home.lock(config)):
        if signal.sigtimedwait(_SIGNALS, LOOK_S):
            return
        if settings.changed():
            say(ME, _of_settings(ini, ours), "bold yellow")
        waiting = sorted({*waiting, *saved.changed()})
        if waiting:
            try:
                _reload(config, say, waiting)
            except ExesysError as error:  # a program that begins anew: it will be there in a moment
                if refused != (refused := str(error)):
                    say(ME, f"Not loaded yet: {error}", "yellow")
            else:
                waiting, refused = [], ""
    say(ME, "The system has ended.")


def _reload(config: Config, say: output.Columns, saved: Sequence[Path]) -> None:
    since = time.monotonic()
    told = reloading.reload(config, enough=lambda: bool(_SIGNALS & signal.sigpending()))
    took_s = time.monotonic() - since
    names = ", ".join(map(_short, saved))
    if told.loaded:
        say(ME, f"{names}: loaded in {took_s:.1f} s.", "bold")
    else:
        say(
            ME,
            f"{names}: not loaded everywhere yet: slots and application servers follow as jobs end.",
            "bold",
        )
    modules = {path.stem for path in saved}
    for key, text in told.broken.items():
        say(ME, f"{key} cannot be called:\n{text.rstrip()}", "red")
    functions = told.functions["functions"]
    for each in functions:
        if each["module"] in modules:
            say(ME, f"callable: {each['name']}{each['signature']}", "green")
    for app in told.apps:
        if app["state"] == "failed":
            say(ME, f"The application server {app['name']} does not start: {app['reason']}", "red")
    say(ME, f"{len(functions)} functions can be called, {len(told.broken)} cannot.")


def _of_settings(ini: Path, ours: bool) -> str:
    """Say what a changed ini means."""
    then = "end this with Ctrl-C and start it again" if ours else f"`{PROGRAM} restart` takes it over"
    try:
        if bootstrap.changed(environment.load()):
            return f"{_short(ini)} has changed: {then}."
    except ExesysError as error:
        return f"{_short(ini)} has changed, and would not do: {error}"
    return f"{_short(ini)} has changed; no setting of the system that runs is another."


def _short(path: Path) -> str:
    """Name a path as seen from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
