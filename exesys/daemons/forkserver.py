"""The fork server of the runner daemon: imports all that instances need before the first, and forks one for each life.

An interpreter of its own would cost each runner 0.2 s and 25 MB; a fork costs
milliseconds and what it changes. It is started first of all and has neither
threads nor a ZeroMQ context, so forking is safe. It ends with the daemon, and
its instances end with it (PR_SET_PDEATHSIG). What a user wrote is imported
only after the fork.

The daemon sends a number and one end of a line; the answer is the number and
a pid. A child that ended is told, and kept until the daemon has taken leave
of its process group, so that no pid means another process.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence

from exesys import environment
from exesys.channel import Channel
from exesys.config import Config
from exesys.instance import Instance
from exesys.process import die_with_parent


class ForkServer:
    """The loop of the process. A child leaves it by returning from `serve`."""

    def __init__(self, line: Channel, shared: Sequence[str]) -> None:
        """`shared` are modules to be imported before the first fork, so that all children share them."""
        self.line = line
        self._shared = shared
        self._poll = select.poll()
        self._poll.register(line, select.POLLIN)
        self._children: dict[int, int] = {}  # pidfd -> pid, of those that live

    def serve(self) -> Channel | None:
        """Fork when asked. Returns in each child with its line, and in the parent (None) when the daemon is gone."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor != self.line.fileno():
                    self._tell_end(descriptor)
                    continue
                message, passed = self.line.receive_with()
                if message is None:
                    return None
                kind, number = message
                if kind == "reap":
                    os.waitpid(number, 0)
                elif passed is not None and (channel := self._fork(number, passed)) is not None:
                    return channel

    def _share(self) -> None:
        for module in self._shared:
            importlib.import_module(module)
        self._shared = ()
        gc.collect()
        gc.freeze()  # what is shared stays shared

    def _fork(self, number: int, descriptor: int) -> Channel | None:
        if self._shared:
            self._share()
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # no more processes, or no memory: those there are go on
            os.close(descriptor)
            self.line.send(["unborn", number, error.errno])
            return None
        if pid:
            os.close(descriptor)
            pidfd = os.pidfd_open(pid)
            self._children[pidfd] = pid
            self._poll.register(pidfd, select.POLLIN)
            self.line.send(["forked", number, pid])
            return None
        die_with_parent(signal.SIGKILL, parent)
        os.setsid()
        self.line.close()
        for pidfd in self._children:
            os.close(pidfd)
        os.set_inheritable(descriptor, False)
        return Channel(socket.socket(fileno=descriptor))

    def _tell_end(self, pidfd: int) -> None:
        """A child ended: tell how. It stays a zombie until it is to be reaped."""
        self._poll.unregister(pidfd)
        pid = self._children.pop(pidfd)
        found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        os.close(pidfd)
        status = 0
        if found is not None:
            exited = found.si_code == os.CLD_EXITED
            status = found.si_status if exited else -found.si_status
        self.line.send(["ended", pid, status])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    die_with_parent(signal.SIGKILL, arguments.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(arguments.fd, False)
    line = Channel(socket.socket(fileno=arguments.fd))
    config: Config = environment.load_from(line.receive())
    server = ForkServer(line, ["redis", "pymongo"] if config.mongo.uri else ["redis"])
    channel = server.serve()
    if channel is not None:
        Instance(config, channel).live()
    return 0


if __name__ == "__main__":
    sys.exit(main())
