"""A peer's producer: `python -m benchmarks.peers.producer MODULE throughput|latency JOBS IN_FLIGHT SEED`.

It prints its figures as JSON. It runs in the peers' environment, where ExeSys
is not installed. The first jobs are not measured; they also wait for the
peer's workers to be there.
"""

from __future__ import annotations

import importlib
import json
import sys

from benchmarks import load

WARM_UP = 200


def main(module: str, goal: str, jobs: str, in_flight: str, seed: str) -> None:
    app = importlib.import_module(f"benchmarks.peers.{module}")
    for text in load.payloads(WARM_UP, int(seed) + 1):
        load.check(text, app.run(text))
    data = load.payloads(int(jobs), int(seed))
    if goal == "latency":
        print(json.dumps(load.one_by_one(app.run, data)))
    else:
        print(json.dumps({"jobs_per_s": len(data) / app.throughput(data, int(in_flight))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
