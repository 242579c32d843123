"""A workflow that is none is refused with a sentence that names what is wrong, and nothing of it is left in Redis."""

import pytest
from sent import WORKFLOW, called, ended, send, send_one, steady, step

STEPS = 10_000


@pytest.fixture(scope="module")
def system(make_module):
    system = make_module()
    send(system, "in-use", step("A", "B", data=1), step("B"))
    return system


@pytest.fixture(autouse=True)
def nothing_left(system):
    """Fail when a test leaves anything in any database of Redis, or takes anything away."""
    before = steady(system)
    yield
    assert system.everything() == before


def refused(answer, code="bad_field", field="to", status=400):
    """Check a refusal, and return what it says: its message and what to do."""
    assert (answer.status, answer.error["code"], answer.error["field"]) == (status, code, field), answer
    return f"{answer.error['message']} {answer.error['fix']}"


# --- graphs -----------------------------------------------------------------------


def test_a_cycle_is_named(system):
    said = refused(send(system, "bad", step("A", "B", data=1), step("B", "C"), step("C", ["D", "B"]), step("D")))
    assert "the steps go in a circle: B → C → B" in said
    said = refused(send(system, "bad", step("A", "B"), step("B", "C"), step("C", "A")))
    assert "A → B → C → A" in said


def test_a_cycle_beside_a_good_graph(system):
    said = refused(send(system, "bad", step("A", data=1), step("X", "Y"), step("Y", ["X", "end_job"])))
    assert "X → Y → X" in said


def test_a_long_cycle_is_cut_short_in_the_answer(system):
    around = [step(f"s{i}", f"s{(i + 1) % 1000}") for i in range(1000)]
    said = refused(send(system, "bad", *around))
    assert "s0 → s1 → s2 → s3 → … → s999 → s0 (1,000 names)" in said


def test_a_step_that_feeds_itself(system):
    assert "B → B feeds itself" in refused(send(system, "bad", step("A", "B", data=1), step("B", "B")))
    assert "feeds itself" in refused(send(system, "bad", step("A", ["end_job", "A"], data=1)))


@pytest.mark.parametrize("other", [{}, {"cmd": "echo"}, {"data": 5}], ids=["same", "cmd", "data"])
def test_two_equal_steps(system, other):
    steps = [step("A", "B", data=1), step("B"), {**step("B"), **other}]
    assert "two steps go B → end_job" in refused(send(system, "bad", *steps), field="from")


def test_an_edge_to_nowhere(system):
    said = refused(send(system, "bad", step("A", ["B", "C"], data=1), step("B")))
    assert "the step A → B, C leads nowhere: no step comes from C" in said


def test_a_step_that_nothing_reaches(system):
    said = refused(send(system, "bad", step("start_job", "A", data=1), step("A"), step("B")), field="from")
    assert "nothing reaches the step B → end_job" in said
    said = refused(send(system, "bad", step("start_job", data=1), *(step(f"s{i}") for i in range(5))), field="from")
    assert "nothing reaches the step s0 → end_job (nor 4 more)" in said


def test_no_end_job(system):
    said = refused(send(system, "bad", step("A", "B", data=1), step("B", "C")))
    assert "no step goes to end_job" in said
    assert "B → C leads nowhere" in said


def test_beyond_the_beginning_and_the_end(system):
    said = refused(send(system, "bad", step("A", "end_job", data=1), step("end_job", "B"), step("B")), field="from")
    assert "end_job" in said
    said = refused(send(system, "bad", step("start_job", "A", data=1), step("A", ["start_job", "end_job"])))
    assert "goes to start_job, where jobs begin" in said


def test_two_jobs_in_one_array(system):
    steps = [{**step("A", "B", data=1), "job_id": "bad-1"}, {**step("B"), "job_id": "bad-2"}]
    said = refused(system.post(steps, headers=WORKFLOW), field="job_id")
    assert "'bad-1'" in said
    assert "'bad-2'" in said
    # A job_id in one of them alone is that of all: nothing is wrong with the other.
    said = refused(system.post([steps[0], step("B", "C")], headers=WORKFLOW))
    assert "B → C leads nowhere" in said


def test_too_many_steps(system):
    steps = [step("A", [f"s{i}" for i in range(STEPS)]), *(step(f"s{i}") for i in range(STEPS))]
    said = refused(system.post(steps, headers=WORKFLOW, timeout=60), "too_large", "", 413)
    assert "10,001" in said
    assert "10,000" in said
    assert "[limits] workflow_steps" in said


def test_too_many_edges(system):
    names = [f"t{i}" for i in range(300)]
    steps = [*(step(f"r{i}", names) for i in range(334)), *(step(name) for name in names)]
    said = refused(send(system, "bad", *steps), "too_large", "", 413)
    assert "the steps go to 100,500 names in all; at most 100,000 are allowed" in said
    assert "Let a step between gather" in said


def test_a_long_list_behind_another_step_with_its_name(system):
    """Which it would be told apart from by the list: this is part of the names of keys."""
    names = [f"name-{i}" for i in range(100)]
    steps = [step("A", data=1), step("A", names, data=1), *(step(name) for name in names)]
    said = refused(send(system, "bad", *steps))
    assert "there is another step from A" in said
    assert "Send the step with the long list first" in said


def test_an_empty_workflow(system):
    assert "empty" in refused(system.post([], headers=WORKFLOW), field="")


# --- its steps ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code", "field", "status", "says"),
    [
        ({"cmd": "ecko"}, "unknown_cmd", "cmd", 422, "echo"),
        ({"priorty": 3}, "bad_field", "priorty", 400, "priority"),
        ({"from": "a b"}, "bad_field", "from", 400, "' '"),
        ({"from": "exesys"}, "bad_field", "from", 400, "exesys"),
        ({"to": []}, "bad_field", "to", 400, "1 to"),
        ({"to": ["end_job", "end_job"]}, "bad_field", "to", 400, "twice"),
        ({"timeout_s": -1}, "bad_field", "timeout_s", 400, "timeout_s"),
        ({"data": "x" * (1 << 20)}, "too_large", "data", 413, "data_bytes"),
        ({"job_id": "a:b"}, "bad_field", "job_id", 400, "bad"),
    ],
    ids=lambda part: str(part)[:30],
)
def test_one_bad_step_refuses_the_whole(system, change, code, field, status, says):
    steps = [step("A", ["B", "C"], data=1), step("B"), {**step("C"), **change}]
    said = refused(
        send(system, "bad", *steps) if "job_id" not in change else sent_as_they_are(system, steps),
        *(
            code,
            field,
            status,
        ),
    )
    assert says in said
    if field != "job_id":
        assert "command 3 of 3" in said or "the step C → end_job" in said, "which one"


def sent_as_they_are(system, steps):
    return system.post([{**each, "job_id": each.get("job_id", "bad")} for each in steps], headers=WORKFLOW)


@pytest.mark.parametrize("what", [17, None, "A", [step("A")]], ids=repr)
def test_what_is_no_command(system, what):
    assert "command 2 of 2: a command must be a JSON object" in refused(
        system.post([step("A"), what], headers=WORKFLOW), field=""
    )


def test_an_unknown_operation(system):
    answer = system.post([step("A")], headers={"Operation": "workflows"})
    assert "Operation: workflow" in refused(answer, field="Operation")


def test_a_job_that_is_there_already(system):
    said = refused(send(system, "in-use", step("A", "B", data=1), step("B", "C"), step("C")), "conflict", "job_id", 409)
    assert "in-use" in said
    refused(send(system, "in-use", step("A", "B", data=2), step("B")), "conflict", "job_id", 409)
    refused(send(system, "in-use", step("X", data=2)), "conflict", "job_id", 409)


# --- one by one -----------------------------------------------------------------------


def test_a_bad_step_alone(system):
    said = refused(send_one(system, "bad", step("B", cmd="ecko"), waits=True), "unknown_cmd", "cmd", 422)
    assert "Did you mean `echo`?" in said
    refused(send_one(system, "bad", {**step("B"), "priorty": 1}, waits=True), field="priorty")
    assert "feeds itself" in refused(send_one(system, "bad", step("B", "B"), waits=True))


# --- these change Redis, and look after it themselves -----------------------------------


@pytest.fixture
def own(make):
    return make()


def test_a_step_that_would_close_a_circle_is_refused_when_it_comes(own):
    for each in (step("A", "B"), step("B", ["C", "D"]), step("D")):
        assert send_one(own, "circle", each, waits=True).status == 202
    before = own.everything()
    said = refused(send_one(own, "circle", step("C", "A"), waits=True))
    assert "circle" in said
    assert {"A → B", "B → C", "C → A"} <= {said[at : at + 5] for at in range(len(said))}
    assert own.everything() == before
    # What is there is as good as before.
    send_one(own, "circle", step("C"), waits=True)
    send_one(own, "circle", step("R", "A", data=1), waits=False)
    assert set(ended(own, "circle")["EOJ"]) == {"C", "D"}


def test_a_long_list_that_comes_later_alone(own):
    names = [f"name-{i}" for i in range(100)]
    assert send_one(own, "long", step("A", "B"), waits=True).status == 202
    before = own.everything()
    assert "there is another step from A" in refused(send_one(own, "long", step("A", names), waits=True))
    assert own.everything() == before
    # Sent first, it is as good as any.
    assert send_one(own, "long-2", step("A", names), waits=True).status == 202
    assert send_one(own, "long-2", step("A", "B"), waits=True).status == 202


def test_a_full_queue_takes_all_of_a_workflow_or_nothing(make):
    system = make(limits_queue_depth=3)
    roots = [step(f"r{i}", "end", "echo", queue="elsewhere") for i in range(4)]
    before = steady(system)
    answer = send(system, "full", *roots, step("end"), wait=None)
    assert (answer.status, answer.error["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    assert "r3" in answer.error["message"]
    assert system.everything() == before
    assert send(system, "full", *roots[:3], step("end"), wait=None).status == 202
    # Now it is there, and sending it again is told its state.
    answer = send(system, "full", *roots[:3], step("end"), wait=None)
    assert [called(each) for each in answer.body] == ["r0>end", "r1>end", "r2>end", "end>end_job"]


def test_the_limit_of_steps_is_configurable(make):
    system = make(limits_workflow_steps=3)
    before = steady(system)
    steps = [step("A", ["B", "C", "D"], data=1), step("B"), step("C"), step("D")]
    assert "at most 3 are allowed" in refused(send(system, "few", *steps), "too_large", "", 413)
    assert system.everything() == before
    assert send(system, "few", step("A", ["B", "C"], data=1), step("B"), step("C")).status == 200
    # Steps added at run time count as well.
    send(system, "added", step("A", "B", "lists", data=[1, 2]), step("B"))
    [error] = [each["error"] for each in ended(system, "added")["steps"] if each["from"] == "A"]
    assert "more than 3 steps" in error["message"]
