"""Talking to a running supervisord, over XML-RPC on its unix socket."""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from pathlib import Path
from typing import Any, NamedTuple

from exesys.errors import BootError

TIMEOUT_S = 10.0
# What these are: https://supervisord.org/api.html and https://supervisord.org/subprocess.html
_ENDING = 6
_ALREADY_STARTED = 60
_NOT_RUNNING = 70
_RUNNING_SUPERVISOR = "RUNNING"


class ProgramState(NamedTuple):
    """One program. `state` is supervisord's word for it; `pid` is None when there is none."""

    name: str
    state: str
    pid: int | None
    note: str


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _Connection(self._path)


class Supervisor:
    """The supervisord that listens on `path`. Every call raises BootError when it is silent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._proxy = xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(str(path)))

    def _call(self, method: str, *arguments: Any, passing: int = 0) -> Any:
        """Ask supervisord; a fault with the number `passing` is as good as an answer."""
        try:
            return getattr(self._proxy.supervisor, method)(*arguments)
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise BootError(f"supervisord does not answer on {self._path}: {error}.") from error
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == passing:
                return None
            raise BootError(
                f"supervisord refuses {method} {' '.join(map(str, arguments))}: {fault.faultString}."
            ) from fault

    def running(self) -> bool:
        """Tell whether it answers and is not about to end."""
        try:
            return bool(self._call("getState")["statename"] == _RUNNING_SUPERVISOR)
        except BootError:
            return False

    def pid(self) -> int:
        return int(self._call("getPID"))

    def programs(self) -> list[ProgramState]:
        return [
            ProgramState(info["name"], info["statename"], info["pid"] or None, info["spawnerr"] or info["description"])
            for info in self._call("getAllProcessInfo")
        ]

    def start(self, name: str) -> None:
        """Start a program of the group, without waiting for it."""
        self._call("startProcess", f"exesys:{name}", False, passing=_ALREADY_STARTED)

    def restart(self, name: str) -> None:
        """Start a program of the group that does not run at once, also when it would be tried later."""
        self._call("stopProcess", f"exesys:{name}", True, passing=_NOT_RUNNING)
        self.start(name)

    def shutdown(self) -> None:
        """Have it stop all programs, in order, and end. Returns at once."""
        self._call("shutdown", passing=_ENDING)
