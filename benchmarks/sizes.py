"""Jobs with much data: bytes per second of ExeSys and of the floor, by turns."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import limit, load
from exesys import Client
from exesys.config import Config

SIZES = {"1kB": 1_000, "10kB": 10_000, "100kB": 100_000}
PIECES = 6
PIECE_BYTES = 4_000_000
MOST_JOBS = 1_500  # in a piece
WARM_UP = 100


def beside(config: Config, floor: limit.Floor, in_flight: int, seed: int) -> dict[str, float]:
    """Send texts of each size to both and take them back, in turns. Returns MB of data a second, and the shares."""
    chance = random.Random(seed)
    figures: dict[str, float] = {}
    with Client(config) as ours, limit.Client(floor.home) as bare:

        def ours_wait(handle: Any) -> object:
            return handle.result(load.LOST_S)

        sides = (
            _sender(lambda text: ours.submit("noop", text), ours_wait, in_flight),
            _sender(bare.submit, bare.wait, in_flight),
        )
        for name, size in SIZES.items():
            count, took_s = min(MOST_JOBS, PIECE_BYTES // size), [0.0, 0.0]
            for send in sides:
                send(list(texts(WARM_UP, size, chance)))
            for number in range(PIECES):
                for which in (0, 1) if number % 2 else (1, 0):
                    took_s[which] += sides[which](list(texts(count, size, chance)))
            sent_mb = PIECES * count * size / 1e6
            figures |= {f"{name}_mb_per_s": sent_mb / took_s[0], f"{name}_floor_mb_per_s": sent_mb / took_s[1]}
            figures[f"{name}_share"] = took_s[1] / took_s[0]
    return figures


def texts(count: int, size: int, chance: random.Random) -> Iterator[str]:
    """Give so many different texts of so many characters."""
    return (f"{chance.getrandbits(4 * size):0{size}x}" for _ in range(count))


def _sender(
    submit: Callable[[str], Any], wait: Callable[[Any], object], in_flight: int
) -> Callable[[list[str]], float]:
    return lambda data: load.sliding(submit, wait, data, in_flight)
