"""Application servers that show what one can do, and functions that call them."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

from exesys.context import Context

PAUSE_S = 0.005


class Desk:
    """Keeps things in memory, and notes in the Redis list `desk:told` what happens to it."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self._kept: dict[str, Any] = {}
        self._running = 0
        self._most = 0
        self._lock = threading.Lock()
        self._made_in = threading.get_ident()
        if ctx.redis.exists("desk:broken"):
            raise RuntimeError(ctx.redis.get("desk:broken").decode())

    def start(self) -> None:
        self._ctx.redis.rpush("desk:told", f"start {os.getpid()}")

    def stop(self) -> None:
        self._ctx.redis.rpush("desk:told", f"stop {os.getpid()}")

    def echo(self, value: Any = None) -> Any:
        """Give back what it got.

        This is not shown.
        """
        return value

    def keep(self, name: str, value: Any, *, times: int = 1) -> int:
        """Keep a value; return how many there are."""
        self._kept[name] = [value] * times
        return len(self._kept)

    def kept(self, name: str) -> Any:
        return self._kept[name]

    def where(self) -> dict[str, Any]:
        """Tell process and thread."""
        return {"pid": os.getpid(), "same_thread": threading.get_ident() == self._made_in}

    def sleep(self, seconds: float) -> float:
        with self._lock:
            self._running += 1
            self._most = max(self._most, self._running)
        time.sleep(seconds)
        with self._lock:
            self._running -= 1
        return seconds

    def most(self) -> int:
        """Return how many calls of `sleep` ran at once, at most."""
        return self._most

    async def later(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "awaited"

    def count(self, name: str) -> int:
        """Count in Redis: so a call that ran leaves a trace."""
        return int(self._ctx.redis.incr(name))

    def meet(self, name: str, others: int) -> int:
        """Return the process once so many calls are here at the same time."""
        self._ctx.redis.incr(name)
        while int(self._ctx.redis.get(name)) < others:
            time.sleep(PAUSE_S)
        return os.getpid()

    def wait_for_file(self, path: str) -> str:
        """Return when there is such a file; make one that says so before."""
        Path(f"{path}.waits").touch()
        while not Path(path).exists():
            time.sleep(PAUSE_S)
        return path

    def fail(self, text: str) -> None:
        raise ValueError(text)

    def fail_within(self) -> None:
        raise TypeError("not about the arguments")

    def large(self, size: int) -> str:
        return "x" * size

    def unsendable(self) -> object:
        return object()

    def leave(self) -> None:
        raise SystemExit(3)

    def _secret(self) -> str:
        return "secret"

    @staticmethod
    def plain() -> str:
        return "plain"

    @property
    def shown(self) -> str:
        return "a property"


def asks(data: list[Any], ctx: Context) -> Any:
    """Call a method: server, method, arguments."""
    name, method, *args = data
    return getattr(ctx.app(name), method)(*args)


def asks_in_vain(data: list[Any], ctx: Context) -> str:
    """Call a method that raises, and tell the error as the function sees it."""
    name, method, *args = data
    try:
        getattr(ctx.app(name, timeout_s=5), method)(*args)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is told
        return f"{type(error).__name__}: {error}"
    return "it went well"
