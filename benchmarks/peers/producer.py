"""One peer's producer: `producer.py MODULE throughput JOBS IN_FLIGHT SEED`, or `latency JOBS 1 SEED`. Prints JSON."""

import importlib
import json
import sys

import load

WARM_UP = 200


def main(module, goal, jobs, in_flight, seed):
    app = importlib.import_module(module)
    data = load.payloads(int(jobs), int(seed))
    for text in load.payloads(WARM_UP, int(seed) + 1):
        load.check(text, app.run(text))
    if goal == "latency":
        print(json.dumps(load.one_by_one(app.run, data)))
    else:
        print(json.dumps({"jobs_per_s": app.throughput(data, int(in_flight))}))


main(*sys.argv[1:])
