"""`python -m exesys.launch redis | mongo | supervisord`: how programs that are not ours are started.

The two servers become what they run by exec, after the kernel was told to
end them with supervisord. supervisord runs in this process: it is the real
one, but it stops the programs one after the other.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys

from exesys import environment, servers
from exesys.config import Config
from exesys.errors import ExesysError
from exesys.process import SUPERVISOR_PID, die_with_parent

# supervisord closes all descriptors from this one on when it is told to reload.
FIRST_CLOSED_FD = 5


def main(arguments: list[str] | None = None) -> int:
    """Start one of them. Returns only when that fails, or when supervisord ends."""
    parser = argparse.ArgumentParser(prog="python -m exesys.launch", description=__doc__)
    parser.add_argument("program", choices=["redis", "mongo", "supervisord"])
    parser.add_argument("--conf", help="supervisord: its configuration")
    parser.add_argument("--lock-fd", type=int, help="supervisord: the descriptor that holds the home's lock")
    parser.add_argument("--parent", type=int, help="supervisord: end with this process")
    options = parser.parse_args(arguments)
    if options.program == "supervisord":
        return _supervise(options.conf, options.lock_fd, options.parent)
    environ = dict(os.environ)  # with the pid of supervisord, by which leftovers are known
    die_with_parent(signal.SIGTERM)
    try:
        config = environment.load()
        if options.program == "redis":
            command = _redis(config)
            environ.setdefault(*servers.REDIS_MALLOC)
        else:
            command = _mongo(config)
        os.execve(command[0], command, environ)
    except (ExesysError, OSError) as error:
        print(error, file=sys.stderr)
    return 1


def _redis(config: Config) -> list[str]:
    server = servers.redis_server(config)
    servers.check_not_lost(config)
    servers.redis_data(config).mkdir(parents=True, exist_ok=True, mode=0o700)
    servers.remember_writer(server, servers.redis_data(config))
    return servers.redis_command(config, server)


def _mongo(config: Config) -> list[str]:
    server = servers.mongo_server(config)
    if server is None:
        raise SystemExit("There is no MongoDB server to start: neither mongod nor SecantusDB is installed.")
    data = servers.mongo_data(config)
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    servers.remember_writer(server, data)
    (data / "secantusd.toml").touch()
    os.chdir(data)
    return servers.mongo_command(config, server, config.mongo.port)


def _supervise(conf: str, lock_fd: int | None, parent: int | None) -> int:
    """Run supervisord until it is told to end.

    Every program finds its pid in the environment and compares, so that one
    started in the moment of its death ends too (see `die_with_parent`).
    """
    from supervisor import supervisord
    from supervisor.states import ProcessStates

    class OrderedSupervisor(supervisord.Supervisor):  # type: ignore[misc]  # supervisor has no types
        """Stops the programs started last first and waits for them, so that a
        worker can still give its results to the router, and the router to Redis.
        """

        def ordered_stop_groups_phase_1(self) -> None:
            left = self.stop_groups[-1].get_unstopped_processes() if self.stop_groups else []
            last = max((process.config.priority for process in left), default=0)
            for process in left:
                if process.config.priority < last:
                    continue
                if process.get_state() in (ProcessStates.RUNNING, ProcessStates.STARTING):
                    process.stop()
                elif process.get_state() == ProcessStates.BACKOFF:
                    process.give_up()

    if parent is not None:
        die_with_parent(signal.SIGTERM, parent)
    if lock_fd is not None and lock_fd >= FIRST_CLOSED_FD:
        fcntl.fcntl(lock_fd, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(lock_fd)
    os.environ[SUPERVISOR_PID] = str(os.getpid())
    supervisord.Supervisor = OrderedSupervisor  # main() makes the one this name stands for
    supervisord.main(["--nodaemon", "--configuration", conf])
    return 0


if __name__ == "__main__":
    sys.exit(main())
