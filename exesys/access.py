"""Who may ask REST what: tokens and their roles, hosts and origins, how many requests a second.

Without tokens all that reaches loopback may ask. Then the pages that a
browser of this machine shows are what is to be kept out: one that has given
its own name our address (DNS rebinding) is known by the header Host, one
that sends a form by the header Origin.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from exesys import tokens
from exesys.addresses import host_of, is_any, is_ip, is_loopback, url
from exesys.config import Config
from exesys.errors import Forbidden, RateLimited, Unauthorized, Unavailable
from exesys.keystore import NEW_TEXT, Watch
from exesys.rates import Buckets
from exesys.tokens import Role

CALLER = "exesys.caller"  # in the environ of a request: whose it is
WHO = "exesys.who"  # the same for people: role and name of the token
SAFE = ("GET", "HEAD", "OPTIONS")
ALLOWED_METHODS = "GET, POST, PATCH, DELETE"
ALLOWED_HEADERS = "Authorization, Content-Type, Last-Event-ID, Operation, Prefer"
PREFLIGHT_S = "600"
_SEND = "Send the header `Authorization: Bearer TOKEN`; `bin/exesys keys new` makes one."

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


def origins(config: Config) -> frozenset[str]:
    """Return the origins whose pages may ask: those of [rest] origins, and that of our own web server."""
    host, port = config.web.host, config.web.port
    hosts = set() if is_any(host) else {host}
    if is_any(host) or is_loopback(host):
        hosts |= {"127.0.0.1", "localhost"}
    if not is_loopback(host):
        hosts |= set(config.rest.names)  # by which others reach this machine
    return frozenset({*config.rest.origins, *(url(each, port).lower() for each in hosts)})


def who(environ: Environ) -> tuple[Role, str]:
    """Return the role and the name of the token by which a request was let in: admin and "" where there is none."""
    role, name = environ.get(WHO, (Role.admin, ""))
    return role, name


class Gate:
    """Lets requests in, or raises why not."""

    def __init__(
        self,
        config: Config,
        watch: Watch,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._watch = watch
        self._clock = clock
        self._wall = wall
        self._wide = not is_loopback(config.rest.host)
        self._names = frozenset(("localhost", "127.0.0.1", "::1", *config.rest.names))
        self._origins = origins(config)
        limits = config.limits
        self._buckets = Buckets(limits.rate, limits.burst) if limits.rate else None
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise Unavailable while nobody could be let in."""
        if not self._watch.tokens() and self._wide:
            raise Unavailable("REST listens wider than loopback, and there is no token.", fix=f"Run `{NEW_TEXT}`.")

    @property
    def guarded(self) -> bool:
        """Whether a token is needed. Raises Unavailable when the tokens cannot be read."""
        return self._wide or bool(self._watch.tokens())

    def admit(self, environ: Environ, role: Role) -> None:
        """Let a request in, for what needs this role.

        Raises Unauthorized, Forbidden, RateLimited, or Unavailable when the tokens cannot be read.
        """
        if role is Role.anyone:
            return
        caller = self._caller(environ, role)
        if self._buckets is not None:
            environ[CALLER] = caller
            self._take(caller, 1, 0)

    def may_stay(self, environ: Environ, role: Role) -> bool:
        """Tell whether a request that was let in still would be, however many came since."""
        try:
            self._caller(environ, role)
        except (Unauthorized, Forbidden):
            return False
        except Unavailable:  # the tokens cannot be read just now
            return True
        return True

    def _caller(self, environ: Environ, role: Role) -> object:
        """Return whose a request is. Raises as `admit` does."""
        kept = self._watch.tokens()
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and environ["REQUEST_METHOD"] not in SAFE:
            self._check_origin(origin.lower(), environ)
        if kept:
            token = self._known(kept, environ.get("HTTP_AUTHORIZATION", ""))
            if token.role < role:
                raise Forbidden(
                    f"the token {token.name} has the role {token.role.name}, and this needs {role.name}.",
                    fix=f"Use a token with the role {role.name}: `bin/exesys keys new {role.name} NAME`.",
                )
            environ[WHO] = (token.role, token.name)
            return token.digest
        if self._wide:
            self.check()
        self._check_host(environ.get("HTTP_HOST", ""))
        return environ.get("REMOTE_ADDR", "")

    def charge(self, environ: Environ, commands: int) -> None:
        """Count a request that was let in as so many. Raises RateLimited."""
        if self._buckets is not None and commands > 1:
            self._take(environ[CALLER], commands, 1)

    def refusal(self, headers: Mapping[str, str]) -> Unauthorized | Unavailable | None:
        """Return why a request with these headers (WSGI's names without HTTP_) is refused in any case, None else.

        For bodies so large that they are not read for just anybody.
        """
        try:
            kept = self._watch.tokens()
            if kept:
                self._known(kept, headers.get("AUTHORIZATION", ""))
        except (Unauthorized, Unavailable) as error:
            return error
        return None

    def _known(self, kept: Sequence[tokens.Token], header: str) -> tokens.Token:
        given = tokens.bearer(header)
        if not given:
            raise Unauthorized("this needs a token, and none was sent.", fix=_SEND)
        token = tokens.find(kept, given)
        if token is None:
            raise Unauthorized("the token that was sent is not known here.", fix=_SEND)
        if token.expires_s and token.expired(self._wall()):
            fix = f"Make another: `bin/exesys keys new {token.role.name} {token.name} --rotate`."
            raise Unauthorized(f"the token {token.name} has expired.", fix=fix)
        return token

    def _check_host(self, header: str) -> None:
        host = host_of(header)
        if host and host not in self._names and not is_ip(host):
            raise Forbidden(
                f"the request is for the host {host[:60]!r}, which is no name of this server.",
                field="Host",
                fix="Ask for 127.0.0.1 or localhost, list the name in [rest] names, or use tokens.",
            )

    def _check_origin(self, origin: str, environ: Environ) -> None:
        # Its own, also when a proxy speaks TLS for it: who has taken our address under another name is known by Host.
        if origin in self._origins or origin.partition("://")[2] == environ.get("HTTP_HOST", "").lower():
            return
        raise Forbidden(
            f"pages of {origin[:60]!r} may not change anything here.",
            field="Origin",
            fix="List the origin in [rest] origins, if they shall.",
        )

    def _take(self, caller: object, cost: int, held: int) -> None:
        assert self._buckets is not None
        with self._lock:
            wait_s = self._buckets.take(caller, cost, self._clock(), held)
        if wait_s:
            raise RateLimited(
                "too many requests of this caller: [limits] rate says how many a second.",
                fix=f"Send it again in {wait_s:.1f} s.",
                wait_s=wait_s,
            )


class Cors:
    """Lets pages of the origins listed read answers, and ask with a token (the Fetch standard's CORS)."""

    def __init__(self, app: Application, origins: Iterable[str], headers: Mapping[str, str]) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._headers = headers

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        given = environ.get("HTTP_ORIGIN", "")
        allowed = given.lower() in self._origins
        added = [("Vary", "Origin")]
        if allowed:
            added += [("Access-Control-Allow-Origin", given), ("Access-Control-Expose-Headers", "Retry-After")]
        if allowed and environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ:
            added += [
                ("Access-Control-Allow-Methods", ALLOWED_METHODS),
                ("Access-Control-Allow-Headers", ALLOWED_HEADERS),
                ("Access-Control-Max-Age", PREFLIGHT_S),
            ]
            start_response("204 No Content", [*self._headers.items(), *added])
            return []

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            return start_response(status, [*headers, *added], exc_info)

        return self._app(environ, start)
