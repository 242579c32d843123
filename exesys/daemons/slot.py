"""A slot: one process that runs functions, one after the other.

It knows nothing of the bus. Jobs come over the channel from its daemon, and
results, progress and what a function prints go back the same way. What a
function prints through `sys.stdout`, `sys.stderr` or `logging` belongs to its
job's log.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from exesys import codec, environment
from exesys.bus.messages import Added, Outcome
from exesys.catalogue import Catalogue
from exesys.channel import Channel
from exesys.command import parts_of
from exesys.config import Config
from exesys.context import Context, JobInfo, Resources
from exesys.errors import BadCommand, TooLarge
from exesys.functions import Library, Terminated, describe_failure
from exesys.process import die_with_parent
from exesys.spans import Spans, set_up

NOTE_S = 0.25
CUT = "\n… cut here: the log is longer than [limits] log_bytes\n"


class Journal(io.TextIOBase):
    """Takes what a job prints and its progress, and tells the daemon now and then."""

    def __init__(self, channel: Channel, limit_bytes: int) -> None:
        self._channel = channel
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._teller: threading.Thread | None = None
        self._told_at = 0.0
        self.open("", 0)

    def open(self, ref: str, attempt: int) -> None:
        """Begin the log of an attempt."""
        self._ref, self._attempt = ref, attempt
        self._parts: list[str] = []
        self._bytes = 0
        self._fraction, self._text = -1.0, ""

    def close_log(self) -> str:
        """End the log of this attempt and return it."""
        with self._lock:
            parts, self._parts, self._ref = self._parts, [], ""  # what is said from here on belongs to no job
            return _sendable("".join(parts)) if parts else ""

    def write(self, text: str) -> int:
        with self._lock:
            if self._ref and self._bytes < self._limit:
                room = self._limit - self._bytes
                encoded = len(text.encode("utf-8", "replace"))
                self._parts.append(text if encoded <= room else text[:room] + CUT)
                self._bytes += encoded
        self._tell_soon()
        return len(text)

    def writable(self) -> bool:
        return True

    def progress(self, fraction: float, text: str) -> None:
        with self._lock:
            self._fraction, self._text = float(fraction), text
        self._tell_soon()

    def _tell_soon(self) -> None:
        """Tell at once if that was not done lately, else let the teller's thread do it."""
        if time.monotonic() - self._told_at >= NOTE_S:
            self.tell_all()
            return
        self._due.set()
        if self._teller is None:
            self._teller = threading.Thread(target=self._keep_telling, daemon=True, name="journal")
            self._teller.start()

    def _keep_telling(self) -> None:
        pause = threading.Event()
        while True:
            self._due.wait()
            pause.wait(NOTE_S)
            self._due.clear()
            self.tell_all()

    def tell_all(self) -> None:
        """Tell the daemon all that the open log holds, if one is open."""
        with self._lock:
            self._told_at = time.monotonic()
            if self._ref:
                log = _sendable("".join(self._parts))
                self._channel.send(["note", self._ref, self._attempt, self._fraction, self._text, log])


def _sendable(text: str) -> str:
    """A lone surrogate cannot be packed; show it as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


class Slot:
    """The loop of the process."""

    def __init__(self, config: Config, channel: Channel) -> None:
        self.config = config
        self.channel = channel
        self.journal = Journal(channel, config.limits.log_bytes)
        self.resources = Resources(config, self._make_client)
        self.spans = Spans()
        self.terminated = False
        self.library: Library

    def _make_client(self) -> Any:
        from exesys.bus.client import Client

        return Client(self.config)

    def load(self, skip: dict[str, str]) -> None:
        """Import the modules, telling each before it is tried, and announce the catalogue."""

        def importing(module: str) -> None:
            self.channel.send(["import", module])

        self.library = Library.load(self.config.module_dirs, skip=skip, on_import=importing)
        catalogue: Catalogue = self.library.catalogue
        self.channel.send(["ready", codec.pack(catalogue.to_wire())])

    def serve(self) -> None:
        """Run jobs until told to quit or the daemon is gone."""
        try:
            while not self.terminated:
                message = self.channel.receive()
                if message is None or message[0] == "quit":
                    return
                self.run(*message[1:])
        finally:
            # After TERM: what the job still printed, its clean-up included. Here the
            # main thread holds no lock of the journal's, as it may inside the handler.
            self.journal.tell_all()

    def run(self, ref: str, attempt: int, to: str, cmd: str, data: bytes, traceparent: str) -> None:
        """Run one job and report it."""
        self.journal.open(ref, attempt)
        from_, job_id = parts_of(ref)
        contexts: list[Context] = []  # one, if the function takes it

        def context() -> Context:
            info = JobInfo(job_id, from_, to, cmd, attempt, span.traceparent)
            contexts.append(Context(info, self.resources, self.journal.progress, lambda: self.terminated))
            return contexts[0]

        began_ns = time.time_ns()
        began = time.perf_counter()
        outcome = Outcome.done
        added: Sequence[Added] = ()
        known = {"exesys.job_id": job_id, "exesys.cmd": cmd, "exesys.attempt": attempt}
        with self.spans.around(cmd, traceparent, "consumer", known) as span:
            try:
                body = self.library.call(cmd, codec.unpack(data), context)
                self._check_size(body)
                if contexts:
                    added = contexts[0].added
            except BaseException as error:  # whatever a function raises is its own result
                if self.terminated:
                    raise
                outcome = Outcome.failed
                body = _failure(error)
                span.failed(type(error).__name__, error)
            span.note("exesys.outcome", outcome.name)
        run_ms = (time.perf_counter() - began) * 1000
        log = self.journal.close_log()
        began_ms = began_ns // 1_000_000
        ended_ms = began_ms + round(run_ms)
        self.channel.send(["done", ref, attempt, int(outcome), body, log, began_ms, ended_ms, added, run_ms])

    def _check_size(self, body: bytes) -> None:
        most = self.config.limits.data_bytes
        if len(body) > most:
            raise TooLarge(
                f"the result has {len(body):,} bytes; at most {most:,} are allowed.",
                fix="Store it elsewhere and return a reference, or raise [limits] data_bytes.",
            )

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """TERM: let the function's own clean-up run, then end."""
        self.terminated = True
        raise Terminated(128 + number)


def _failure(error: BaseException) -> bytes:
    type_, text, traceback = describe_failure(error)
    try:
        return codec.pack({"type": type_, "message": _sendable(text), "traceback": _sendable(traceback)})
    except BadCommand:
        return codec.pack({"type": type_, "message": "", "traceback": ""})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--skip", nargs=2, action="append", default=[])
    arguments = parser.parse_args()
    die_with_parent(signal.SIGKILL, arguments.parent)
    # The daemon's own descriptors stay out of what a function starts.
    os.set_inheritable(arguments.fd, False)
    faulthandler.enable(2)  # the daemon's log
    channel = Channel(socket.socket(fileno=arguments.fd))
    slot = Slot(environment.load_from(channel.receive()), channel)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up("worker")
    slot.load(dict(arguments.skip))
    # Not earlier: TERM must end a module that hangs at import, whatever it catches.
    signal.signal(signal.SIGTERM, slot.terminate)
    sys.stdout = sys.stderr = slot.journal
    logging.basicConfig(
        stream=slot.journal, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", force=True
    )
    slot.serve()
    slot.resources.close()  # what functions submitted is taken before this process goes
    return 0


if __name__ == "__main__":
    sys.exit(main())
