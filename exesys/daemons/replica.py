"""The replica of the private Redis: a second server with files of its own, and the relay by which it follows.

The server is a child of this process and ends with it. It is a replica from
its first moment on, and read-only. Its secret for the relay comes to it by
standard input, where nobody else can read it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys

from exesys import process, servers
from exesys.config import Config
from exesys.daemons.loop import Loop, run, settings
from exesys.process import die_with_parent
from exesys.relay import Relay
from exesys.store.snapshot import Source

LOCK_S = 60.0  # so long one before us may take to write what it has
ASK_AGAIN_S = 1.0

log = logging.getLogger("redis-backup")


class Replica:
    """Wires the server and the relay together."""

    def __init__(self, config: Config, loop: Loop) -> None:
        self.loop = loop
        prefix = config.redis.prefix
        self.ours = Source(servers.replica_url(config), prefix)
        self.relay = Relay(Source(config.redis_url, prefix), self.ours.lineage)
        server = servers.redis_server(config)
        data = servers.replica_data(config)
        servers.check_writer(server, data)
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The server holds it too, so that never two of them work on the same files.
        self.lock = process.hold_lock(servers.replica_lock(config), LOCK_S)
        servers.remember_writer(server, data)
        self.server = self._start(servers.replica_command(config, server))
        log.info("%s, process %d, follows through port %d of loopback", server, self.server.pid, self.relay.port)

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        ours = os.getpid()
        sys.stdout.flush()
        server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            env={**os.environ, **dict([servers.REDIS_MALLOC])},
            pass_fds=[self.lock],
            preexec_fn=lambda: die_with_parent(signal.SIGTERM, ours),
        )
        told = f"masterauth {self.relay.secret}\nreplicaof 127.0.0.1 {self.relay.port}\n"
        if server.stdin is not None:
            with server.stdin as settings:
                settings.write(told.encode())
        return server

    def serve(self) -> int:
        """Run until told to stop, or until the server ends; return the exit code."""
        self.relay.start()
        ended = os.pidfd_open(self.server.pid)
        self.loop.watch(ended)
        while not self.loop.stopping:
            if ended in self.loop.poll(ASK_AGAIN_S):
                log.error("the server %s", process.how_it_ended(self.server.wait()))
                return 1
        # Asked again, as it refuses to end while it writes what it was sent at first.
        while self.server.poll() is None:
            self.server.terminate()
            self.loop.poll(ASK_AGAIN_S)
        return 0


def main() -> int:
    die_with_parent()
    return Replica(settings("redis-backup"), Loop()).serve()


if __name__ == "__main__":
    run("redis-backup", main)
