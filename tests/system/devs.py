"""Runs of `exesys dev` for the tests, and systems whose first directory of modules is their own."""

import signal
import subprocess
import sys
import threading

from harness import CHECKOUT, until


class Dev:
    """A run of `exesys dev`, whose output is read all the time."""

    def __init__(self, system, *words, stdout=subprocess.PIPE):
        self.lines = []
        command = [sys.executable, "-m", "exesys.cli", "dev", *words]
        self.process = subprocess.Popen(
            command, cwd=system.root, env=system.environ, stdout=stdout, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout or ():
            self.lines.append(line.rstrip("\n"))

    def told(self, text, within_s=60):
        """Wait for a line with this text, and return it."""
        return until(lambda: next((line for line in list(self.lines) if text in line), None), text, within_s)

    def end(self, signum=signal.SIGINT):
        self.process.send_signal(signum)
        code = self.process.wait(60)
        self._reader.join()
        return code


def a_system(make_system, tmp_path, **keys):
    modules = tmp_path / "modules"
    return make_system(start=False, modules=[modules, CHECKOUT / "modules"], **keys), modules
