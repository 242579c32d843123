"""A process that works: one job at a time, on the bus and now and then by REST, each checked.

    python honest.py REST_PORT

For each line of its standard input it prints what it did since the line before, as JSON: how long each job
took, in seconds, by the bus and by REST, and what went wrong.
"""

import http.client
import json
import sys
import threading
import time

from exesys import Client

REST_EACH = 4  # one of so many jobs goes by REST
WITHIN_S = 30


class Worker:
    """Sends jobs until it is told to end."""

    def __init__(self, port):
        self.port = port
        self.client = Client()
        self.rest = http.client.HTTPConnection("127.0.0.1", port, timeout=WITHIN_S)
        self.halt = threading.Event()
        self.told = {"bus": [], "rest": [], "wrong": []}

    def run(self):
        number = 0
        while not self.halt.is_set():
            number += 1
            way, ask = ("rest", self._by_rest) if number % REST_EACH == 0 else ("bus", self._by_bus)
            since = time.perf_counter()
            try:
                given = ask(number)
                took_s = time.perf_counter() - since
                if given != {"number": number}:
                    self.told["wrong"].append(f"{way}: {given!r:.200} instead of {number}")
            except Exception as error:  # noqa: BLE001  # whatever it is, the test shows it
                took_s = time.perf_counter() - since
                self.told["wrong"].append(f"{way}: {error!r:.200}")
            self.told[way].append(round(took_s, 6))

    def _by_bus(self, number):
        return self.client.run("echo", {"number": number}, timeout=WITHIN_S, result_ttl_s=60)

    def _by_rest(self, number):
        body = json.dumps({"cmd": "echo", "data": {"number": number}, "result_ttl_s": 60})
        self.rest.request("POST", "/sys_cmd?wait=30", body, {"Content-Type": "application/json"})
        return json.loads(self.rest.getresponse().read())["result"]["EOJ"]

    def take(self):
        told, self.told = self.told, {"bus": [], "rest": [], "wrong": []}
        return told


def main():
    worker = Worker(int(sys.argv[1]))
    thread = threading.Thread(target=worker.run)
    thread.start()
    for _ in sys.stdin:
        print(json.dumps(worker.take()), flush=True)
    worker.halt.set()
    thread.join()
    worker.client.close()


if __name__ == "__main__":
    main()
