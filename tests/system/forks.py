"""The command line in processes that need not load Python and ExeSys first: each is forked from one that has.

`bin/exesys` itself, and all that `bin/exesys up` starts, are programs of their own as ever.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path


class Forks:
    """Runs commands, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: subprocess.Popen[str] | None = None

    def run(
        self, words: Sequence[str], cwd: Path, environ: Mapping[str, str], stdin: str | None, within_s: float
    ) -> tuple[int, str, str]:
        """Run `exesys WORDS…` to its end; return its exit code, and what it wrote."""
        with self._lock, tempfile.TemporaryDirectory() as name:
            given, out, err = (Path(name, stream) for stream in ("in", "out", "err"))
            given.write_text(stdin or "", encoding="utf-8")
            asked = [list(words), str(cwd), dict(environ), [str(given), str(out), str(err)]]
            code = self._ask(asked, within_s)
            return code, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")

    def _ask(self, asked: list[object], within_s: float) -> int:
        if self._server is None:
            command = [sys.executable, __file__]
            self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        pid = int(self._server.stdout.readline())
        overdue = threading.Timer(within_s, os.kill, [pid, 9])
        overdue.start()
        code = int(self._server.stdout.readline())
        overdue.cancel()
        return code

    def close(self) -> None:
        if self._server is not None:
            self._server.communicate()
            self._server = None


def serve() -> list[str] | None:
    """Fork for each line of stdin. Returns in the child, with its words; in the parent at the end."""
    for line in sys.stdin:
        words, cwd, environ, streams = json.loads(line)
        pid = os.fork()  # there is one thread, and no context of ZeroMQ
        if not pid:
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(environ)
            for fd, path in enumerate(streams):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), fd)
            sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)  # the other has read ahead
            return list(words)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


def load() -> None:
    """Import what the commands import, so that they find it there."""
    import pkgutil
    from importlib import import_module

    import exesys

    for module in pkgutil.walk_packages(exesys.__path__, "exesys."):
        if not module.name.startswith("exesys.daemons"):
            import_module(module.name)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    load()
    words = serve()
    if words is not None:
        from exesys import cli

        sys.exit(cli.main(words))
