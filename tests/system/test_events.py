"""Events as people get them: over HTTP, from Python over the bus, and on the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from harness import System, hear_ctrl_c, until

import exesys
from exesys.errors import ResultTimeout, Unavailable

STREAMS = 12


@pytest.fixture(scope="module")
def system(make_module: Any) -> System:
    return make_module(rest_streams=STREAMS)


@pytest.fixture
def job_id() -> str:
    return f"events-{uuid.uuid4()}"


class Stream:
    """A stream of events, read by hand: what a browser does."""

    def __init__(self, system: System, path: str, *headers: str, version: str = "1.1") -> None:
        host, port = system.config.rest.host, system.config.rest.port
        self.line = socket.create_connection((host, port), 10)
        head = [f"GET {path} HTTP/{version}", f"Host: {host}:{port}", *headers]
        self.line.sendall("".join(f"{each}\r\n" for each in [*head, ""]).encode())
        self._file = self.line.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.headers = {}
        while header := self._file.readline().strip():
            name, _, value = header.decode().partition(": ")
            self.headers[name.lower()] = value
        self._left = b""
        self.ended = False

    def _more(self) -> None:
        if self.headers.get("transfer-encoding") != "chunked":
            piece = self._file.readline()
        else:
            size = int(self._file.readline() or b"0", 16)
            piece = self._file.read(size)
            self._file.readline()
        self.ended = not piece
        self._left += piece

    def event(self, within_s: float = 10) -> dict[str, Any] | None:
        """Return the next event: kind, id and data. None at the end of the stream."""
        self.line.settimeout(within_s)
        while True:
            text, mark, rest = self._left.partition(b"\n\n")
            if mark:
                self._left = rest
                fields = dict(line.partition(": ")[::2] for line in text.decode().split("\n"))
                if "event" in fields:
                    return {"event": fields["event"], "id": fields.get("id"), **(json.loads(fields["data"]) or {})}
                continue
            if self.ended:
                return None
            self._more()

    def until_end(self) -> list[dict[str, Any]]:
        return list(iter(self.event, None))

    def close(self) -> None:
        self._file.close()
        self.line.close()


@contextlib.contextmanager
def stream(system: System, path: str = "/events", *headers: str, **how: Any) -> Iterator[Stream]:
    opened = Stream(system, path, *headers, **how)
    try:
        yield opened
    finally:
        opened.close()


def states_of(events: list[dict[str, Any]], from_: str) -> list[str]:
    return [each["state"] for each in events if each["event"] == "step" and each["from"] == from_]


# --- over HTTP ----------------------------------------------------------------


def test_a_job_is_followed_from_its_first_state_to_its_end(system: System, job_id: str) -> None:
    steps = [{"from": "a", "to": "b", "cmd": "sleep", "data": 0.3, "job_id": job_id}, {"from": "b", "cmd": "echo"}]
    system.post(steps, headers={"Operation": "workflow"})
    with stream(system, f"/jobs/{job_id}/events") as opened:
        assert opened.headers["content-type"] == "text/event-stream; charset=utf-8"
        first, *events, end = opened.until_end()
    assert (first["event"], first["job_id"]) == ("job", job_id)
    assert (end["event"], end["state"], end["EOJ"]) == ("end", "data_available", 0.3)
    assert states_of(events, "a")[-1:] == ["data_available"]
    assert states_of(events, "b")[-3:] == ["start", "processing", "data_available"]


def test_a_job_that_has_ended_is_shown_and_the_stream_ends(system: System, job_id: str) -> None:
    system.post({"cmd": "fail", "data": "no", "job_id": job_id}, wait=10)
    with stream(system, f"/jobs/{job_id}/events") as opened:
        first, *_, end = opened.until_end()
    assert (first["state"], end["event"]) == ("error", "end")
    assert end["steps"][0]["error"]["message"] == "no"


def test_progress_and_log_are_told_while_it_runs(system: System, job_id: str) -> None:
    gate = system.root / f"gate-{job_id}"
    system.post({"cmd": "advances", "data": str(gate), "job_id": job_id})
    with stream(system, f"/jobs/{job_id}/events") as opened:
        told = [opened.event()]
        while not (told[-1] and told[-1].get("log")):
            told.append(opened.event())
        assert any(each and each.get("fraction") == 0.5 and each["text"] == "half way" for each in told), told
        gate.touch()
        assert opened.until_end()[-1]["EOJ"] == "all the way"


def test_a_stream_goes_on_where_it_broke_off(system: System) -> None:
    """Each event once and in order, from the id of any of them."""
    with stream(system) as opened:
        ids = [system.post({"cmd": "echo", "data": n}, wait=10).body["job_id"] for n in range(5)]
        told: list[dict[str, Any]] = []
        while not told or told[-1]["job_id"] != ids[-1] or told[-1]["state"] != "data_available":
            event = opened.event()
            assert event is not None
            told.append(event)
    for place in (0, 3, len(told) - 2):
        with stream(system, "/events", f"Last-Event-ID: {told[place]['id']}") as again:
            assert [again.event() for _ in told[place + 1 :]] == told[place + 1 :]


def test_what_is_not_kept_any_more_is_told_as_a_gap(system: System) -> None:
    with stream(system, "/events", "Last-Event-ID: 1000-0-1") as opened:
        first = opened.event()
        assert first is not None
        assert (first["event"], first["left_out"]) in (("gap", None), ("step", first.get("left_out")))
    with system.redis() as store:
        for entry, _ in store.xrange("exesys:events", count=1):
            store.xdel("exesys:events", entry)
    with stream(system, "/events", "Last-Event-ID: 1000-0-1") as opened:
        first = opened.event()
        assert first is not None
        assert (first["event"], first["left_out"]) == ("gap", None)


def test_only_what_is_asked_for_is_told(system: System, job_id: str) -> None:
    with stream(system, "/events?cmd=add&state=data_available") as opened:
        system.post({"cmd": "echo", "data": 1}, wait=10)
        system.post({"cmd": "add", "data": [1], "job_id": job_id}, wait=10)
        event = opened.event()
    assert event is not None
    assert (event["job_id"], event["state"]) == (job_id, "data_available")


def test_figures_come_once_a_second(system: System) -> None:
    with stream(system, "/events?kinds=stats") as opened:
        first = opened.event()
        with system.client() as client:
            for handle in client.submit_many("echo", range(500)):
                handle.result(20)
            client.submit("echo", None, queue="nobody")
        second, third = opened.event(), opened.event()
    assert first is not None
    assert second is not None
    assert third is not None
    assert {each["event"] for each in (first, second, third)} == {"stats"}
    assert 500 <= third["done"] - first["done"] <= 501
    assert third["at_ms"] - second["at_ms"] == pytest.approx(1000, abs=500)
    assert {each["name"]: each["waiting"] for each in third["queues"]}["nobody"] >= 1
    assert third["slots"]["all"] == system.config.worker.slots
    assert third["workers"] == 1
    assert max(second["rate"]["done"], third["rate"]["done"]) > 100
    assert (second["run_ms"]["p50"] or third["run_ms"]["p50"]) >= 0


def test_http_1_0_has_no_chunks(system: System, job_id: str) -> None:
    system.post({"cmd": "echo", "job_id": job_id}, wait=10)
    with stream(system, f"/jobs/{job_id}/events", version="1.0") as opened:
        assert "transfer-encoding" not in opened.headers
        assert opened.until_end()[-1]["event"] == "end"


@pytest.mark.parametrize(
    ("path", "headers", "status", "field"),
    [
        ("/events?kinds=jobs", (), 400, "kinds"),
        ("/events?state=done", (), 400, "state"),
        ("/events?since=1", (), 400, "since"),
        ("/events", ("Last-Event-ID: yesterday",), 400, "Last-Event-ID"),
        ("/jobs/unknown-job/events", (), 404, ""),
        ("/jobs/no%20name/events", (), 400, "job_id"),
    ],
)
def test_what_makes_no_sense_is_refused(
    system: System, path: str, headers: tuple[str, ...], status: int, field: str
) -> None:
    with stream(system, path, *headers, "Connection: close") as opened:
        assert opened.status == status
        body = json.loads(opened._file.read())
        assert body["error"]["field"] == field
        assert body["error"]["fix"]


def test_so_many_streams_and_no_more(system: System) -> None:
    """And none of them keeps anybody waiting; when one goes, another may come."""
    with contextlib.ExitStack() as stack:
        opened = []

        def full() -> bool:
            one = stack.enter_context(stream(system))
            if one.status == 503:
                assert one.headers["retry-after"] == "1"
                return True
            opened.append(one)
            return False

        until(full, "so many are open as may be")
        assert STREAMS - 1 <= len(opened) <= STREAMS + 1
        answer = system.post({"cmd": "add", "data": [1, 2]}, wait=10)
        assert answer.body["result"] == {"EOJ": 3}
        for one in opened:
            while (event := one.event()) and event["job_id"] != answer.body["job_id"]:
                pass
            assert event is not None
        opened[0].close()
    until(lambda: _opens(system), "there is room again")


def _opens(system: System) -> bool:
    with stream(system) as one:
        return one.status == 200


def test_a_store_that_goes_away_ends_no_stream(system: System, job_id: str) -> None:
    with stream(system) as opened:
        os.kill(system.pids()["redis"], signal.SIGKILL)
        until(system.ready, "all is well again")
        system.post({"cmd": "echo", "job_id": job_id}, wait=10)
        while (event := opened.event()) and event.get("job_id") != job_id:
            pass
        assert event is not None


def test_who_does_not_read_costs_nobody(system: System) -> None:
    with stream(system) as lazy, stream(system, "/events?state=error") as other:
        with system.client() as client:
            for handle in client.submit_many("echo", ["x"] * 20_000):
                handle.result(60)
            client.submit("fail", "last", job_id=(job_id := f"last-{uuid.uuid4()}"))
        while (event := other.event()) and event.get("job_id") != job_id:
            pass
        assert event is not None
        assert any(each["event"] == "gap" for each in (lazy.event() for _ in range(5000)) if each), "it is told so"


def test_who_resumes_far_behind_misses_nothing(system: System, job_id: str) -> None:
    """Also of a stream that holds more than is read at once."""
    with system.client() as client:
        with system.redis() as store:
            while store.xlen("exesys:events") < 2010:
                for _ in range(200):
                    client.run("noop", None, timeout=10)
            [(oldest, _)] = store.xrange("exesys:events", count=1)
        client.run("add", [1], timeout=10, job_id=job_id)
    with stream(system, "/events?cmd=add&state=data_available", f"Last-Event-ID: {oldest.decode()}") as opened:
        while (event := opened.event()) and event.get("job_id") != job_id:
            pass
        assert event is not None


def test_a_large_job_is_followed_without_its_results(system: System, job_id: str) -> None:
    filling = "x" * 200_000
    steps = [{"from": f"s{n}", "cmd": "echo", "data": filling, "job_id": job_id} for n in range(10)]
    system.post(steps, wait=20, headers={"Operation": "workflow"})
    with stream(system, f"/jobs/{job_id}/events") as opened:
        first, *_, end = opened.until_end()
    assert {each["state"] for each in end["steps"]} == {"data_available"}
    assert "EOJ" not in end
    assert f"GET /jobs/{job_id}" in first["left_out"]
    assert len(json.dumps(end)) < 10_000


def test_a_head_has_no_body(system: System) -> None:
    answer = system.request("HEAD", "/events")
    assert (answer.status, answer.body) == (200, "")


# --- over the bus ---------------------------------------------------------------


def test_a_program_hears_of_its_jobs(system: System, job_id: str) -> None:
    with system.client() as client, client.events(job_id=job_id) as events:
        client.run("echo", 1, timeout=10)
        client.run("add", [1, 2], timeout=10, job_id=job_id)
        told = [events.get(10)]
        while told[-1]["state"] != "data_available":
            told.append(events.get(10))
        assert {each["job_id"] for each in told} == {job_id}
        assert (told[-1]["event"], told[-1]["cmd"], told[-1]["status"]) == ("step", "add", 3)
        with pytest.raises(ResultTimeout):
            events.get(0.2)


def test_events_are_ended_from_another_thread(system: System) -> None:
    with system.client() as client:
        events = client.events()
        threading.Timer(0.2, events.close).start()
        assert list(events) == []
        with pytest.raises(Unavailable):
            events.get(1)


def test_who_iterates_is_told_the_end_whoever_ends_it(system: System) -> None:
    """The client is closed, or another thread leaves the `with`."""
    for closes_client in (True, False):
        client = system.client()
        events = client.events()
        ended: list[object] = []

        def iterate(events: Any = events, ended: list[object] = ended) -> None:
            try:
                ended.append(list(events))
            except Exception as error:  # noqa: BLE001  # that is what is asked: none should come
                ended.append(error)

        thread = threading.Thread(target=iterate)
        thread.start()
        if closes_client:
            client.close()
        else:
            with events:
                pass
        thread.join(10)
        assert ended == [[]], ended
        client.close()


def test_two_threads_cannot_wait_for_the_same_events(system: System) -> None:
    with system.client() as client, client.events(kinds="step", cmd="nothing") as events:
        thread = threading.Thread(target=lambda: list(events))
        thread.start()

        def told() -> bool:
            try:
                events.get(0.01)
            except ResultTimeout:
                return False
            except RuntimeError as error:
                return "another thread" in str(error)
            return False

        until(told, "it is said that one thread waits already")
        events.close()
        thread.join(10)
        assert not thread.is_alive()


def test_a_router_that_begins_anew_is_heard(system: System, job_id: str) -> None:
    with system.client() as client, client.events() as events:
        os.kill(system.pids()["router"], signal.SIGKILL)
        until(system.ready, "all is well again")

        def heard() -> bool:
            one = f"{job_id}.{time.monotonic_ns()}"
            client.run("echo", 1, timeout=20, job_id=one)
            with contextlib.suppress(ResultTimeout):
                while True:
                    if events.get(0.3).get("job_id") == one:
                        return True
            return False

        until(heard, "it is heard")


def test_thousands_are_heard_in_their_order(system: System) -> None:
    with system.client() as client, client.events(cmd="noop", state="data_available") as events:
        handles = client.submit_many("noop", [None] * 3000)
        left = {handle.job_id for handle in handles}
        while left:
            event = events.get(20)
            assert event["event"] == "step", event
            left.discard(event["job_id"])


def test_asyncio_hears_too(system: System) -> None:
    async def listen() -> dict[str, Any]:
        async with exesys.AsyncClient(system.config) as client:
            events = client.events(cmd="add", state="data_available")
            first = asyncio.ensure_future(anext(events))
            while not first.done():
                await client.run("add", [1, 2], timeout=10)
                await asyncio.wait({first}, timeout=0.1)
            await events.aclose()
            in_vain = asyncio.ensure_future(anext(client.events(cmd="nothing")))
            await asyncio.wait({in_vain}, timeout=0.3)
            in_vain.cancel()
            return await first

    assert asyncio.run(listen())["state"] == "data_available"


# --- on the command line ----------------------------------------------------------


def test_jobs_are_followed_on_the_command_line(system: System, job_id: str) -> None:
    system.post({"cmd": "sleep", "data": 1.0, "job_id": job_id})
    said = system.exesys("jobs", job_id, "--follow", "--json")
    assert said.code == 0, said.err
    told = [json.loads(line) for line in said.out.splitlines()]
    assert told[-1]["state"] == "data_available"
    assert {each["job_id"] for each in told} == {job_id}


@contextlib.contextmanager
def begin(system: System, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run `bin/exesys WORDS…` beside the test."""
    command = [sys.executable, "-m", "exesys.cli", *words]
    how: dict[str, Any] = {"cwd": system.root, "env": system.environ, "text": True, "preexec_fn": hear_ctrl_c}
    begun = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
    try:
        yield begun
    finally:
        begun.kill()
        begun.communicate()


def test_all_jobs_are_followed_until_ctrl_c(system: System, job_id: str) -> None:
    with begin(system, "jobs", "--follow", "--cmd", "add") as follows:
        assert follows.stdout is not None
        assert follows.stderr is not None
        assert "Ctrl-C" in follows.stderr.readline()
        system.post({"cmd": "add", "data": [1], "job_id": job_id}, wait=10)
        line = follows.stdout.readline()
        while line.split("\t")[1:3] != ["data_available", job_id]:
            line = follows.stdout.readline()
            assert line, "it went on"
        follows.send_signal(signal.SIGINT)
        assert follows.wait(10) == 130


def test_a_log_is_followed_until_the_job_has_ended(system: System, job_id: str) -> None:
    gate = system.root / f"gate-{job_id}"
    system.post({"cmd": "advances", "data": str(gate), "job_id": job_id})
    with begin(system, "logs", "--job", job_id, "--follow") as follows:
        assert follows.stdout is not None
        assert follows.stdout.readline() == "half way\n"
        gate.touch()
        assert follows.wait(10) == 0
        assert follows.stdout.read() == ""


def test_a_job_that_nobody_knows_is_not_followed(system: System) -> None:
    for words in (("jobs", "unknown-job", "--follow"), ("logs", "--job", "unknown-job", "--follow")):
        said = system.exesys(*words)
        assert said.code != 0
        assert "unknown-job" in said.err
