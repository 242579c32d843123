"""An instance: the process that is one life of a runner. Made by fork, in `daemons/forkserver.py`.

It knows nothing of the bus. What it is to run comes over the line from its
daemon, later perhaps that it is to stop; back go what it prints and its
progress, and how it ended. A thread reads the line, so that the function has
the main thread, where signals and `asyncio` want it.
"""

from __future__ import annotations

import asyncio
import atexit
import io
import logging
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

from exesys import codec
from exesys.bus.client import Client
from exesys.channel import Channel
from exesys.config import Config
from exesys.context import Resources, RunnerContext, RunnerInfo
from exesys.errors import BadCommand
from exesys.functions import Library, Terminated, describe_failure
from exesys.runner import Ending, parse_name

TELL_S = 0.25
CHUNK_BYTES = 16 << 10  # told at once; of more, the end is kept
CUT = "… {} bytes left out: more was printed than can be kept …\n"


class Scribe(io.TextIOBase):
    """Takes what a runner prints and its progress, and tells the daemon, at most each `TELL_S` seconds."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._teller: threading.Thread | None = None
        self._told_at = 0.0
        self._parts: list[str] = []
        self._bytes = self._left_out = 0
        self._progress: tuple[float, str] = (-1.0, "")
        self._changed = False

    def write(self, text: str) -> int:
        with self._lock:
            self._parts.append(text)
            self._bytes += len(text.encode("utf-8", "replace"))
            while self._bytes > CHUNK_BYTES and len(self._parts) > 1:
                first = len(self._parts.pop(0).encode("utf-8", "replace"))
                self._bytes -= first
                self._left_out += first
        self._tell_soon()
        return len(text)

    def writable(self) -> bool:
        return True

    def progress(self, fraction: float, text: str) -> None:
        with self._lock:
            self._progress, self._changed = (fraction, text), True
        self._tell_soon()

    def _tell_soon(self) -> None:
        if time.monotonic() - self._told_at >= TELL_S:
            self.tell_all()
            return
        self._due.set()
        if self._teller is None:
            self._teller = threading.Thread(target=self._keep_telling, daemon=True, name="scribe")
            self._teller.start()

    def _keep_telling(self) -> None:
        pause = threading.Event()
        while True:
            self._due.wait()
            pause.wait(TELL_S)
            self._due.clear()
            self.tell_all()

    def tell_all(self) -> None:
        """Tell what has come since the last time."""
        with self._lock:
            self._told_at = time.monotonic()
            if not self._parts and not self._changed:
                return
            text = "".join(self._parts)
            size = len(text.encode("utf-8", "replace"))
            if size > CHUNK_BYTES:
                text = text[-CHUNK_BYTES // 4 :]  # a character has at most four bytes
                self._left_out += size - len(text.encode("utf-8", "replace"))
            if self._left_out:
                text = CUT.format(self._left_out) + text
            self._parts, self._bytes, self._left_out, self._changed = [], 0, 0, False
            self._channel.send(["note", *self._progress, _sendable(text)])


def _sendable(text: str) -> str:
    """A lone surrogate cannot be packed; show it as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


class Instance:
    """The life of one process, from its fork to its end."""

    def __init__(self, config: Config, channel: Channel) -> None:
        self.config = config
        self.channel = channel
        self.scribe = Scribe(channel)
        self.pid = os.getpid()
        self.told_to_stop = False  # by its daemon: `ctx.stopping` is the function's, too
        self.resources = Resources(config, lambda: Client(config))

    def live(self) -> NoReturn:
        """Wait for what is to be run, run it, and end the process."""
        code = 0
        try:
            message = self.channel.receive()
            if message is not None:  # else it was not wanted after all, or the daemon is gone
                self._live(*message[1:])
        except Terminated as ending:
            code = int(ending.code or 0)
        finally:
            # After TERM, too: what the function's clean-up has printed.
            self.scribe.tell_all()
            if os.getpid() != self.pid:
                os._exit(code)  # a child that the function has forked, and that came back from it
            leave(code)

    def _live(self, name: str, epoch: int, target: str, data: bytes) -> None:
        signal.signal(signal.SIGTERM, _terminate)
        sys.stdout = sys.stderr = self.scribe
        logging.basicConfig(
            stream=self.scribe, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", force=True
        )
        type_, uuid = parse_name(name)
        context = RunnerContext(RunnerInfo(type_, uuid, target, epoch), self.resources, self.scribe.progress)
        threading.Thread(target=self._listen, args=(context,), daemon=True, name="listener").start()
        ending, error = self._run(context, target, data)
        if error:
            print(codec.unpack(error)["traceback"].rstrip())
        self.scribe.tell_all()
        if os.getpid() == self.pid:
            self.channel.send(["ended", int(ending), error])

    def _run(self, context: RunnerContext, target: str, data: bytes) -> tuple[Ending, bytes]:
        try:
            library = Library.load(self.config.module_dirs, only=target.partition(".")[0])
            self.channel.send(["began"])
            library.live(target, codec.unpack(data), lambda: context, context.on_stop)
            self.resources.close()  # what it has submitted is taken before it ends
        except asyncio.CancelledError:
            if not context.stopping.is_set():
                return Ending.failed, _failure(RuntimeError("it was cancelled, and not by a stop"))
        except Terminated:
            raise
        except BaseException as error:  # noqa: BLE001  # whatever a runner raises is its end
            return Ending.failed, _failure(error)
        return (Ending.stopped if self.told_to_stop else Ending.returned), b""

    def _listen(self, context: RunnerContext) -> None:
        while (message := self.channel.receive()) is not None:
            if message[0] == "stop":
                self.told_to_stop = True
                context.stop()


def leave(code: int) -> NoReturn:
    """End this process as the interpreter ends, but for taking its modules apart.

    That would touch, and so copy, whatever it still shares with the fork
    server: 20 ms and 20 MB for each of many that stop at once.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter calls: waits for threads
    atexit._run_exitfuncs()
    os._exit(code)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(128 + number)


def _failure(error: BaseException) -> bytes:
    type_, text, traceback = describe_failure(error)
    told: dict[str, Any] = {"type": type_, "message": _sendable(text), "traceback": _sendable(traceback)}
    try:
        return codec.pack(told)
    except BadCommand:
        return codec.pack({"type": type_, "message": "", "traceback": ""})
