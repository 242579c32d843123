"""Workflows from Python and on the command line."""

import asyncio
import importlib.util
import json
import subprocess
import sys
import uuid

import pytest
from harness import Said, alive, until
from sent import job_of, one, states, step

import exesys
from exesys.errors import BadCommand, Conflict, NotFound, ResultTimeout, TooLarge, UnknownFunction
from exesys.states import State

DIAMOND = [step("A", ["B", "C"], data=1), step("B", "D"), step("C", "D"), step("D")]
VALUE = ["D", {"B": ["B", ["A", 1]], "C": ["C", ["A", 1]]}]
FAILING = [step("A", ["B", "C"], "fed_once_mended", data=1), step("B", "D"), step("C", "D"), step("D")]
LONG = [step("A", "B", "stays", data=False), step("B"), step("C", data=2)]


@pytest.fixture(scope="module")
def system(make_module):
    return make_module()


@pytest.fixture
def client(system):
    with system.client() as client:
        yield client


@pytest.fixture
def job_id():
    return f"flow-{uuid.uuid4()}"


def mend(system, job_id):
    with system.redis(1) as data:
        data.set(f"mended:{job_id}", 1)


def diamond():
    """The same as DIAMOND, built."""
    flow = exesys.Workflow()
    start = flow.step("fed", 1, name="A")
    sides = [start.then("fed", name=name) for name in "BC"]
    flow.step("fed", after=sides, name="D")
    return flow


# --- Python -----------------------------------------------------------------------


@pytest.mark.parametrize("flow", [DIAMOND, diamond()], ids=["list", "built"])
def test_a_workflow_gives_its_value(client, flow):
    handle = client.workflow(flow)
    handle.accepted(10)
    assert handle.result(20) == VALUE
    assert handle.done()
    assert "4 steps" in repr(handle)
    assert [handle.step(number).result(10) for number in range(4)] == [
        ["A", 1],
        ["B", ["A", 1]],
        ["C", ["A", 1]],
        VALUE,
    ]


def test_of_each_step_a_handle_tells_its_end(client, job_id):
    """Also of those that others follow, and while they run."""
    handle = client.workflow([step("A", "B", "sleep", data=0.3), step("B", "C", "fail"), step("C")], job_id)
    first, second = handle.step(0), handle.step(1)
    assert not first.done()
    assert first.result(10) == 0.3
    assert second.wait(10)
    assert second.exception().type == "ValueError"
    with pytest.raises(exesys.JobError, match=r"ValueError: 0\.3"):
        handle.result(10)


def test_a_workflow_with_several_ends_gives_a_map(client):
    flow = exesys.Workflow()
    start = flow.step("fed", 1, name="A")
    for name in ("B", "C"):
        start.then("fed", name=name)
    assert client.workflow(flow).result(20) == {"B": ["B", ["A", 1]], "C": ["C", ["A", 1]]}


def test_sent_twice_it_runs_once(client, system, job_id):
    assert client.workflow(DIAMOND, job_id).result(20) == VALUE
    assert client.workflow(diamond(), job_id).result(20) == VALUE, "built or written, it is the same"
    assert {each["attempt"] for each in job_of(system, job_id)["steps"]} == {1}
    with pytest.raises(Conflict):
        client.workflow([step("A", ["B", "C"], data=2), *DIAMOND[1:]], job_id).result(20)


def test_the_job_id_may_stand_in_the_steps(client, job_id):
    assert client.workflow([{**each, "job_id": job_id} for each in DIAMOND]).job_id == job_id
    with pytest.raises(BadCommand, match="two jobs"):
        client.workflow([{**each, "job_id": f"{job_id}-{place}"} for place, each in enumerate(DIAMOND)])


def test_the_error_is_that_of_the_step_that_failed(client, system, job_id):
    handle = client.workflow(FAILING, job_id)
    with pytest.raises(exesys.JobError) as caught:
        handle.result(20)
    error = caught.value
    assert (error.type, error.text, error.job_id) == ("LookupError", "A is not mended", job_id)
    assert "raise LookupError" in error.traceback
    # Tried again it is the same job, and another handle finds its value.
    mend(system, job_id)
    assert client.retry(job_id) == 4
    assert client.workflow(FAILING, job_id).result(20) == VALUE
    assert client.retry(job_id) == 0


def test_the_error_of_an_end_that_failed_itself(client):
    with pytest.raises(exesys.JobError, match="ValueError: why"):
        client.workflow([step("A", ["B", "C"], "echo", data="why"), step("B"), step("C", cmd="fail")]).result(20)
    with pytest.raises(exesys.JobError, match="ValueError: why"):
        client.workflow([step("A", "B", "fail", data="why"), step("B", "C"), step("C")]).result(20)


def test_a_workflow_is_cancelled_by_its_handle(client, system, job_id):
    handle = client.workflow(LONG, job_id)
    with system.redis(1) as data:
        pid = int(until(lambda: data.get(f"pid:{job_id}"), "A runs"))
    until(lambda: one(job_of(system, job_id), "C")["state"] == "data_available", "C ended")
    with pytest.raises(ResultTimeout, match=job_id):
        handle.result(0.1)
    assert handle.cancel() is True
    with pytest.raises(exesys.JobError, match="Cancelled"):
        handle.result(10)
    until(lambda: not alive(pid), "its process is gone", within_s=10)
    assert handle.cancel() is False
    assert states(job_of(system, job_id)) == {"A>B": "error", "B>end_job": "error", "C>end_job": "data_available"}


def test_one_command_is_cancelled_by_its_handle(client, system, job_id):
    handle = client.submit("stays", False, job_id=job_id)
    with system.redis(1) as data:
        pid = int(until(lambda: data.get(f"pid:{job_id}"), "it runs"))
    assert handle.cancel() is True
    with pytest.raises(exesys.JobError, match="Cancelled"):
        handle.result(10)
    until(lambda: not alive(pid), "its process is gone", within_s=10)
    assert handle.cancel() is False


@pytest.mark.parametrize("call", ["cancel", "retry"])
def test_a_job_that_is_not_there(client, call):
    with pytest.raises(NotFound, match="nowhere"):
        getattr(client, call)("nowhere")
    with pytest.raises(BadCommand):
        getattr(client, call)("a:b")


@pytest.mark.parametrize(
    ("steps", "kind", "says"),
    [
        ([], BadCommand, "no steps"),
        ([step("A", "B"), step("B", "A")], BadCommand, "A → B → A"),
        ([step("A", "B")], BadCommand, "leads nowhere"),
        ([step("A"), 5], BadCommand, "command 2 of 2"),
        ([step("A", data=object())], BadCommand, "command 1 of 1"),
        ([step("A", data=b"x" * (1 << 20))], TooLarge, "command 1 of 1"),
        ([step(f"s{i}") for i in range(10_001)], TooLarge, "10,001 steps"),
        ([step("A", "B"), step("B", cmd="ecko")], UnknownFunction, "the step B → end_job: no function is named `ecko`"),
    ],
    ids=["empty", "circle", "nowhere", "no command", "data", "size", "steps", "function"],
)
def test_a_bad_workflow_raises(client, system, steps, kind, says):
    newest = system.get("/jobs", limit=1).body
    with pytest.raises(kind, match=says):
        client.workflow(steps).result(20)
    assert system.get("/jobs", limit=1).body == newest, "nothing was stored"


def test_step_by_step_from_python(client, job_id):
    last = client.submit("fed", job_id=job_id, from_="B", standby=True)
    assert last.accepted(10).name == "standby"
    client.submit("fed", 1, job_id=job_id, from_="A", to="B")
    assert last.result(10) == ["B", ["A", 1]]


def test_with_await(system, job_id):
    async def talk():
        async with exesys.AsyncClient(system.config) as client:
            handles = [await client.workflow(flow) for flow in (DIAMOND, diamond())]
            assert await asyncio.gather(*handles) == [VALUE, VALUE]
            assert all(handle.done() for handle in handles)
            failing = await client.workflow(FAILING, job_id)
            with pytest.raises(exesys.JobError, match="A is not mended"):
                await failing.result(20)
            await asyncio.to_thread(mend, system, job_id)
            assert await client.retry(job_id) == 4
            assert await (await client.workflow(FAILING, job_id)).result(20) == VALUE
            long = await client.workflow(LONG, f"{job_id}-2")
            with pytest.raises(ResultTimeout):
                await long.result(0.1)
            assert await client.cancel(long.job_id) >= 2
            with pytest.raises(exesys.JobError, match="Cancelled"):
                await long.result(10)
            with pytest.raises(BadCommand, match="A → B → A"):
                await client.workflow([step("A", "B"), step("B", "A")])

    asyncio.run(talk())


# --- the command line ---------------------------------------------------------------


def complaint(said, code):
    """An error for people: a sentence or two on stderr, nothing on stdout, no traceback of ours."""
    assert said.code == code, said
    assert said.out == ""
    assert said.err.startswith("exesys: "), said
    assert "exesys/cli.py" not in said.err
    return said.err


@pytest.fixture
def write(tmp_path):
    def write(what, name="flow.json"):
        path = tmp_path / name
        path.write_text(what if isinstance(what, str) else json.dumps(what))
        return str(path)

    return write


def test_submit_a_file(system, write, job_id):
    file = write(DIAMOND)
    said = system.exesys("workflow", "submit", file)
    assert (said.code, said.err) == (0, "")
    made = said.out.strip()
    assert json.loads(system.exesys("result", made).out) == VALUE
    said = system.exesys("workflow", "submit", file, "--wait", "20", "--job-id", job_id)
    assert (said.code, json.loads(said.out), said.err) == (0, VALUE, "")
    said = system.exesys("workflow", "submit", file, "--wait", "20", "--job-id", job_id, "--json")
    assert (said.code, said.json) == (0, {"job_id": job_id, "EOJ": VALUE})
    assert system.exesys("workflow", "submit", file, "--job-id", job_id, "--json").json == {"job_id": job_id}
    assert {each["attempt"] for each in job_of(system, job_id)["steps"]} == {1}, "sent three times, it ran once"
    assert system.exesys("result", job_id, "--json").json == {"job_id": job_id, "EOJ": VALUE}
    assert json.loads(system.exesys("result", job_id, "--from", "B").out) == ["B", ["A", 1]]


def test_submit_from_standard_input_and_with_a_job_id_in_the_file(system, write, job_id):
    text = json.dumps({"job_id": job_id, "steps": DIAMOND})
    said = system.exesys("workflow", "submit", "-", "--wait", "20", stdin=text)
    assert (said.code, json.loads(said.out)) == (0, VALUE)
    assert system.exesys("workflow", "submit", write(text)).out == f"{job_id}\n"
    other = f"{job_id}-2"
    assert system.exesys("workflow", "submit", write(text), "--job-id", other).out == f"{other}\n"


YAML = """\
# A comment, and no quotes
- {from: A, to: [B, C], cmd: fed, data: 1}
- {from: B, to: D, cmd: fed}
- {from: C, to: D, cmd: fed}
- from: D
  cmd: fed
"""


@pytest.mark.skipif(importlib.util.find_spec("yaml") is None, reason="pyyaml is not installed, and need not be")
def test_submit_yaml(system, write, job_id):
    said = system.exesys("workflow", "submit", write(YAML, "flow.yaml"), "--wait", "20")
    assert (said.code, json.loads(said.out)) == (0, VALUE)
    said = system.exesys("workflow", "submit", write(f"job_id: {job_id}\nsteps:\n{YAML}", "flow.yml"))
    assert said.out == f"{job_id}\n"
    assert "is no YAML" in complaint(system.exesys("workflow", "submit", write("- {a", "bad.yml")), 2)


def test_yaml_where_it_cannot_be_read(system, write, tmp_path):
    (tmp_path / "yaml.py").write_text("raise ImportError\n")
    # A Python of its own: one that is forked has looked for its modules already.
    environ = {**system.environ, "PYTHONPATH": f"{tmp_path}:{system.environ['PYTHONPATH']}"}
    words = [sys.executable, "-m", "exesys.cli", "workflow", "submit", write(YAML, "flow.yaml")]
    said = subprocess.run(words, env=environ, cwd=system.root, capture_output=True, text=True)
    assert "pyyaml is not installed" in complaint(Said(said.returncode, said.stdout, said.stderr), 2)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("[", "is no JSON: Expecting value"),
        ("", "is no JSON: Expecting value"),
        ('"text"', "holds no array of commands"),
        ({"step": []}, "holds no array of commands"),
        ({"steps": DIAMOND, "jobid": "x"}, "holds no array of commands"),
        ([], "the workflow has no steps"),
        ([1, 2], "command 1 of 2: a command must be a JSON object"),
        ({"steps": DIAMOND, "job_id": 5}, "`job_id` must be a string"),
        ([{**step("A", "B"), "job_id": "x"}, {**step("B"), "job_id": "y"}], "two jobs, 'x' and 'y'"),
        ([step("A", "B", data=1), step("B", "A")], "the steps go in a circle: A → B → A"),
        ([step("A", "B", data=1), step("B", cmd="ecko")], "Did you mean `echo`?"),
        ([step("A", "B", data=1), {"from": "B"}], "command 2 of 2: `cmd` is missing"),
        ("[" * 100_000, "is no JSON"),
    ],
    ids=lambda part: str(part)[:40],
)
def test_a_bad_file(system, write, what, says):
    file = write(what)
    assert says in complaint(system.exesys("workflow", "submit", file), 2)
    said = system.exesys("workflow", "submit", file, "--json")
    assert (said.code, said.err, set(said.json["error"])) == (2, "", {"code", "message", "field", "fix"})


def test_a_file_that_cannot_be_read(system, tmp_path):
    assert "No such file" in complaint(system.exesys("workflow", "submit", f"{tmp_path}/no.json"), 2)
    assert "Is a directory" in complaint(system.exesys("workflow", "submit", str(tmp_path)), 2)
    (tmp_path / "bytes.json").write_bytes(b"\xff")
    assert "is no JSON" in complaint(system.exesys("workflow", "submit", f"{tmp_path}/bytes.json"), 2)


def test_a_conflict(system, write, job_id):
    assert system.exesys("workflow", "submit", write(DIAMOND), "--job-id", job_id, "--wait", "20").code == 0
    other = write([step("A", ["B", "C"], data=2), *DIAMOND[1:]])
    assert job_id in complaint(system.exesys("workflow", "submit", other, "--job-id", job_id), 2)


def test_show_draws_the_graph(system, write, job_id):
    system.exesys("workflow", "submit", write(DIAMOND), "--job-id", job_id, "--wait", "20")
    said = system.exesys("workflow", "show", job_id)
    assert (said.code, said.err) == (0, "")
    rows = [line.split() for line in said.out.splitlines()]
    assert [row[1] for row in rows] == ["A", "B", "C", "D"]
    assert all("✓" in row[0] and row[-1] == "data_available" for row in rows)
    dot = system.exesys("workflow", "show", job_id, "--dot").out
    assert dot.startswith("digraph")
    assert dot.count(" -> ") == 5
    mermaid = system.exesys("workflow", "show", job_id, "--mermaid").out
    assert mermaid.startswith("flowchart TD\n")
    assert mermaid.count("-->") == 5
    shown = system.exesys("workflow", "show", job_id, "--json").json
    assert [(each["from"], each["to"], each["state"]) for each in shown] == [
        *[("A", ["B", "C"], "data_available"), ("B", ["D"], "data_available")],
        *[("C", ["D"], "data_available"), ("D", ["end_job"], "data_available")],
    ]


def test_why_retry_and_result_of_what_failed(system, write, job_id):
    said = system.exesys("workflow", "submit", write(FAILING), "--job-id", job_id, "--wait", "20")
    assert said.code == 1
    assert said.err.startswith("exesys: LookupError: A is not mended\n")
    assert f"bin/exesys logs --job {job_id}" in said.err
    why = system.exesys("why", job_id)
    assert why.code == 0
    assert "A failed: LookupError: A is not mended" in why.out.splitlines()
    assert any("D failed" in line and "predecessor B failed" in line for line in why.out.splitlines())
    assert system.exesys("result", job_id).code == 1
    assert "✗" in system.exesys("workflow", "show", job_id).out
    mend(system, job_id)
    said = system.exesys("retry", job_id)
    assert (said.code, said.out, said.err) == (0, f"4 steps of job {job_id} started again.\n", "")
    assert json.loads(system.exesys("result", job_id, "--wait", "20").out) == VALUE
    assert system.exesys("why", job_id).out == f"Nothing of job {job_id} waits: all its steps ended well.\n"
    said = system.exesys("retry", job_id)
    assert (said.code, said.out) == (0, f"Nothing to do: job {job_id} had not failed.\n")
    assert system.exesys("retry", job_id, "--json").json == {"job_id": job_id, "retried": 0}
    assert system.exesys("why", job_id, "--json").json == {"job_id": job_id, "why": [], "todo": []}


def test_why_and_cancel_of_what_goes_on(system, write, job_id):
    file = write([*LONG[:2], step("C", "D", "echo", queue="nowhere"), step("D")])
    said = system.exesys("workflow", "submit", file, "--job-id", job_id, "--wait", "0.5")
    assert f"bin/exesys why {job_id}" in complaint(said, 4)
    told = system.exesys("why", job_id).out.splitlines()
    why = [line for line in told if not line.startswith("→ ")]
    assert len(why) == 4
    assert "→ Add nowhere to [worker] queues in etc/exesys.ini, and `bin/exesys restart`: see docs/queues.md." in told
    assert any(line.startswith("A runs") for line in why)
    assert any(line.startswith("B waits for A") for line in why)
    assert any(line.startswith("C ") and "nowhere" in line for line in why)
    assert any(line.startswith("D waits for C") for line in why)
    assert f"bin/exesys why {job_id}" in complaint(system.exesys("result", job_id, "--wait", "0.1"), 4)
    said = system.exesys("cancel", job_id)
    assert (said.code, said.out, said.err) == (0, f"4 steps of job {job_id} cancelled.\n", "")
    assert system.exesys("cancel", job_id).out == f"Nothing to do: job {job_id} had ended already.\n"
    assert system.exesys("cancel", job_id, "--json").json == {"job_id": job_id, "cancelled": 0}
    said = system.exesys("result", job_id)
    assert (said.code, "Cancelled" in said.err) == (1, True)


def test_why_of_a_step_that_nothing_feeds(system, job_id):
    with system.client() as client:
        client.submit("fed", job_id=job_id, from_="B", standby=True).accepted(10)
        client.submit("fed", job_id=job_id, from_="C", to="D", standby=True).accepted(10)
    why = system.exesys("why", job_id).out
    assert "no step goes to B yet" in why
    assert "24 h" in why
    assert system.exesys("cancel", job_id).out == f"2 steps of job {job_id} cancelled.\n"


@pytest.mark.parametrize("words", [["workflow", "show"], ["why"], ["cancel"], ["retry"]], ids=" ".join)
def test_of_a_job_that_is_not_there(system, words):
    assert "nowhere" in complaint(system.exesys(*words, "nowhere"), 1)
    said = system.exesys(*words, "nowhere", "--json")
    assert (said.code, said.err, said.json["error"]["code"]) == (1, "", "not_found")
    assert "job_id" in complaint(system.exesys(*words, "a:b"), 2)


@pytest.mark.parametrize(
    "words", [["workflow"], ["workflow", "submit"], ["workflow", "draw", "x"], ["why"], ["cancel"]], ids=" ".join
)
def test_wrong_usage(system, words):
    said = system.exesys(*words)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("usage: bin/exesys")


def test_where_nothing_runs(make, write):
    nothing = make(start=False)
    for words in (["workflow", "submit", write(DIAMOND)], ["workflow", "show", "x"], ["why", "x"], ["retry", "x"]):
        assert "exesys" in complaint(nothing.exesys(*words), 3)


def test_a_handle_that_told_of_a_failure_tells_of_the_retry(client, job_id, tmp_path):
    mended = tmp_path / "mended"
    handle = client.workflow([step("A", "B", "needs_file", data=str(mended)), step("B")], job_id)
    with pytest.raises(exesys.JobError, match="FileNotFoundError"):
        handle.result(10)
    assert handle.state is State.error
    mended.write_text("now it is there")
    assert client.retry(job_id) == 2
    assert handle.result(10) == ["B", "now it is there"]
    assert handle.state is State.data_available
