"""Workflows on a real system: sent in any order, run in the right one, and always to an end."""

import itertools
import json
import random
import shutil
import subprocess
import time
import uuid

import pytest
from harness import alive, until
from sent import WORKFLOW, cancel, ended, failed, idle, job_of, one, retry, send, send_one, states, steady, step

from exesys import codec

# The picture of the execution flow: from, to, cmd.
PICTURE = [
    *(("A", "B", "cmd0"), ("B", "C", "cmd1"), ("C", "D", "cmd2")),
    *(("C", "E", "cmd2"), ("D", "end_job", "cmd3"), ("E", "end_job", "cmd3")),
]
PICTURED = "data cmd0 cmd1 cmd2 cmd3"
STATUS = {"start": 0, "standby": 1, "processing": 2, "data_available": 3, "error": 4}


@pytest.fixture(scope="module")
def system(make_module):
    """A system that does nothing else, so that what is in Redis is known."""
    return make_module()


@pytest.fixture
def job_id():
    return f"flow-{uuid.uuid4()}"


def records(system, job_id):
    """Every record of a job: the key, without the job_id, and its fields as text, data and result unpacked."""
    found = {}
    with system.redis() as store:
        for key in store.scan_iter(match=f"*:{job_id}:*", count=10_000):
            fields = {name.decode(): value for name, value in store.hgetall(key).items()}
            shown = {name: fields[name].decode() for name in ("to", "cmd") if name in fields}
            shown |= {name: codec.unpack(fields[name]) for name in ("data", "result") if name in fields}
            found[key.decode().replace(f":{job_id}:", ":")] = shown
    return found


# --- the picture ------------------------------------------------------------------


@pytest.fixture
def curl(need):
    """Send commands to a system by curl; it returns the status and the JSON."""
    need(shutil.which("curl"), "curl")

    def run(system, body, *words, query=""):
        url = f"http://127.0.0.1:{system.rest_port}/sys_cmd{query}"
        headers = ("-H", "Content-type: application/json", *words)
        done = subprocess.run(
            ["curl", "-s", "-w", "\n%{http_code}", *headers, "-X", "POST", url, "-d", json.dumps(body)],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        text, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(text)

    return run


OPERATION = ("-H", "Operation: workflow")
# What runs at each stage of the picture, and what its end starts.
STAGES = [
    ("A>B", {"A": "processing", "B": "standby", "C": "standby", "C>E": "standby", "D": "standby", "E": "standby"}),
    ("B>C", {"A": "data_available", "B": "processing"}),
    ("C>D", {"B": "data_available", "C": "processing", "C>E": "start"}),
    ("C>E", {"C": "data_available", "C>E": "processing", "D": "start"}),
    ("D>end_job", {"C>E": "data_available", "D": "processing", "E": "start"}),
    ("E>end_job", {"D": "data_available", "E": "processing"}),
    ("", {"E": "data_available"}),
]


def test_the_picture_step_by_step(make, curl, job_id):
    """Each step sent by curl, each state read in Redis; one slot, and gates between the steps."""
    system = make(worker_queues="elsewhere")  # nobody runs the steps until they are all there
    commands = {f"{from_}>{to}": {"from": from_, "to": to, "cmd": cmd, "job_id": job_id} for from_, to, cmd in PICTURE}
    commands["A>B"]["data"] = "data"
    for name, command in commands.items():
        if name != "A>B":
            status, answer = curl(system, command, *OPERATION)
            assert (status, answer) == (202, {**command, "status": 1, "state": "standby"})
    sent = {name: value for name, value in commands["A>B"].items() if name != "data"}
    assert curl(system, commands["A>B"]) == (202, {**sent, "status": 0, "state": "start"})

    firsts = {"A>B": "A", "B>C": "B", "C>D": "C", "C>E": "C>E", "D>end_job": "D", "E>end_job": "E"}
    waiting = {
        f"{first}:standby": {"to": commands[name]["to"], "cmd": commands[name]["cmd"], "data": None}
        for name, first in firsts.items()
        if first != "A"
    }
    assert records(system, job_id) == {"A:start": {"to": "B", "cmd": "cmd0", "data": "data"}, **waiting}

    # What each step is fed, and what it gives, by the first part of its key.
    given = {"A": "data", "B": "data cmd0", "C": "data cmd0 cmd1", "C>E": "data cmd0 cmd1"}
    given |= {"D": "data cmd0 cmd1 cmd2", "E": "data cmd0 cmd1 cmd2"}
    now = {}
    gates = system.redis(1)
    gates.set(f"gated:{job_id}", 1)
    with gates, system.another_worker(worker_queues="default", worker_slots=1, worker_prefetch=0):
        for running, moved in STAGES:
            now |= moved
            expected = {}
            for name, first in firsts.items():
                _, to, cmd = next(each for each in PICTURE if name == f"{each[0]}>{each[1]}")
                what = {"to": to, "cmd": cmd}
                if now[first] == "data_available":
                    what["result"] = {"EOJ": f"{given[first]} {cmd}"}
                else:
                    what["data"] = given[first] if now[first] != "standby" else None
                expected[f"{first}:{now[first]}"] = what
            until(lambda wanted=expected: records(system, job_id) == wanted, f"it stands as it should: {now}", 20)
            # Resent, each command is told its present state, and changes nothing.
            before = system.everything()
            for name, first in firsts.items():
                status, answer = curl(system, commands[name], *(OPERATION if first != "A" else ()))
                assert answer["state"] == now[first]
                assert answer["status"] == STATUS[now[first]]
                assert status == (200 if now[first] == "data_available" else 202)
            assert {key: held for key, held in system.everything().items() if job_id in key[1]} == {
                key: held for key, held in before.items() if job_id in key[1]
            }
            if running:
                gates.rpush(f"gate:{job_id}:{running}", 1)

    for from_, to, cmd in PICTURE:
        command = commands[f"{from_}>{to}"]
        status, answer = curl(system, command)
        assert status == 200
        assert answer == {
            **{"job_id": job_id, "from": from_, "to": to, "cmd": cmd, "status": 3, "state": "data_available"},
            "result": {"EOJ": f"{given[firsts[f'{from_}>{to}']]} {cmd}"},
        }
    job = job_of(system, job_id)
    assert (job["state"], job["EOJ"]) == ("data_available", {"D": PICTURED, "E": PICTURED})


def test_the_picture_as_one_array(system, curl, job_id):
    commands = [{"from": from_, "to": to, "cmd": cmd, "job_id": job_id} for from_, to, cmd in PICTURE]
    commands[0]["data"] = "data"
    status, answers = curl(system, commands, *OPERATION, query="?wait=20")
    assert status == 200
    assert [(each["from"], each["to"], each["state"]) for each in answers] == [
        (from_, to, "data_available") for from_, to, _ in PICTURE
    ]
    assert [each["result"]["EOJ"] for each in answers[-2:]] == [PICTURED, PICTURED]
    assert job_of(system, job_id)["EOJ"] == {"D": PICTURED, "E": PICTURED}


def test_an_array_is_answered_at_once_too(system, job_id):
    """Roots are in start, the others wait; the job_id is made when it is left out."""
    commands = [step("A", "B", "sleep", data=0.5), step("B", "end_job", "echo")]
    answer = system.post(commands, headers=WORKFLOW)
    assert (answer.status, [each["state"] for each in answer.body]) == (202, ["start", "standby"])
    [made] = {each["job_id"] for each in answer.body}
    assert uuid.UUID(made)
    assert ended(system, made)["EOJ"] == 0.5
    # With a wait that is too short it is told how far it is.
    answer = system.post(commands, wait=0.2, headers=WORKFLOW)
    assert (answer.status, [each["state"] for each in answer.body]) == (202, ["processing", "standby"])


# --- any order --------------------------------------------------------------------


def pictured_well(system, job_id):
    """Check all that is left of the picture: right results, each step run once, nothing waiting."""
    firsts = [{"A", "B", "C", other, "D", "E"} for other in ("C>D", "C>E")]
    with system.redis() as store:
        index = {name.decode() for name in store.hkeys(f"exesys:job:{job_id}")}
        present = {name for name in index if not name.startswith(":")}
        assert present in firsts, present
        for (state, fields), first in zip(
            system.records([f"{first}:{job_id}" for first in sorted(present)]), sorted(present), strict=True
        ):
            assert state == "data_available", f"{first}:{job_id}"
            assert fields[b"attempt"] == b"1"
            runs = "ABCDE".index(first[0]) + 1
            cmds = ["cmd0", "cmd1", "cmd2", "cmd3"][: min(runs, 4)]
            assert codec.unpack(fields[b"result"]) == {"EOJ": " ".join(["data", *cmds])}
            assert 0 < store.ttl(f"{first}:{job_id}:data_available") <= 86_400
        assert 0 < store.ttl(f"exesys:job:{job_id}") <= 86_400


def test_every_order_of_arrival(system, seed):
    """All 720, over the bus: sent in one stream, so that steps arrive before, while and after their feeders run."""
    orders = list(itertools.permutations(PICTURE))
    random.Random(seed).shuffle(orders)
    with system.client() as client:
        handles = []
        for number, order in enumerate(orders):
            for from_, to, cmd in order:
                root = from_ == "A"
                handles.append(
                    client.submit(
                        cmd,
                        "data" if root else None,
                        job_id=f"order-{number}",
                        from_=from_,
                        to=to,
                        standby=not root,
                    )
                )
        for handle in handles:
            assert handle.result(60).endswith(handle.cmd)
    for number in range(len(orders)):
        pictured_well(system, f"order-{number}")
    with system.redis() as store:
        assert store.zcard("exesys:standby") == 0, "nobody waits to be fed"


def test_many_orders_of_arrival_over_rest(system, seed, job_id):
    """Request after request: the first of them has ended before the next comes."""
    dice = random.Random(seed)
    rest = PICTURE[1:]
    orders = [PICTURE, PICTURE[::-1], [*rest, PICTURE[0]], *(dice.sample(PICTURE, 6) for _ in range(40))]
    orders += [[PICTURE[0], *dice.sample(rest, 5)] for _ in range(17)]  # root first
    for number, order in enumerate(orders):
        mine = f"{job_id}-{number}"
        for from_, to, cmd in order:
            command = step(from_, to, cmd, data="data") if from_ == "A" else step(from_, to, cmd)
            answer = send_one(system, mine, command, from_ != "A")
            assert answer.status in (200, 202), answer
            if number % 2:
                idle(system, mine)
        assert ended(system, mine)["EOJ"] == {"D": PICTURED, "E": PICTURED}, order
        pictured_well(system, mine)


def test_a_step_that_comes_late_starts_at_once(system, job_id):
    """Its feeder has ended, and the job was over; what was over stays until all has ended."""
    send_one(system, job_id, step("A", "B", data=1), waits=False)
    idle(system, job_id)
    assert job_of(system, job_id)["state"] == "data_available"
    answer = send_one(system, job_id, step("B"), waits=True)
    assert answer.body["state"] in ("start", "processing", "data_available")
    assert ended(system, job_id)["EOJ"] == ["B", ["A", 1]]


def test_what_comes_late_to_a_failed_feeder_fails_at_once(system, job_id):
    send_one(system, job_id, step("A", "B", "fail"), waits=False)
    until(lambda: job_of(system, job_id)["state"] == "error", "A failed")
    answer = send_one(system, job_id, step("B"), waits=True)
    assert (answer.status, answer.body["state"]) == (200, "error")
    assert (answer.body["error"]["type"], answer.body["error"]["message"]) == (
        "PredecessorFailed",
        "predecessor A failed",
    )


# --- sent again -------------------------------------------------------------------


def test_sending_again_changes_nothing(system, job_id):
    """Any step or the whole, while some of it waits, runs, has ended."""
    gate = system.root / f"gate-{job_id}"
    steps = [
        step("A", ["B", "C"], data=1),
        step("B", "D", "wait_for_file", data=None),
        step("C", "D", "echo"),
        step("C", "end_job", "fed"),
        step("D"),
    ]
    steps[0] = step("A", ["B", "C"], "echo", data=str(gate))
    assert send(system, job_id, *steps, wait=None).status == 202
    wanted = ["data_available", "processing", "data_available", "data_available", "standby"]
    until(lambda: list(states(job_of(system, job_id)).values()) == wanted, "all but B and D have ended")
    resent_changes_nothing(system, job_id, steps, wanted)
    gate.touch()
    assert ended(system, job_id)["EOJ"] == {"C": ["C", str(gate)], "D": ["D", {"B": None, "C": str(gate)}]}
    resent_changes_nothing(system, job_id, steps, ["data_available"] * 5)


def resent_changes_nothing(system, job_id, steps, wanted):
    before = steady(system)
    again = send(system, job_id, *steps, wait=None)
    assert [each["state"] for each in again.body] == wanted
    assert again.status == (202 if set(wanted) != {"data_available"} else 200)
    assert ["result" in each for each in again.body] == [state == "data_available" for state in wanted]
    for each, state in zip(steps, wanted, strict=True):
        for waits in (True, False):
            answer = send_one(system, job_id, each, waits)
            assert answer.body["state"] == state
            assert answer.status == (200 if state == "data_available" else 202)
    assert system.everything() == before


@pytest.mark.parametrize("number", range(len(PICTURE)))
def test_another_step_in_its_place_is_a_conflict(system, job_id, number):
    commands = [step(from_, to, cmd) for from_, to, cmd in PICTURE]
    commands[0]["data"] = "data"
    send(system, job_id, *commands)
    before = system.everything()
    for change in ({"cmd": "echo"}, {"data": "other"}):
        others = [each if place != number else {**each, **change} for place, each in enumerate(commands)]
        refused = send(system, job_id, *others)
        assert (refused.status, refused.error["code"], refused.error["field"]) == (409, "conflict", "job_id")
        assert commands[number]["from"] in refused.error["message"]
        refused = send_one(system, job_id, others[number], waits=number > 0)
        assert (refused.status, refused.error["code"]) == (409, "conflict")
    assert system.everything() == before


# --- how data flows ---------------------------------------------------------------


def test_fan_out_by_several_steps_with_one_from(system, job_id):
    """Each runs its own cmd on the same data, roots too."""
    steps = [step("A", "B", "echo", data=3), step("A", "C", "one_more", data=3)]
    steps += [step("B", f"end{i}", "one_more" if i else "echo") for i in range(3)]
    steps += [step(f"end{i}") for i in range(3)] + [step("C")]
    job = send(system, job_id, *steps) and job_of(system, job_id)
    assert job["EOJ"] == {"end0": ["end0", 3], "end1": ["end1", 4], "end2": ["end2", 4], "C": ["C", 4]}


def test_fan_out_by_a_list(system, job_id):
    """One run, and its result goes to each."""
    names = [f"part-{i}" for i in range(20)]
    steps = [step("A", names, "counts", data=job_id), *(step(name) for name in names)]
    send(system, job_id, *steps)
    assert job_of(system, job_id)["EOJ"] == {name: [name, 1] for name in names}
    with system.redis(1) as data:
        assert data.get(job_id) == b"1"


def test_a_list_may_name_the_end(system, job_id):
    send(system, job_id, step("A", ["B", "end_job"], data=1), step("B"))
    assert job_of(system, job_id)["EOJ"] == {"A": ["A", 1], "B": ["B", ["A", 1]]}


def test_fan_in_gives_a_map_by_from(system, job_id):
    steps = [step("A", ["B", "C"], "echo", data=0), step("B", "D", "one_more"), step("C", "D"), step("D")]
    send(system, job_id, *steps)
    assert job_of(system, job_id)["EOJ"] == ["D", {"B": 1, "C": ["C", 0]}]


def test_feeders_of_one_name_are_told_apart_by_their_edge(system, job_id):
    """Two steps from B go to D: there is no one `B` to name."""
    steps = [step("A", ["B", "C"], "echo", data=0), step("B", ["D", "end_job"], "echo"), step("B", "D", "one_more")]
    steps += [step("C", "D", "echo"), step("D")]
    send(system, job_id, *steps)
    fed = {"B>D,end_job": 0, "B>D": 1, "C": 0}
    assert job_of(system, job_id)["EOJ"] == {"D": ["D", fed], "B": 0}


def test_one_feeder_gives_its_value_alone_whatever_it_is(system, job_id):
    for number, value in enumerate([None, [], {}, {"EOJ": 1}, {"a": [1, None]}, "text", 0]):
        mine = f"{job_id}-{number}"
        send(system, mine, step("A", "B", "echo", data=value), step("B"))
        given = value["EOJ"] if value == {"EOJ": 1} else value  # a function may wrap what it returns
        assert job_of(system, mine)["EOJ"] == ["B", given]


def test_several_roots_and_several_ends(system, job_id):
    steps = [step("A", "C", data=1), step("B", ["C", "D"], data=2), step("C", "D"), step("C"), step("D"), step("E")]
    steps[-1]["data"] = 3  # a root and an end, and part of nothing else
    send(system, job_id, *steps)
    a, b = ["A", 1], ["B", 2]
    fed = ["C", {"A": a, "B": b}]
    assert job_of(system, job_id)["EOJ"] == {"C": fed, "D": ["D", {"B": b, "C": fed}], "E": ["E", 3]}


def test_several_roots_sent_one_by_one(system, job_id):
    """A step starts when all that feed it *and are known* have ended: C does not wait for a root that is sent later."""
    send_one(system, job_id, step("C"), waits=True)
    send_one(system, job_id, step("A", "C", data=1), waits=False)
    idle(system, job_id)
    assert states(job_of(system, job_id)) == {"C>end_job": "data_available", "A>C": "data_available"}
    assert send_one(system, job_id, step("B", "C", data=2), waits=False).status == 202
    job = ended(system, job_id)
    assert (one(job, "C")["attempt"], job["EOJ"]) == (1, ["C", ["A", 1]])


def test_by_convention_a_job_begins_at_start_job(system, job_id):
    steps = [step("start_job", "A", data=1), step("start_job", "B", "one_more", data=1), step("A"), step("B")]
    send(system, job_id, *steps)
    assert job_of(system, job_id)["EOJ"] == {"A": ["A", ["start_job", 1]], "B": ["B", 2]}
    # The same one by one.
    for each in steps[2:]:
        send_one(system, f"{job_id}-2", each, waits=True)
    for each in steps[:2]:
        send_one(system, f"{job_id}-2", each, waits=False)
    assert ended(system, f"{job_id}-2")["EOJ"] == {"A": ["A", ["start_job", 1]], "B": ["B", 2]}


def test_options_are_those_of_each_step(system, job_id):
    """A delay counts from when a step was fed; retries and times are its own."""
    steps = [
        step("A", ["B", "C", "D"], "echo", data={"name": job_id, "fails": 1}),
        step("B", "end_job", "echo", delay_s=0.6),
        step("C", "end_job", "fails_then_works", retries=2, backoff_s=0.01),
        step("D", "end_job", "fed", priority=9, timeout_s=5, result_ttl_s=3600),
    ]
    since = time.monotonic()
    send(system, job_id, *steps)
    job = job_of(system, job_id)
    assert time.monotonic() - since >= 0.6
    assert job["EOJ"]["C"] == 2
    assert one(job, "B")["began_ms"] - one(job, "A")["ended_ms"] >= 590
    assert one(job, "D")["began_ms"] - one(job, "A")["ended_ms"] < 590


def test_a_workflow_of_one_step(system, job_id):
    answer = send(system, job_id, step("A", data=1))
    assert (answer.status, [each["result"] for each in answer.body]) == (200, [{"EOJ": ["A", 1]}])
    assert job_of(system, job_id)["EOJ"] == ["A", 1]


def test_steps_found_while_it_runs(system, job_id):
    """A map over a list that a function finds, back to a step that was sent at the start."""
    steps = [step("split", "merge", "lists", data=["x", "y", "z"]), step("merge")]
    send(system, job_id, *steps)
    job = job_of(system, job_id)
    found = {f"split.{i}": [f"split.{i}", item] for i, item in enumerate("xyz", 1)}
    assert job["EOJ"] == ["merge", {"split": 3, **found}]
    before = steady(system)
    assert send(system, job_id, *steps).status == 200
    assert system.everything() == before


# --- failure, retry ---------------------------------------------------------------

#     ╭─ B ─╮
#   A ┼─ C ─┴ D      B fails; so does D, and F that waits for it; E does not wait for B
#     ╰─ E      ╰ F
FAILING = [
    *(step("A", ["B", "C", "E"], "echo", data=1), step("B", "D", "fed_once_mended"), step("C", "D", "one_more")),
    *(step("D", "F"), step("E"), step("F")),
]


def test_a_failure_takes_with_it_only_what_depends_on_it(system, job_id):
    answer = send(system, job_id, *FAILING)
    assert answer.status == 200
    job = job_of(system, job_id)
    assert (job["state"], job["status"], "EOJ" in job) == ("error", 4, False)
    why = {"B": "B is not mended", "D": "predecessor B failed", "F": "predecessor D failed"}
    assert failed(job) == why
    assert one(job, "B")["error"]["type"] == "LookupError"
    assert "raise LookupError" in one(job, "B")["error"]["traceback"]
    assert {one(job, name)["error"]["type"] for name in "DF"} == {"PredecessorFailed"}
    assert {one(job, name)["attempt"] for name in "DF"} == {0}
    assert one(job, "E")["result"] == {"EOJ": ["E", 1]}
    told = {each["from"]: each["state"] for each in answer.body}
    assert told == {each["from"]: each["state"] for each in job["steps"]}
    assert [each["job_id"] for each in system.get("/jobs", state="error", limit=1).body["jobs"]] == [job_id]


def test_retry_runs_again_what_failed_and_what_depended_on_it(system, job_id):
    send(system, job_id, *FAILING)
    # Not mended: it fails again.
    answer = retry(system, job_id)
    assert (answer.status, answer.body["retried"]) == (202, 3)
    assert set(failed(ended(system, job_id))) == {"B", "D", "F"}
    with system.redis(1) as data:
        data.set(f"mended:{job_id}", 1)
    answer = retry(system, job_id)
    assert (answer.status, answer.body["retried"]) == (202, 3)
    assert set(states(answer.body)) == {"A>B,C,E", "B>D", "C>D", "D>F", "E>end_job", "F>end_job"}
    job = ended(system, job_id)
    fed = ["D", {"B": ["B", 1], "C": 2}]
    assert job["EOJ"] == {"E": ["E", 1], "F": ["F", fed]}
    assert {each["from"]: each["attempt"] for each in job["steps"]} == {"A": 1, "B": 3, "C": 1, "D": 1, "E": 1, "F": 1}
    # Then there is nothing to do, and sending it again tells the result.
    before = steady(system)
    answer = retry(system, job_id)
    assert (answer.status, answer.body["retried"]) == (200, 0)
    assert [each["state"] for each in send(system, job_id, *FAILING).body] == ["data_available"] * 6
    assert system.everything() == before


def test_while_something_runs_a_retry_reopens_what_failed(system, job_id):
    """And it joins what went on meanwhile."""
    gate = system.root / f"gate-{job_id}"
    steps = [
        *(step("A", "B", "fed_once_mended", data=1), step("B", "D"), step("C", "D", "wait_for_file", data=str(gate))),
        step("D"),
    ]
    send(system, job_id, *steps, wait=None)
    until(lambda: set(failed(job_of(system, job_id))) == {"A", "B", "D"}, "A failed, and B and D with it")
    with system.redis(1) as data:
        data.set(f"mended:{job_id}", 1)
    assert retry(system, job_id).body["retried"] == 3
    until(lambda: one(job_of(system, job_id), "B")["state"] == "data_available", "B ran")
    assert one(job_of(system, job_id), "D")["state"] == "standby"
    gate.touch()
    assert ended(system, job_id)["EOJ"] == ["D", {"B": ["B", ["A", 1]], "C": None}]


def test_a_plain_job_is_retried_too(system, job_id):
    command = {"cmd": "fed_once_mended", "data": 1, "job_id": job_id}
    assert system.post(command, wait=10).body["state"] == "error"
    with system.redis(1) as data:
        data.set(f"mended:{job_id}", 1)
    assert retry(system, job_id).status == 202
    assert system.post(command, wait=10).body["result"] == {"EOJ": ["client", 1]}
    with system.redis() as store:
        assert 0 < store.ttl(f"client:{job_id}:data_available") <= 86_400
        assert store.zscore("exesys:dead", f"client:{job_id}") is None


def test_own_retries_come_first(system, job_id):
    """A step that fails and is tried again has not failed yet: nothing fails with it."""
    asked = {"name": f"own-{job_id}", "fails": 2}
    send(system, job_id, step("A", "B", "fails_then_works", data=asked, retries=3, backoff_s=0.01), step("B"))
    assert job_of(system, job_id)["EOJ"] == ["B", 3]


@pytest.mark.parametrize("path", ["/jobs/nowhere/retry", "/jobs/nowhere"])
def test_a_job_that_is_not_there_is_neither_retried_nor_cancelled(system, path):
    answer = system.request("POST" if path.endswith("retry") else "DELETE", path)
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert "nowhere" in answer.error["message"]


def test_what_feeders_gave_may_be_too_much_together(make):
    """Each fits, the map does not: the step that would get it fails, saying so."""
    system = make(limits_data_bytes=10_000)
    steps = [step(name, "D", "multiplies", data=["x" * 1000, 6]) for name in ("A", "B")] + [step("D", "E"), step("E")]
    send(system, "too-much", *steps)
    job = job_of(system, "too-much")
    assert set(failed(job)) == {"D", "E"}
    error = one(job, "D")["error"]
    assert (error["type"], "10000" in error["message"].replace(",", "")) == ("TooLarge", True)
    assert retry(system, "too-much").status == 202
    assert set(failed(ended(system, "too-much"))) == {"D", "E"}, "it is no better the next time"


# --- cancel -----------------------------------------------------------------------


def test_cancelling_what_waits(system, job_id):
    """Whatever it waits for: to be fed, its time, a queue."""
    steps = [
        step("A", ["B", "C"], "echo", data=1, queue="nowhere"),
        *(step("B"), step("C")),
        step("D", "end_job", "echo", data=1, delay_s=3600),
        step("E", "end_job", "echo", data=1),
    ]
    send(system, job_id, *steps, wait=None)
    until(lambda: one(job_of(system, job_id), "E")["state"] == "data_available", "E ended")
    answer = cancel(system, job_id)
    assert (answer.status, answer.body["cancelled"], answer.body["state"]) == (200, 4, "error")
    job = job_of(system, job_id)
    assert {each["from"]: each.get("error", {}).get("type") for each in job["steps"]} == {
        **dict.fromkeys("ABCD", "Cancelled"),
        "E": None,
    }
    with system.redis() as store:
        assert store.zscore("exesys:delayed", f"D:{job_id}") is None
        assert store.zrange("exesys:ready:nowhere", 0, -1) == []
        assert 0 < store.ttl(f"B:{job_id}:error") <= 14 * 86_400
    # Again it changes nothing.
    before = steady(system)
    assert cancel(system, job_id).body["cancelled"] == 0
    assert system.everything() == before


@pytest.mark.parametrize("deaf", [False, True], ids=["heeds TERM", "ignores TERM"])
def test_cancelling_what_runs_ends_its_process(system, job_id, deaf):
    send(system, job_id, step("A", "B", "stays", data=deaf), step("B"), step("C", data=1), wait=None)
    with system.redis(1) as data:
        pid = int(until(lambda: data.get(f"pid:{job_id}"), "A runs"))
    assert pid in system.slots()
    until(lambda: one(job_of(system, job_id), "C")["state"] == "data_available", "C ended")
    answer = cancel(system, job_id)
    assert (answer.status, answer.body["cancelled"], answer.body["state"]) == (200, 2, "error")
    assert states(answer.body) == {"A>B": "error", "B>end_job": "error", "C>end_job": "data_available"}
    until(lambda: not alive(pid), "its process is gone", within_s=10)
    # The slot is replaced, and the system goes on.
    until(lambda: len(system.slots()) == 2, "a new slot is there")
    until(lambda: [each["held"] for each in system.get("/workers").body["workers"]] == [0], "nothing is held")
    assert system.post({"cmd": "echo", "data": 1}, wait=10).body["result"] == {"EOJ": 1}
    job = job_of(system, job_id)
    assert {each["from"]: each.get("error", {}).get("type") for each in job["steps"]} == {
        **{"A": "Cancelled", "B": "Cancelled", "C": None}
    }
    assert one(job, "A")["attempt"] == 1, "what it told in its death changed nothing"


def test_what_was_cancelled_can_be_retried(system, job_id):
    send(system, job_id, step("A", "B", "fed_once_mended", data=1, delay_s=3600), step("B"), wait=None)
    assert cancel(system, job_id).body["cancelled"] == 2
    with system.redis(1) as data:
        data.set(f"mended:{job_id}", 1)
    assert retry(system, job_id).body["retried"] == 2
    assert ended(system, job_id)["EOJ"] == ["B", ["A", 1]]


def test_cancelling_a_plain_job(system, job_id):
    command = {"cmd": "sleep", "data": 600, "job_id": job_id}
    system.post(command)
    until(lambda: job_of(system, job_id).get("state") == "processing", "it runs")
    assert cancel(system, job_id).body["cancelled"] == 1
    answer = system.post(command)
    assert (answer.status, answer.body["error"]["type"]) == (200, "Cancelled")


def test_who_waits_hears_of_the_cancel(system, job_id):
    with system.client() as client:
        handle = client.submit("sleep", 600, job_id=job_id)
        until(lambda: job_of(system, job_id).get("state") == "processing", "it runs")
        assert cancel(system, job_id).status == 200
        assert handle.wait(10)
        assert handle.exception().type == "Cancelled"


# --- steps that nobody feeds ------------------------------------------------------


@pytest.fixture(scope="module")
def hasty(make_module):
    """A system that gives up after two seconds what nothing was sent to feed."""
    return make_module(limits_standby_s=2)


def test_a_step_whose_root_never_comes_ends_in_error(hasty, job_id):
    for each in (step("B", "C"), step("C", "D"), step("D")):
        send_one(hasty, job_id, each, waits=True)
    since = time.monotonic()
    assert hasty.post({**step("C", "D"), "job_id": job_id}, wait=1, headers=WORKFLOW).body["state"] == "standby"
    job = ended(hasty, job_id)
    assert 1 < time.monotonic() - since < 10
    assert failed(job) == {
        "B": "no step was sent that goes to B, for 2 s",
        "C": "predecessor B failed",
        "D": "predecessor C failed",
    }
    assert one(job, "B")["error"]["type"] == "NeverFed"
    with hasty.redis() as store:
        assert store.zcard("exesys:standby") == 0
    # It is not lost: with its root, and a retry, it runs.
    assert send_one(hasty, job_id, step("A", "B", data=1), waits=False).status == 202
    idle(hasty, job_id)
    assert retry(hasty, job_id).body["retried"] == 3
    assert ended(hasty, job_id)["EOJ"] == ["D", ["C", ["B", ["A", 1]]]]


def test_who_waits_for_it_is_told(hasty, job_id):
    with hasty.client() as client:
        handles = [
            client.submit("fed", job_id=job_id, from_=from_, to=to, standby=True)
            for from_, to in (("B", "C"), ("C", "end_job"))
        ]
        assert [handle.wait(20) for handle in handles] == [True, True]
        assert [handle.exception().type for handle in handles] == ["NeverFed", "PredecessorFailed"]


def test_a_step_that_is_fed_may_wait_longer(hasty, job_id):
    """The time counts only while nothing is there that feeds it."""
    send_one(hasty, job_id, step("B"), waits=True)
    send_one(hasty, job_id, step("A", "B", "fed_slowly", data=4), waits=False)
    send(hasty, f"{job_id}-2", step("A", "B", "fed_slowly", data=4), step("B"), wait=None)
    assert ended(hasty, job_id)["EOJ"] == ["B", ["A", 4]]
    assert ended(hasty, f"{job_id}-2")["EOJ"] == ["B", ["A", 4]]


# --- the example ------------------------------------------------------------------


@pytest.mark.usefixtures("with_mongo")
def test_the_example_indexes_a_directory_in_parallel(shared, job_id, tmp_path):
    """`modules/text.py`: split, index, merge, report."""
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text(f"Book {number}\n\nA ship, {'and a sail, ' * number}and a sea.\n")
    (tmp_path / "binary.txt").write_bytes(b"ship\0")
    asked = {"path": str(tmp_path), "index": job_id, "files": 3}
    steps = [
        step("split", "merge", "split_directory", data=asked),
        step("merge", "report", "merge_index"),
        step("report", "end_job", "report_index"),
    ]
    send(shared, job_id, *steps)
    job = job_of(shared, job_id)
    report = f"{tmp_path}: 7 indexed, 0 unchanged, 0 removed\nThe index {job_id} has 7 documents.\n"
    assert job["EOJ"] == f"{report}skipped {tmp_path}/binary.txt: it is binary"
    assert one(job, "merge")["result"]["EOJ"]["parts"] == 3
    assert [each["from"] for each in job["steps"] if each["cmd"] == "index_files"] == ["split.1", "split.2", "split.3"]
    search = {"cmd": "search", "data": {"query": "sail", "index": job_id}}
    hits = shared.post(search, wait=10).body["result"]["EOJ"]["hits"]
    assert [hit["title"] for hit in hits[:2]] == ["Book 6", "Book 5"]
    # Later: one changed, one went, and the rest stays as it is.
    (tmp_path / "6.txt").write_text("Book 6\n\nNow about gardens.\n")
    (tmp_path / "5.txt").unlink()
    send(shared, f"{job_id}-2", *steps)
    report = f"{tmp_path}: 1 indexed, 5 unchanged, 1 removed\nThe index {job_id} has 6 documents.\n"
    assert job_of(shared, f"{job_id}-2")["EOJ"].startswith(report)
    hits = shared.post(search, wait=10).body["result"]["EOJ"]["hits"]
    assert [hit["title"] for hit in hits] == ["Book 4", "Book 3", "Book 2", "Book 1"]
    # In one go by a single function it comes to the same.
    done = shared.post({"cmd": "index_directory", "data": {"path": str(tmp_path), "index": job_id}}, wait=20)
    assert {name: done.body["result"]["EOJ"][name] for name in ("documents", "unchanged", "removed")} == {
        **{"documents": 6, "unchanged": 6, "removed": 0}
    }


@pytest.mark.usefixtures("with_mongo")
def test_the_example_in_an_empty_directory_and_in_none(shared, job_id, tmp_path):
    steps = [
        step("split", "merge", "split_directory", data={"path": str(tmp_path / "texts"), "index": job_id}),
        step("merge", "end_job", "merge_index"),
    ]
    send(shared, job_id, *steps)
    assert failed(job_of(shared, job_id))["split"].endswith("which is no directory here.")
    (tmp_path / "texts").mkdir()
    assert retry(shared, job_id).status == 202
    done = ended(shared, job_id)["EOJ"]
    assert (done["documents"], done["parts"]) == (0, 1)
