"""Tells URLs of the ends of steps: a thread that looks what is due, and a few that POST.

It works only while the lease of the active controller holds, and never in that
controller's own thread: a receiver that is slow keeps nobody waiting but itself.
"""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from exesys import __version__, callbacks, codec, logs
from exesys.command import parts_of
from exesys.config import Config
from exesys.errors import BadCommand, ExesysError, Unavailable
from exesys.http import to_json
from exesys.lease import Lease
from exesys.posting import Post, Withheld
from exesys.secret import read_or_make
from exesys.states import State
from exesys.store.callbacks import Outbox, Taken
from exesys.views import to_of

THREADS = 8
PER_RECEIVER = 4  # by host and port: one receiver cannot hold all threads
LOOK_S = 0.2
UNWANTED_LOOK_S = 2.0  # where no host may be told: what was sent before that is tried in vain, and given up
AWAY_S = 1.0
STOP_S = 2.0
MOST_DUE = 500
# A try of which nothing was noted, since its controller was killed, is made again so much after its time limit.
UNNOTED_S = 5.0
NOTING_S = 30.0
_KEY = "callback-key"
log = logging.getLogger("controller.callbacks")


def told(taken: Taken) -> dict[str, Any]:
    """Return what is said of a step's end. Raises BadCommand when the entry in Redis was spoilt."""
    from_, job_id = parts_of(taken.ref)
    body = codec.unpack(taken.body)
    if taken.state not in State.__members__ or not isinstance(body, dict):
        raise BadCommand(f"the entry of {taken.ref} in Redis is spoilt.")
    state = State[taken.state]
    said: dict[str, Any] = {"job_id": job_id, "from": from_, "to": to_of(taken.to), "cmd": taken.cmd}
    said |= {"status": int(state), "state": state.name}
    if state is State.error:
        said["error"] = {name: body.get(name, "") for name in ("type", "message")} | {"attempts": taken.attempt}
    else:
        said["result"] = body
    return {**said, "attempts": taken.attempt}


class Courier:
    """Works off the outbox in threads of its own, from `start` to `stop`."""

    def __init__(self, config: Config, outbox: Outbox, lease: Lease) -> None:
        self._settings = config.callbacks
        self._key_path = config.data / _KEY
        self._hosts = callbacks.Hosts(config.callbacks.hosts)
        self._look_s = LOOK_S if config.callbacks.hosts else UNWANTED_LOOK_S
        self._outbox = outbox
        self._lease = lease
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._underway: dict[str, str] = {}  # ref -> host and port
        self._posts: set[Post] = set()
        self._waiting: deque[tuple[str, str]] = deque()  # seen to be due, and not taken yet
        self._looked_at = float("-inf")
        self._tls: ssl.SSLContext | None = None
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        """Begin; with a key, so that receivers can be given it before the first callback."""
        if self._settings.hosts:
            read_or_make(self._key_path)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread goes on."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Take no more, and give what is under way a moment; what is cut off is sent again by the next controller."""
        self._stopping.set()
        self._wake.set()
        until = time.monotonic() + STOP_S
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        while self._underway and time.monotonic() < until:
            self._wake.clear()
            self._wake.wait(max(until - time.monotonic(), 0.0))

    # --- the thread that looks ----------------------------------------------

    def _run(self) -> None:
        away = False
        while not self._stopping.is_set():
            try:
                self._round(time.monotonic())
                away = False
            except Unavailable as error:
                if not away:
                    log.warning("callbacks wait: %s", error)
                away = True
            self._wake.wait(AWAY_S if away else self._look_s)
            self._wake.clear()

    def _round(self, now: float) -> None:
        with self._lock:
            late = [post for post in self._posts if now >= post.until]
        for post in late:
            post.cut()
        if not self._lease.holds(now):
            self._waiting.clear()
            return
        if len(self._underway) >= THREADS:
            return
        # Looked for again at once only when all that was seen is taken: a receiver that is slow leaves the rest there.
        if not self._waiting or now >= self._looked_at + AWAY_S:
            self._waiting = deque(self._outbox.due(_now_ms(), MOST_DUE))
            self._looked_at = now
        with self._lock:
            busy = Counter(self._underway.values())
        left: deque[tuple[str, str]] = deque()
        while self._waiting and len(self._underway) < THREADS:
            ref, url = self._waiting.popleft()
            receiver = _receiver(url)
            if ref in self._underway:
                continue
            if busy[receiver] >= PER_RECEIVER:
                left.append((ref, url))
                continue
            busy[receiver] += 1
            self._take(ref, receiver)
        self._waiting.extendleft(reversed(left))

    def _take(self, ref: str, receiver: str) -> None:
        now_ms = _now_ms()
        again_ms = now_ms + int((self._settings.timeout_s + UNNOTED_S) * 1000)
        taken = self._outbox.take(self._lease.session, ref, now_ms, again_ms)
        if taken is None:
            return
        with self._lock:
            self._underway[ref] = receiver
        threading.Thread(target=self._try, args=(taken,), name=f"callback {ref}", daemon=True).start()

    # --- the threads that POST ------------------------------------------------

    def _try(self, taken: Taken) -> None:
        try:
            problem = self._post(taken)
            if problem is not None:
                self._note(taken, problem)
        finally:
            with self._lock:
                del self._underway[taken.ref]
            self._wake.set()

    def _post(self, taken: Taken) -> str | None:
        """Send it; return what went wrong, "" if nothing did, None if it was not this one's to send."""
        try:
            post = Post(self._hosts.check(taken.url), self._hosts, self._settings.timeout_s)
            with self._lock:
                self._posts.add(post)
            try:
                body = to_json(told(taken))
                post.send(self._headers(taken, body), body, self._may_send, self._tls_context)
            finally:
                with self._lock:
                    self._posts.discard(post)
        except Withheld:
            return None
        except (ExesysError, OSError) as error:
            return error.message if isinstance(error, ExesysError) else str(error)
        return ""

    def _headers(self, taken: Taken, body: bytes) -> dict[str, str]:
        timestamp = str(int(time.time()))
        traced = {"traceparent": taken.traceparent} if taken.traceparent else {}
        return {
            "Content-Type": "application/json",
            "User-Agent": f"exesys/{__version__}",
            "X-ExeSys-Delivery": taken.delivery,
            "X-ExeSys-Timestamp": timestamp,
            "X-ExeSys-Signature": callbacks.signature(read_or_make(self._key_path), timestamp, body),
            **traced,
        }

    def _may_send(self) -> bool:
        return self._lease.holds(time.monotonic())

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def _note(self, taken: Taken, problem: str) -> None:
        if not problem:
            self._keep_noting(lambda: self._outbox.sent(taken))
            return
        where, about = (
            f"{taken.ref} to {_origin(taken.url)}",
            logs.about(taken.ref, cmd=taken.cmd, traceparent=taken.traceparent),
        )
        if taken.tries >= self._settings.tries:
            log.error("the callback of %s is given up after %d tries: %s", where, taken.tries, problem, extra=about)
            self._keep_noting(lambda: self._outbox.failed(taken, problem))
            return
        if taken.tries == 1:
            log.warning("the callback of %s will be tried again: %s", where, problem, extra=about)
        delay_s = callbacks.delay_s(self._settings.backoff_s, taken.tries, random.random())
        self._keep_noting(lambda: self._outbox.later(taken, problem, _now_ms() + int(delay_s * 1000)))

    def _keep_noting(self, note: Callable[[], bool]) -> None:
        """Note it, also when Redis is away for a moment: what is not noted is sent again."""
        until = time.monotonic() + NOTING_S
        while True:
            try:
                note()
                return
            except Unavailable:
                if time.monotonic() >= until or self._stopping.wait(AWAY_S):
                    return


def _receiver(url: str) -> str:
    try:
        return callbacks.target(url).netloc
    except ExesysError:
        return ""


def _origin(url: str) -> str:
    try:
        return callbacks.target(url).origin
    except ExesysError:
        return "what is no URL"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
