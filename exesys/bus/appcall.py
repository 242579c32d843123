"""Calling application servers: the caller's side.

    words = client.app("words", timeout_s=2)
    words.suggest("serch", limit=3)      # the method's value, or an error

The router says where the instances are; calls go straight to them, over lines
that are kept as database drivers keep connections (`applines.py`). When the
other end is gone a call fails at once, for nobody knows whether it ran. What
is known not to have begun (no line could be had, the instance is leaving)
goes to another instance, or waits for one, as long as the call's time lasts.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from exesys import codec
from exesys.bus import messages as m
from exesys.bus.applines import Lines, Unreached
from exesys.bus.curve import Identity
from exesys.config import Config
from exesys.errors import (
    AppError,
    AppLost,
    AppTimeout,
    AppUnavailable,
    BadArguments,
    ExesysError,
    ProtocolError,
    TooLarge,
    Unavailable,
    UnknownApp,
    UnknownMethod,
    from_problem,
    nearest,
)

MAX_TIMEOUT_S = 86_400.0
REFRESH_S = 5.0  # so old may be what the router told while all goes well
FIRST_S = 0.01  # between looks until the router has told anything
ASK_S = 0.25  # between questions while no instance is there
ASK_LOST_S = 1.0  # a question without an answer for so long is asked again
SHUN_S = 0.1  # so long is left alone what could not be reached


class Asking(Protocol):
    """How the router is asked: `then` is called, in another thread, with its SNAPSHOT of these parts.

    False when the router is away, so that nothing was asked.
    """

    def __call__(self, parts: tuple[str, ...], then: Callable[[dict[str, Any]], None]) -> bool: ...


class App:
    """An application server, as a caller sees it: each attribute is one of its methods."""

    __slots__ = ("_apps", "_name", "_timeout_s", "_wait")

    def __init__(self, apps: Apps, name: str, timeout_s: float | None, wait: bool) -> None:
        self._apps = apps
        self._name = name
        self._timeout_s = timeout_s
        self._wait = wait

    def __repr__(self) -> str:
        return f"<App {self._name}>"

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("__"):  # what Python itself looks for
            raise AttributeError(method)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._apps.call(self._name, method, args, kwargs, self._timeout_s, self._wait)

        return call


class Apps:
    """All application servers, for one client. Thread-safe."""

    def __init__(self, config: Config, ask: Asking, identity: Identity | None = None) -> None:
        self._config = config
        self._ask = ask
        self._lines = Lines(config.bus_endpoint, identity)
        self._news = threading.Condition()
        self._directory: dict[str, dict[str, Any]] | None = None  # as the router told it last
        self._told = 0  # how often it did
        self._told_at = self._asked_at = float("-inf")
        self._unanswered = False
        self._shunned: dict[str, float] = {}  # endpoint -> until when
        self._tag = itertools.count(1)

    def app(self, name: str, timeout_s: float | None = None, wait: bool = True) -> App:
        """Return a server, to call its methods; see `Client.app`. Raises BadArguments when the name is no text."""
        _check_name(name)
        return App(self, name, timeout_s, wait)

    def call(
        self,
        name: str,
        method: str,
        args: tuple[Any, ...] | list[Any] = (),
        kwargs: dict[str, Any] | None = None,
        timeout_s: float | None = None,
        wait: bool = True,
    ) -> Any:
        """Call a method and return its value.

        Raises UnknownApp, UnknownMethod, BadArguments, TooLarge, AppError,
        AppTimeout, AppUnavailable, AppLost; Unavailable when the router does
        not answer.
        """
        began = time.monotonic()
        _check_name(name)
        packed = self._packed(name, method, args, {} if kwargs is None else kwargs)
        limit_s = self._limit_s(name, timeout_s)
        until = began + limit_s
        while True:
            endpoint = self._lines.choose(self._instances(name, until, limit_s, wait))
            left = max(0.0, until - time.monotonic())
            try:
                answer = self._lines.exchange(endpoint, m.Call(next(self._tag), method, packed, left), until)
            except Unreached:
                self._shun(endpoint)
                continue
            except AppLost:
                self._shun(endpoint)
                if self._lines.closed:
                    text = f"this client was closed while {name}.{method} was under way; whether it ran is not known."
                    raise Unavailable(text) from None
                raise AppLost(
                    f"the instance of {name} that had the call {method} is gone; whether it ran is not known.",
                    fix="Call again if it may run twice.",
                ) from None
            if answer is None:
                raise AppTimeout(
                    f"{name}.{method} has not answered within {limit_s:g} s.",
                    fix="It may go on there. Give it more time (timeout_s), or the server more threads or processes.",
                )
            if answer.ok:
                return codec.unpack(answer.body)
            error = _error(answer.body, f"{name}.{method}")
            if not isinstance(error, AppUnavailable):
                raise error
            self._lines.drop(endpoint)
            self._shun(endpoint)

    def close(self) -> None:
        """Close all lines. Calls under way fail."""
        self._lines.close()
        with self._news:
            self._news.notify_all()

    # --- what is asked ------------------------------------------------------

    def _packed(self, name: str, method: str, args: Any, kwargs: dict[str, Any]) -> bytes:
        why = ""
        if not isinstance(method, str) or not method.isprintable():
            why = f"{method!r:.80} is no name of a method."
        elif method.startswith("_"):
            why = f"{name}.{method[:80]} is private: no name that begins with _ can be called."
        if why:
            raise UnknownMethod(why, field="method", fix="Call one of its public methods.")
        if not (isinstance(args, (list, tuple)) and isinstance(kwargs, dict)):
            text = (
                f"the arguments of {name}.{method} are of the types {type(args).__name__} and {type(kwargs).__name__}."
            )
            raise BadArguments(text, field="args", fix="Give positional ones as a list or tuple, named ones as a dict.")
        packed = codec.pack([list(args), kwargs])
        most = self._config.limits.data_bytes
        if len(packed) > most:
            raise TooLarge(
                f"the arguments of {name}.{method} have {len(packed):,} bytes; at most {most:,} are allowed.",
                field="args",
                fix="Send less, store it elsewhere and send a reference, or raise [limits] data_bytes.",
            )
        if len(packed) > self._config.limits.depth:
            codec.check_packed(packed, most, self._config.limits.depth)
        return packed

    def _limit_s(self, name: str, given: float | None) -> float:
        if given is None:
            listed = (self._directory or {}).get(name)
            declared = self._config.appserver(name)
            return listed["timeout_s"] if listed else declared.timeout_s if declared else 10.0
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= MAX_TIMEOUT_S:
            fix = f"Give seconds above 0, up to {MAX_TIMEOUT_S:,.0f}."
            raise BadArguments(f"`timeout_s` is {given!r:.40}.", field="timeout_s", fix=fix)
        return float(given)

    # --- who is there -------------------------------------------------------

    def _instances(self, name: str, until: float, limit_s: float, wait: bool) -> list[str]:
        """Return the endpoints of the instances to choose from; wait for one, if that may help.

        Raises UnknownApp, AppUnavailable, Unavailable.
        """
        asked_first = self._told
        while True:
            now = time.monotonic()
            listed = (self._directory or {}).get(name)
            ready = [each["endpoint"] for each in listed["instances"] if each["state"] == "ready"] if listed else []
            found = [endpoint for endpoint in ready if self._shunned.get(endpoint, now) <= now]
            if found:
                if now - self._told_at > REFRESH_S:
                    self._ask_router(now, REFRESH_S)
                return found
            if self._lines.closed:
                raise Unavailable("this client is closed.")
            if self._told > asked_first:  # so it is known, and not of old
                self._give_up(name, listed, wait)
            if now >= until:
                raise self._absent(name, listed, limit_s)
            pause_s = FIRST_S if self._told == asked_first else SHUN_S if ready else ASK_S
            self._ask_router(now, pause_s)
            self._await_news(min(pause_s, until - now))

    def _await_news(self, wait_s: float) -> None:
        with self._news:
            told = self._told
            self._news.wait_for(lambda: self._told != told or self._lines.closed, wait_s)

    def _ask_router(self, now: float, every_s: float) -> None:
        with self._news:
            due_s = ASK_LOST_S if self._unanswered else every_s
            if now - self._asked_at < due_s:
                return
            self._asked_at = now
            self._unanswered = True
        if not self._ask(("apps",), self._hear):
            self._unanswered = False

    def _hear(self, parts: dict[str, Any]) -> None:
        with self._news:
            self._directory = {each["name"]: each for each in parts.get("apps", [])}
            self._told += 1
            self._told_at = time.monotonic()
            self._unanswered = False
            self._news.notify_all()
            present = {each["endpoint"] for listed in self._directory.values() for each in listed["instances"]}
            self._shunned = {endpoint: until for endpoint, until in self._shunned.items() if endpoint in present}
        self._lines.keep(present)

    def _shun(self, endpoint: str) -> None:
        self._shunned[endpoint] = time.monotonic() + SHUN_S

    def _give_up(self, name: str, listed: dict[str, Any] | None, wait: bool) -> None:
        """Raise what says that waiting will not help, if so."""
        if listed is None:
            raise unknown_app(str(name), sorted(self._directory or {}))
        if listed["state"] == "failed" or not wait:
            raise self._absent(name, listed, None)

    def _absent(self, name: str, listed: dict[str, Any] | None, limit_s: float | None) -> Unavailable:
        if listed is None:
            text = f"the router does not answer, so it is not known where {name} is."
            return Unavailable(text, fix="See `bin/exesys status`.")
        states = sorted({each["state"] for each in listed["instances"]})
        why = f": {listed['reason']}" if listed["reason"] else f" ({', '.join(states)})" if states else ""
        within = f" within {limit_s:g} s" if limit_s is not None else ""
        return AppUnavailable(
            f"no instance of the application server {name} is there{within}{why.rstrip('.')}.",
            fix=f"See `bin/exesys logs {self._program(name)}`.",
        )

    def _program(self, name: str) -> str:
        declared = self._config.appserver(name)
        return declared.programs[0] if declared else f"appserver-{name}"


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        text = f"the name of an application server is text, not of the type {type(name).__name__}."
        raise BadArguments(text, field="app", fix="Give the NAME of an [appserver:NAME] in the ini.")


def unknown_app(name: str, known: list[str]) -> UnknownApp:
    """Make the error for a name that is none, with the nearest."""
    close = nearest(name[:80], known)
    there = f"There are: {', '.join(known)}." if known else "None is declared: see [appserver:NAME] in the ini."
    fix = f"Did you mean `{close}`?" if close else there
    return UnknownApp(f"there is no application server {name[:80]!r}.", field="app", fix=fix)


def _error(body: bytes, where: str) -> ExesysError:
    """Build the error that an instance told."""
    told = codec.unpack(body)
    if not isinstance(told, dict) or "code" not in told:
        return ProtocolError(f"{where} answered with an error that is none.")
    if told["code"] == AppError.code:
        return AppError(str(told.get("type")), str(told.get("message")), str(told.get("traceback", "")), where)
    return from_problem([told["code"], told.get("message", ""), told.get("field", ""), told.get("fix", "")])
