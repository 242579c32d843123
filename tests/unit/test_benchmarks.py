"""The benchmark must notice what is wrong or lost, keep its window, and judge by the right figures."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench, http_load, load, others, profiles, report, run, shards, targets
from exesys.errors import BootError, ResultTimeout

DATA = load.payloads(50, seed=1)


def test_the_data_is_all_different_and_follows_the_seed() -> None:
    assert len(set(DATA)) == 50
    assert load.payloads(50, seed=1) == DATA
    assert not set(load.payloads(50, seed=2)) & set(DATA)


@pytest.mark.parametrize("in_flight", [1, 7, 50, 100])
def test_sliding_has_so_many_under_way(in_flight: int) -> None:
    under_way: list[str] = []
    most = 0

    def submit(text: str) -> str:
        nonlocal most
        under_way.append(text)
        most = max(most, len(under_way))
        return text

    def wait(text: str) -> str:
        under_way.remove(text)
        return text

    assert load.sliding(submit, wait, DATA, in_flight) > 0
    assert (most, under_way) == (min(in_flight, 50), [])


@pytest.mark.parametrize("in_flight", [1, 7, 50, 100])
def test_gathering_has_so_many_under_way(in_flight: int) -> None:
    seen = []

    def ended(ids: Iterable[str]) -> dict[str, object]:
        waiting = list(ids)
        seen.append(len(waiting))
        return {ticket: ticket.removeprefix("id of ") for ticket in waiting[: max(1, in_flight // 2)]}

    load.gathering(lambda text: f"id of {text}", ended, DATA, in_flight)
    assert max(seen) == min(in_flight, 50)


def test_a_wrong_result_is_noticed() -> None:
    def run_one(text: str) -> str:
        return DATA[0] if text == DATA[-1] else text

    def ended(ids: Iterable[str]) -> dict[str, object]:
        return {ticket: run_one(ticket) for ticket in ids}

    with pytest.raises(load.WrongResult):
        load.one_by_one(run_one, DATA)
    with pytest.raises(load.WrongResult):
        load.sliding(lambda text: text, run_one, DATA, 10)
    with pytest.raises(load.WrongResult):
        load.gathering(lambda text: text, ended, DATA, 10)


def test_a_lost_result_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "LOST_S", 0.05)
    with pytest.raises(TimeoutError, match="1 jobs"):
        load.gathering(lambda text: text, lambda ids: {t: t for t in ids if t != DATA[3]}, DATA, 10)


def test_quantiles_are_by_nearest_rank() -> None:
    hundred = list(range(100, 0, -1))
    assert [load.quantile(hundred, share) for share in (0.5, 0.9, 0.99)] == [50, 90, 99]
    assert load.quantile([3.0], 0.99) == 3.0


def measured(side: str, beside: str, number: int, goal: str = "throughput", **figures: float) -> targets.Measurement:
    return targets.Measurement(side, goal, beside, number, figures, 0.5, 0.01)


RUNS = [
    measured("exesys", "huey", 0, jobs_per_s=12_000),
    measured("huey", "huey", 0, jobs_per_s=4_000),
    measured("exesys", "huey", 0, "latency", p50_ms=0.5, p90_ms=0.7, p99_ms=1.0),
    measured("huey", "huey", 0, "latency", p50_ms=1.0, p90_ms=1.4, p99_ms=2.0),
    measured("exesys", "celery", 0, jobs_per_s=1_000_000),
    measured("celery", "celery", 0, jobs_per_s=1_000),
    measured("exesys", "huey", 1, jobs_per_s=6_000),
    measured("huey", "huey", 1, jobs_per_s=3_000),
    measured("exesys", "", 1, "many", jobs_per_s=90_000),
    measured("exesys", "", 1, "rest", jobs_per_s=2_999),
]


def test_a_ratio_is_of_neighbours_only() -> None:
    assert targets.ratio(RUNS, "huey", "jobs_per_s") == 2.5  # the median of 3 and 2
    assert targets.ratio(RUNS, "huey", "p50_ms") == 0.5
    assert targets.ratio(RUNS, "celery", "jobs_per_s") == 1_000
    assert targets.ratio(RUNS, "celery", "p50_ms") is None


def test_targets_are_reached_or_not() -> None:
    found = {target.name: target.reached for target in targets.targets(RUNS, ["huey", "celery"])}
    assert found == {
        "jobs/s beside huey": False,
        "jobs/s beside celery": True,
        "p50": True,
        "p99": True,
        "rest": False,
    }
    memory = measured("exesys", "", 0, "memory", redis_bytes_per_job=701, router_growth_bytes=21 << 20)
    assert [target.reached for target in targets.targets([memory], [])] == [False, False]


def test_what_stands_beside_something_is_judged_by_its_share() -> None:
    runs = [
        measured("exesys", "limit", 0, jobs_per_s=7_100),
        measured("limit", "limit", 0, jobs_per_s=10_000),
        measured("exesys", "limit", 0, "many", jobs_per_s=1),  # another traffic does not count
        measured("limit", "limit", 0, "many", jobs_per_s=10_000),
        measured("exesys", "", 0, "queued", queued_full_per_s=899, queued_few_per_s=1_000, router_rss_mb=101),
        measured("exesys", "", 0, "fill queue", router_rss_mb=1),
        measured("exesys", "", 0, "sizes", **{"1kB_share": 0.91, "10kB_share": 0.59, "100kB_share": 0.3}),
    ]
    assert {target.name: target.reached for target in targets.targets(runs, ["limit"])} == {
        "jobs/s beside limit": True,
        "1 kB, of the floor's bytes/s": True,
        "10 kB, of the floor's bytes/s": False,
        "100 kB, of the floor's bytes/s": True,
        "router, with all queued": False,
        "all queued, rate ÷ with 1,000 queued": False,
    }
    text = report.table(runs, ["limit"])
    assert "ExeSys ÷ limit" in text
    assert "0.71" in text
    assert "exesys queued queued_full_per_s 899" in [" ".join(line.split()) for line in text.splitlines()]


def test_calls_of_an_application_server_stand_beside_their_floor() -> None:
    floor = {"floor_p50_ms": 0.1, "floor_p99_ms": 0.2}
    runs = [
        measured("exesys", "", 0, "app latency", call_p50_ms=0.2, call_p99_ms=0.4, **floor),
        measured("exesys", "", 0, "app rate", calls_per_s=3_999, floor_per_s=20_000),
    ]
    assert {target.name: target.reached for target in targets.targets(runs, [])} == {
        "app call p50": True,
        "app calls": False,
    }
    lines = {line[:22].strip(): line.split() for line in report.table(runs, []).splitlines()}
    assert {"3,999", "0.20", "0.40"} <= set(lines["app calls (calls)"])
    assert {"20,000", "0.10", "0.20"} <= set(lines["bare DEALER, ROUTER"])


def test_the_table_has_a_line_for_each_side_and_ratio() -> None:
    text = report.table(RUNS, ["huey", "celery"])
    lines = {line[:16].strip(): line for line in text.splitlines()}
    assert "2.50" in lines["ExeSys ÷ huey"]
    assert "3,000–4,000" in text
    assert "NOT reached  rest ≥ 3,000 jobs/s: 2,999 jobs/s" in text


class Rest:
    """Answers every request with `answer`, in pieces."""

    def __init__(self, answer: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.bodies: list[bytes] = []
        self._answer = answer
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as requests:
            while requests.readline():
                length = 0
                while (line := requests.readline().strip().lower()) != b"":
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                self.bodies.append(requests.read(length))
                for start in range(0, len(self._answer), 10):
                    connection.sendall(self._answer[start : start + 10])

    def close(self) -> None:
        self._thread.join(5)
        self._listener.close()


def test_every_body_is_posted_once() -> None:
    rest = Rest(b"HTTP/1.1 202 Accepted\r\nContent-Type: text/plain\r\nContent-Length: 11\r\n\r\nhello\r\n\r\nyou")
    bodies = [b"%d" % number for number in range(20)]
    http_load.post_all("127.0.0.1", rest.port, "/sys_cmd", bodies, connections=1)
    rest.close()
    assert rest.bodies == bodies


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\n\r\n", b""])
def test_a_refusal_is_noticed(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_load, "SILENT_S", 0.1)
    rest = Rest(answer)
    with pytest.raises(http_load.Refused):
        http_load.post_all("127.0.0.1", rest.port, "/sys_cmd", [b"{}"], connections=1)
    rest.close()


def test_unknown_peers_and_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.arguments(["--peers", "huey,celery,huey"]).peers == ["huey", "celery"]
    assert run.arguments(["--memory"]).memory == run.MEMORY_JOBS
    for wrong in (["--peers", "hoey"], ["--jobs", "0"], ["--in-flight", "many"]):
        with pytest.raises(SystemExit) as ended:
            run.arguments(wrong)
        assert ended.value.code == 2
    assert "'hoey' is no peer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (load.WrongResult("x"), 1),
        (ResultTimeout("x"), 1),
        (others.PeerFailed("x"), 1),
        (http_load.Refused("x"), 1),
        (others.NotInstalled("x"), 2),
        (BootError("x"), 2),
    ],
)
def test_a_failure_leaves_its_logs(
    error: Exception, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any, home: Path) -> Any:
        (home / "some.log").write_text("why")
        raise error

    monkeypatch.setattr(run, "measure_all", fail)
    assert run.main(["--home", str(tmp_path)]) == code
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("error", "code"), [(BootError("x"), 2), (KeyboardInterrupt(), 130)])
def test_without_logs_nothing_is_left(
    error: BaseException, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(run, "measure_all", fail)
    assert run.main(["--home", str(tmp_path)]) == code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("given", "code"), [([], 0), (["--strict"], 3), (["--json"], 0)])
def test_only_strict_fails_for_a_target(
    given: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "measure_all", lambda *_: (RUNS, bench.about(run.arguments([]), {}, "Redis 7")))
    assert run.main(["--home", str(tmp_path), "--peers", "huey", *given]) == code
    assert not list(tmp_path.iterdir())


def test_samples_belong_to_the_innermost_module_of_ours() -> None:
    raw = [
        "<module> (exesys/daemons/router.py:9);send (exesys/bus/sockets.py:5);send (zmq/sugar/socket.py:7) 30",
        "<module> (exesys/daemons/router.py:8);encode (/x/exesys/bus/wire.py:1) 60",
        "run (threading.py:1) 10",
        "",
    ]
    shares = profiles.shares(profiles.read(raw))
    assert shares == {"bus/wire": 0.6, "bus/sockets": 0.3, "other": 0.1}
    spent_us = {profiles.LIBZMQ: 0.2, profiles.KERNEL: 5.0, profiles.PYTHON: 4.8}
    assert list(profiles.lines("router", spent_us, shares, 3.4)) == [
        "| **router** | **10** | **3** |",
        "| system calls | 5.0 | |",
        "| `bus/wire` | 2.9 | |",
        "| `bus/sockets` | 1.4 | |",
        "| in 1 others | 0.5 | |",
    ]


def test_a_process_that_is_not_sampled_is_one_row_beside_the_kernel() -> None:
    spent_us = {profiles.LIBZMQ: 0.0, profiles.KERNEL: 6.0, profiles.PYTHON: 74.0}
    assert list(profiles.lines("redis", spent_us, {}, 0)) == [
        "| **redis** | **80** | |",
        "| system calls | 6.0 | |",
        "| itself | 74.0 | |",
    ]


# --- shards -----------------------------------------------------------------


def test_runs_of_shards_are_added_up_by_what_they_took() -> None:
    one = shards.Sum(1000, 0.5, {"router": 0.05}, 1_000_000)
    both = shards.Sum().with_run(one).with_run(shards.Sum(3000, 0.5, {"router": 0.15, "client": 0.04}, 3_000_000))
    assert both.figures() == pytest.approx(
        {"shards_per_s": 4000, "router_us": 50, "client_us": 10, "all_us": 60, "disk_bytes_per_job": 1000}
    )


def test_what_a_job_takes_on_the_bus_grows_with_its_data_and_its_result() -> None:
    small, large = shards.bus_bytes(100), shards.bus_bytes(200)
    # Data goes in and to the worker; the result to the router and to the client.
    assert large - small == pytest.approx(4 * 100, abs=8)


def test_two_shards_are_judged_by_time_and_by_processor_time() -> None:
    def judged(by_time: float, by_cpu: float) -> list[bool]:
        figures = {"cores_by_time": by_time, "cores_by_cpu": by_cpu}
        return [
            each.reached
            for each in targets.targets([targets.Measurement("exesys", "shards", "", 0, figures, 1, 0)], ())
        ]

    assert judged(1.7, 1.9) == [True, True]
    assert judged(1.2, 1.9) == [False, True]
