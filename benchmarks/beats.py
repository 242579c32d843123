"""What workers cost a router that do nothing but beat: 500 sessions, each as a worker daemon keeps one."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import zmq

from benchmarks.system import router_rss_bytes, used_s
from exesys import bootstrap, process
from exesys.bus import messages as m
from exesys.bus import wire
from exesys.bus.roster import MOST_WORKERS
from exesys.config import Config
from exesys.errors import BootError, ProtocolError

SESSIONS = MOST_WORKERS - 10  # the system's own worker is one, too
IDLE_S = 10.0
BEAT_S = 20.0
GREETED_S = 60.0


class Crowd:
    """Workers that are only there: they serve a queue that nobody uses."""

    def __init__(self, config: Config, sessions: int) -> None:
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4 * sessions + 100)
        self._config = config
        self._fronts: dict[str, zmq.Socket[bytes]] = {}
        self._lines: list[zmq.Socket[bytes]] = []
        self._epoch = 0
        self.acks = 0
        for _ in range(sessions):
            session = secrets.token_hex(8)
            front = self._context.socket(zmq.DEALER)
            front.linger = 0
            front.connect(config.bus_endpoint)
            info = {"queues": ["nobody"], "catalogue": {"functions": [], "broken": {}}, "host": "bench", "pid": 1}
            front.send(wire.encode(m.Hello(m.VERSION, "worker", session, "", info)))
            self._fronts[session] = front
        if not process.wait_until(self._greeted, GREETED_S):
            raise BootError(f"{len(self._lines)} of {sessions} workers were greeted within {GREETED_S:g} s.")

    def _greeted(self) -> bool:
        self.read()
        return len(self._lines) == len(self._fronts)

    def read(self) -> None:
        """Take what came."""
        for front in self._fronts.values():
            while front.poll(0):
                try:
                    message = wire.decode_at_peer(front.recv())
                except ProtocolError as error:
                    raise BootError(f"the router said what is no message: {error}") from error
                if isinstance(message, m.Welcome):
                    self._epoch = message.epoch
                    line = self._context.socket(zmq.PULL)
                    line.linger = 0
                    line.connect(message.endpoints["jobs"])
                    self._lines.append(line)
                elif isinstance(message, m.HeartbeatAck):
                    self.acks += 1
                elif isinstance(message, m.Error):
                    raise BootError(f"a worker was refused: {message.message}")

    def beat(self, for_s: float) -> int:
        """Send each worker's heartbeats for so long, spread over each second; return how many."""
        began, sent, every_s = time.perf_counter(), 0, self._config.bus.heartbeat_s / len(self._fronts)
        sessions = list(self._fronts)
        while time.perf_counter() - began < for_s:
            session = sessions[sent % len(sessions)]
            beat = m.Heartbeat(session, self._epoch, 2, 34, (), ())
            self._fronts[session].send(wire.encode(beat))
            sent += 1
            if sent % 20 == 0:
                self.read()
                # Not a wait for something: the beats are spread over the second, as those of real workers are.
                time.sleep(max(0.0, began + sent * every_s - time.perf_counter()))
        return sent

    def close(self) -> None:
        """Leave, without a word: the router misses them by itself."""
        for each in (*self._fronts.values(), *self._lines):
            each.close()
        self._context.term()


def beats(config: Config) -> dict[str, float]:
    """Return the processor time of a heartbeat in the router, what its workers cost it in all, and memory for each."""
    [router] = [str(each["pid"]) for each in bootstrap.status(config)["programs"] if each["name"] == "router"]
    rss, descriptors, before = router_rss_bytes(config), _descriptors(router), used_s(router)
    time.sleep(IDLE_S)  # the time that is measured: what it takes without them
    idle_s = (used_s(router) - before) / IDLE_S
    crowd = Crowd(config, SESSIONS)
    try:
        crowd.beat(5.0)
        crowd.acks, before = 0, used_s(router)
        sent = crowd.beat(BEAT_S)
        spent_s = used_s(router) - before - idle_s * BEAT_S
        return {
            "workers": SESSIONS,
            "heartbeat_us": spent_s / sent * 1e6,
            "heartbeats_percent": 100 * spent_s / BEAT_S,
            "heartbeats_answered": crowd.acks / sent,
            "router_bytes_per_worker": (router_rss_bytes(config) - rss) / SESSIONS,
            "router_descriptors_per_worker": (_descriptors(router) - descriptors) / SESSIONS,
        }
    finally:
        crowd.close()


def _descriptors(pid: str) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
