"""What CURVE costs: the same jobs over TCP with keys and without, by turns."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import load, system
from exesys import Client
from exesys.bus.handle import Handle
from exesys.config import Config
from exesys.keyring import Keyring
from exesys.process import free_port

DATA_CHARS = 100
PIECES = 10


@contextlib.contextmanager
def both(home: Path) -> Iterator[tuple[Config, Config]]:
    """Run two systems whose buses are on TCP: one with keys, one without."""
    with contextlib.ExitStack() as stack:
        yield (
            stack.enter_context(system.running(home / "k", bus=_free(), before=_with_keys)),
            stack.enter_context(system.running(home / "p", bus=_free())),
        )


def _free() -> str:
    return f"tcp://127.0.0.1:{free_port('127.0.0.1')}"


def _with_keys(config: Config) -> None:
    Keyring(config).new("client", "bench", config.home / "bench.key")


def beside(keyed: Config, plain: Config, jobs: int, in_flight: int, seed: int) -> dict[str, float]:
    """Send jobs with 100 bytes of data to each in turn. Returns the jobs a second of both."""
    chance, took_s = random.Random(seed), [0.0, 0.0]
    with Client(keyed) as to_keyed, Client(plain) as to_plain:
        submits = [partial(client.submit, "noop") for client in (to_keyed, to_plain)]
        for submit in submits:
            _send(submit, _payloads(2000, chance), in_flight)
        for number in range(PIECES):
            for which in (0, 1) if number % 2 else (1, 0):
                took_s[which] += _send(submits[which], _payloads(jobs // PIECES, chance), in_flight)
    sent = jobs // PIECES * PIECES
    return {"keyed_jobs_per_s": sent / took_s[0], "plain_jobs_per_s": sent / took_s[1]}


def _payloads(count: int, chance: random.Random) -> list[str]:
    return [f"{chance.getrandbits(4 * DATA_CHARS):0{DATA_CHARS}x}" for _ in range(count)]


def _send(submit: Callable[[str], Handle], data: list[str], in_flight: int) -> float:
    return load.sliding(submit, lambda handle: handle.result(load.LOST_S), data, in_flight)
