"""A trace through a real system, from curl to callback; and the logs of its daemons as JSON."""

import json

import pytest
from harness import MODULES, until
from receiver import Receiver

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
GIVEN = f"00-{TRACE}-00f067aa0ba902b7-01"
OTHER = f"00-{TRACE[::-1]}-00f067aa0ba902b7-01"
HEADER = {"traceparent": GIVEN}
TRACED = '''
def traced(data, ctx):
    """Send a job and add a step, and tell of which trace it is."""
    if data:
        ctx.submit("traced", job_id=data).accepted(10)
        ctx.add_step("traced", from_="more")
    return ctx.traceparent
'''


@pytest.fixture(scope="module")
def system(make_module, tmp_path_factory):
    modules = tmp_path_factory.mktemp("modules")
    (modules / "traces.py").write_text(TRACED)
    return make_module(modules=(modules, *MODULES), logs_format="json", callbacks_hosts="127.0.0.1")


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


def value(answer):
    assert answer.status == 200, answer
    return answer.body["result"]["EOJ"]


def steps(system, job_id):
    def ended():
        found = system.get(f"/jobs/{job_id}").body
        return found.get("state") == "data_available" and found["steps"]

    return {step["from"]: step for step in until(ended, f"{job_id} ended")}


def test_a_trace_goes_from_the_header_to_all_that_follows(system, receiver):
    body = {"cmd": "traced", "data": "t-child", "job_id": "t-1", "notify": receiver.url}
    assert value(system.post(body, wait=10, headers=HEADER)) == GIVEN
    parts = steps(system, "t-1")
    assert {name: step["traceparent"] for name, step in parts.items()} == {"client": GIVEN, "more": GIVEN}
    assert parts["more"]["result"] == {"EOJ": GIVEN}
    assert steps(system, "t-child")["client"]["result"] == {"EOJ": GIVEN}
    [told] = until(lambda: receiver.of("t-1"), "it is told")
    assert told.headers["traceparent"] == GIVEN


def test_without_one_nothing_is_shown_and_no_header_sent(system, receiver):
    assert value(system.post({"cmd": "traced", "job_id": "t-2", "notify": receiver.url}, wait=10)) == ""
    assert "traceparent" not in steps(system, "t-2")["client"]
    [told] = until(lambda: receiver.of("t-2"), "it is told")
    assert "traceparent" not in told.headers


@pytest.mark.parametrize("malformed", ["", "nonsense", GIVEN.upper(), f"{GIVEN}-more", f"{GIVEN}, {OTHER}"])
def test_a_malformed_one_counts_as_none(system, malformed):
    assert value(system.post({"cmd": "traced"}, wait=10, headers={"traceparent": malformed})) == ""
    assert value(system.post({"cmd": "traced", "traceparent": malformed}, wait=10, headers=HEADER)) in ("", GIVEN)


def test_the_same_command_in_another_trace_is_the_same(system):
    body = {"cmd": "traced", "job_id": "t-3"}
    assert value(system.post(body, wait=10, headers=HEADER)) == GIVEN
    assert value(system.post(body, headers={"traceparent": OTHER})) == GIVEN
    assert value(system.post({**body, "traceparent": OTHER})) == GIVEN


def test_arrays_and_workflows_carry_it_on(system):
    array = [{"cmd": "traced"}, {"cmd": "traced", "traceparent": OTHER}]
    assert [value(system_answer) for system_answer in answers(system, array)] == [GIVEN, OTHER]
    flow = [{"cmd": "traced", "from": "a", "to": "b", "job_id": "t-4"}, {"cmd": "echo", "from": "b"}]
    system.post(flow, wait=10, headers={**HEADER, "Operation": "workflow"})
    assert {step["traceparent"] for step in steps(system, "t-4").values()} == {GIVEN}


def answers(system, array):
    told = system.post(array, wait=10, headers=HEADER)
    return [told._replace(body=each) for each in told.body]


def test_clients_give_it_as_an_option(system):
    with system.client() as client:
        assert client.run("traced", timeout=10, traceparent=GIVEN) == GIVEN
    assert system.exesys("submit", "traced", "--traceparent", OTHER, "--wait", "10").json == OTHER


# --- logs as JSON -------------------------------------------------------------------


def lines(system, program):
    return [json.loads(line) for line in system.log_of(program).splitlines()]


def test_each_line_of_the_daemons_is_an_object_that_says_what_it_is_about(system):
    system.post({"cmd": "crash", "job_id": "t-5"}, wait=10, headers=HEADER)

    def about():
        return [line for line in lines(system, "worker") if line.get("job_id") == "t-5"]

    first = until(about, "it is logged")[0]
    assert (first["cmd"], first["attempt"], first["trace_id"], first["level"]) == ("crash", 1, TRACE, "WARNING")
    for program in ("router", "worker", "rest", "controller", "web", "runner"):
        for line in lines(system, program):
            assert {"ts", "level", "logger", "msg", "program"} <= line.keys()
            assert line["program"] == program
    assert lines(system, "router")


def test_a_person_is_shown_text(system):
    said = system.exesys("logs", "router").out
    assert " router INFO listening on " in said
    assert "{" not in said
