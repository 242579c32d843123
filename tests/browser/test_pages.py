"""Each page of the dashboard and each of its buttons, on a real system with real jobs."""

import json
import re
import uuid

import pytest
from harness import until
from playwright.sync_api import expect

from exesys import JobError, Workflow


@pytest.fixture
def run():
    """A name that nothing else has."""
    return f"run-{uuid.uuid4().hex[:10]}"


def drive(system, run, *words):
    with system.redis(1) as data:
        data.rpush(f"stage:{run}", *words)


def failed(client, run, cmd="stage.stumble"):
    """Send a job that fails, and wait for that."""
    handle = client.submit(cmd, {"run": run}, job_id=run)
    with pytest.raises(JobError):
        handle.result(20)


def row(page, text):
    return page.locator("main tbody tr", has_text=text)


def state_of(system, job_id):
    return system.get(f"/jobs/{job_id}").body["state"]


def toast(page, text):
    return page.locator(".toast", has_text=text)


# --- overview ---------------------------------------------------------------


def test_the_overview_shows_rates_queues_and_what_runs(system, client, browser, run):
    page = browser.open(system)
    handle = client.submit("stage.act", {"run": run, "parts": 4}, job_id=run)
    line = row(page, run)
    expect(line).to_contain_text("stage.act")
    drive(system, run, "one", "two")
    expect(line.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "50")
    drive(system, run, "three", "four")
    assert handle.result(20) == "4 parts"
    expect(line).to_have_count(0)
    done = page.locator(".tile", has_text="Done").nth(1).locator("b")
    expect(done).to_have_text(re.compile(r"[1-9][\d,]*"))
    expect(page.locator(".tile", has_text="Slots busy").locator("b")).to_have_text(re.compile(r"\d+ / 4"))
    for plot in ("Jobs per second", "Latency"):
        expect(page.get_by_role("img", name=plot)).to_be_visible()
    client.run("echo", 1)
    expect(page.get_by_role("img", name=re.compile(r"accepted (0\.\d|[1-9])"))).to_be_visible()
    client.submit("noop", queue=run, job_id=f"{run}-waits")
    expect(row(page, run)).to_contain_text("1")
    client.cancel(f"{run}-waits")


# --- jobs -------------------------------------------------------------------


def test_jobs_come_go_on_and_end_without_a_reload(system, client, browser, run):
    page = browser.open(system, "#/jobs")
    client.submit("stage.act", {"run": run, "parts": 1}, job_id=run)
    expect(row(page, run)).to_contain_text("processing")
    drive(system, run, "end")
    expect(row(page, run)).to_contain_text("data_available")
    first = page.locator("main tbody tr:not(.spacer)").first
    expect(first).to_contain_text(run)


def test_jobs_are_searched_and_filtered(system, client, browser, run):
    failed(client, f"{run}-bad", "exesys_test.fail")
    client.run("echo", 1, job_id=f"{run}-good")
    page = browser.open(system, "#/jobs")
    expect(row(page, f"{run}-good")).to_be_visible()
    page.get_by_label("State").select_option("error")
    expect(row(page, f"{run}-bad")).to_be_visible()
    expect(row(page, f"{run}-good")).to_have_count(0)
    page.get_by_label("State").select_option("")
    page.get_by_label("Function", exact=True).fill("echo")
    page.keyboard.press("Enter")
    expect(row(page, f"{run}-good")).to_be_visible()
    expect(row(page, f"{run}-bad")).to_have_count(0)
    page.get_by_label("Function", exact=True).fill("")
    page.keyboard.press("Tab")
    page.get_by_label("Since").fill("2001-01-01T00:00:00")
    expect(row(page, f"{run}-bad")).to_be_visible()
    page.get_by_label("Until").fill("2001-01-02T00:00:00")
    expect(page.locator("main .empty")).to_be_visible()
    page.get_by_label("Until").fill("")
    page.get_by_label("Search by id").fill(f"{run}-g")
    expect(page.locator("main tbody tr:not(.spacer)")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(f"{run}-good")


def test_an_id_that_is_not_there_is_told(system, watch):
    watched = watch()
    page = watched.open(system, "#/jobs")
    page.get_by_label("Search by id").fill("no-such-job")
    page.keyboard.press("Enter")
    expect(toast(page, "no-such-job")).to_have_attribute("role", "alert")
    page.get_by_label("Close this message").click()
    expect(page.locator(".toast")).to_have_count(0)
    watched.open(system, "#/job/no-such-job").get_by_text("There is no job no-such-job", exact=False).wait_for()
    watched.check("404")


# --- a job ------------------------------------------------------------------


def test_a_job_shows_input_progress_log_and_result_as_they_come(system, client, browser, run):
    client.submit("stage.act", {"run": run, "parts": 4}, job_id=run)
    page = browser.open(system, f"#/job/{run}")
    expect(page.locator(".head .state")).to_have_text("processing")
    expect(page.locator(".value").first).to_contain_text('"parts": 4')
    drive(system, run, "hello")
    expect(page.get_by_role("progressbar", name="Progress")).to_have_attribute("aria-valuenow", "25")
    expect(page.get_by_label("Log")).to_contain_text("part 1: hello")
    drive(system, run, "x" * 3000, "again", "goodbye")
    expect(page.get_by_label("Log")).to_contain_text("part 4: goodbye")
    expect(page.locator(".head .state")).to_have_text("data_available")
    expect(page.locator(".card", has_text="Result").locator(".value")).to_have_text('"4 parts"')
    at_end = "log => log.scrollHeight - log.scrollTop - log.clientHeight < 24"
    assert page.get_by_label("Log").evaluate(at_end), "the log follows to its end"
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()


def test_a_job_that_failed_shows_its_traceback_and_is_run_again(system, client, browser, run):
    failed(client, run)
    page = browser.open(system, f"#/job/{run}")
    expect(page.locator(".problem")).to_contain_text(f"{run} stumbled")
    expect(page.get_by_label("Traceback")).to_contain_text("raise ValueError")
    expect(page.get_by_label("Log")).to_contain_text("attempt 1")
    with system.redis(1) as data:
        data.set(f"stage:mended:{run}", 1)
    page.get_by_role("button", name="Retry").click()
    expect(toast(page, "1 step runs again.")).to_be_visible()
    expect(page.locator(".head .state")).to_have_text("data_available")
    expect(page.locator(".card", has_text="Result").locator(".value")).to_have_text('"mended"')
    expect(page.get_by_label("Log")).to_contain_text("attempt 2")
    page.get_by_role("button", name="Attempt 1").click()
    expect(page.get_by_label("Log")).to_have_text("attempt 1\n")
    expect(page.get_by_role("button", name="Retry")).to_be_hidden()


def test_a_job_is_cancelled(system, client, browser, run):
    client.submit("stage.act", {"run": run, "parts": 1}, job_id=run)
    page = browser.open(system, f"#/job/{run}")
    expect(page.locator(".head .state")).to_have_text("processing")
    page.get_by_role("button", name="Cancel").click()
    expect(toast(page, "1 step is cancelled.")).to_be_visible()
    expect(page.locator(".head .state")).to_have_text("error")
    expect(page.locator(".problem")).to_contain_text("Cancelled")
    assert state_of(system, run) == "error"


def test_a_workflow_is_drawn_and_its_states_change_in_place(system, client, browser, run):
    flow = Workflow()
    first = flow.step("stage.act", {"run": run, "parts": 1}, name="first")
    sides = [flow.step("echo", after=first, name=name) for name in ("left", "right")]
    flow.step("echo", after=sides, name="last")
    client.workflow(flow, job_id=run)
    page = browser.open(system, f"#/job/{run}")
    nodes = page.locator(".graph .node")
    expect(nodes).to_have_count(4)
    expect(page.locator(".graph .edge")).to_have_count(4)
    expect(page.locator('.graph [data-state="processing"]')).to_have_count(1)
    expect(page.locator('.graph [data-state="standby"]')).to_have_count(3)
    nodes.first.evaluate("node => { window.kept = node }")
    signs = set(page.locator(".graph .sign").evaluate_all("all => all.map(each => each.getAttribute('d'))"))
    assert len(signs) == 2, "states differ by more than colour"
    drive(system, run, "go")
    expect(page.locator('.graph [data-state="data_available"]')).to_have_count(4)
    assert nodes.first.evaluate("node => node === window.kept")
    page.get_by_role("button", name=re.compile("^right, echo")).click()
    expect(page.locator(".stack h2").nth(0)).to_have_text("right → last")
    expect(page.locator(".card", has_text="Result of the whole job").locator(".value")).to_contain_text("1 parts")
    places = [node.bounding_box() for node in page.locator(".graph .face").all()]
    left = [round(each["x"]) for each in places]
    assert left[0] < left[1] == left[2] < left[3]
    assert places[1]["y"] + places[1]["height"] < places[2]["y"]


def test_a_large_workflow_is_folded(system, client, browser, run):
    flow = Workflow()
    root = flow.step("echo", 1, name="root")
    many = [flow.step("noop", after=root, name=f"part-{number}") for number in range(298)]
    flow.step("echo", after=many, name="end")
    client.workflow(flow, job_id=run).result(60)
    page = browser.open(system, f"#/job/{run}")
    expect(page.locator(".graph .node")).to_have_count(3)
    group = page.get_by_role("button", name="298 steps noop: data_available, 298 done of 298")
    group.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("table", name="Steps")).to_have_attribute("aria-rowcount", "299")
    page.get_by_role("button", name=re.compile("^root, echo")).click()
    expect(page.get_by_role("table", name="Steps")).to_have_attribute("aria-rowcount", "301")


# --- queues, workers, runners, timers, servers --------------------------------


def test_a_queue_is_paused_and_resumed(system, client, browser, run):
    client.submit("noop", queue=run, job_id=run)
    page = browser.open(system, "#/queues")
    line = row(page, run)
    expect(line).to_contain_text("not served")
    expect(line.locator("td").nth(2)).to_have_text("1")
    expect(line.locator("td").nth(3)).to_have_text(re.compile(r"\d"))
    line.get_by_role("button", name="Pause").click()
    expect(line).to_contain_text("paused")
    assert system.get(f"/queues/{run}").body["paused"] is True
    line.get_by_role("button", name="Resume").click()
    expect(line).to_contain_text("not served")
    assert system.get(f"/queues/{run}").body["paused"] is False
    client.cancel(run)


def test_workers_show_what_their_slots_run(system, client, browser, run):
    client.submit("stage.act", {"run": run, "parts": 2}, job_id=run)
    page = browser.open(system, "#/workers")
    expect(page.get_by_role("table", name="Workers").locator("tbody tr:not(.spacer)")).to_have_count(1)
    slots = page.get_by_role("table", name="Slots").locator("tbody tr:not(.spacer)")
    expect(slots).to_have_count(4)
    expect(slots.filter(has_text=run)).to_contain_text("stage.act")
    drive(system, run, "one")
    expect(slots.filter(has_text=run).get_by_role("progressbar")).to_have_attribute("aria-valuenow", "50")
    slots.filter(has_text=run).get_by_role("link").click()
    expect(page.locator("h1")).to_have_text(run)
    drive(system, run, "two")
    page.go_back()
    expect(slots.filter(has_text="idle")).to_have_count(4)


def test_a_runner_is_seen_and_stopped(system, client, browser, run):
    name = client.start_runner("exesys_test.ticks", 0.1, type="ticks", uuid=run)
    page = browser.open(system, "#/runners")
    line = row(page, name)
    expect(line).to_contain_text("running")
    line.get_by_role("button", name=name).click()
    expect(page.get_by_label("Log")).to_contain_text("tick 3")
    line.get_by_role("button", name="Stop").click()
    expect(toast(page, f"{name} is told to stop.")).to_be_visible()
    expect(line).to_contain_text("stopped")
    expect(line.get_by_role("button", name="Stop")).to_have_count(0)


def test_a_timer_shows_its_ticks_is_run_paused_and_resumed(system, browser):
    page = browser.open(system, "#/timers")
    line = row(page, "nightly")
    expect(line).to_contain_text("30 2 * * *")
    expect(line).to_contain_text(re.compile(r"in \d+ (s|min|h).*0[01]:30:00"))
    line.get_by_role("button", name="Run now").click()
    expect(toast(page, "nightly was run: job nightly.now-")).to_be_visible()
    line.get_by_role("button", name="Pause").click()
    expect(line).to_contain_text("paused")
    line.get_by_role("button", name="Resume").click()
    expect(line).to_contain_text("ticking")


def test_application_servers_are_shown(system, browser):
    page = browser.open(system, "#/apps")
    expect(row(page, "words")).to_contain_text("suggest")


# --- failed jobs ----------------------------------------------------------------


def test_failed_jobs_are_run_again_and_removed(system, client, browser, run):
    for part in ("a", "b"):
        failed(client, f"{run}-{part}")
    page = browser.open(system, "#/dead")
    expect(row(page, f"{run}-a")).to_contain_text(f"ValueError: {run}-a stumbled")
    with system.redis(1) as data:
        data.set(f"stage:mended:{run}-a", 1)
    row(page, f"{run}-a").get_by_role("button", name="Retry").click()
    expect(row(page, f"{run}-a")).to_have_count(0)
    until(lambda: state_of(system, f"{run}-a") == "data_available", "it ended well")
    row(page, f"{run}-b").get_by_role("button", name="Purge").click()
    expect(toast(page, f"{run}-b is removed.")).to_be_visible()
    expect(row(page, f"{run}-b")).to_have_count(0)
    assert system.get(f"/jobs/{run}-b").status == 404


def test_all_that_failed_of_a_function_is_run_again_or_removed(system, client, browser, run):
    failed(client, run)
    page = browser.open(system, "#/dead?cmd=stage.stumble")
    expect(row(page, run)).to_be_visible()
    page.get_by_role("button", name="Retry all").click()
    page.get_by_role("dialog").get_by_role("button", name="Leave it").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Retry all").click()
    page.get_by_role("dialog").get_by_role("button", name="Run again").click()
    expect(toast(page, "run again")).to_be_visible()
    until(lambda: system.get(f"/jobs/{run}").body["steps"][0]["attempt"] == 2, "it was run again")
    expect(row(page, run).locator("td").nth(3)).to_have_text("2")
    page.get_by_role("button", name="Purge all").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(toast(page, "removed")).to_be_visible()
    expect(row(page, run)).to_have_count(0)
    assert system.get(f"/jobs/{run}").status == 404


# --- sending --------------------------------------------------------------------


def test_a_command_is_sent_from_the_list_of_functions(system, browser, run):
    page = browser.open(system, "#/send")
    expect(page.locator('#functions option[value="add"]')).to_have_count(1)
    page.get_by_label("Function").fill("add")
    expect(page.locator("form p", has_text="Return the sum of a list of numbers.")).to_be_visible()
    page.get_by_label("Data, as JSON").fill("[1, 2")
    expect(page.locator(".say")).to_contain_text("That is no JSON")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_label("Data, as JSON")).to_be_focused()
    page.get_by_label("Data, as JSON").fill("[1, 2, 3]")
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("job_id").fill(run)
    page.get_by_label("priority").fill("9")
    page.get_by_role("button", name="Send").click()
    sent = page.locator(".card", has_text=run)
    expect(sent.locator(".state")).to_have_text("data_available")
    expect(sent.locator(".value")).to_have_text("6")
    page.get_by_role("link", name=run).click()
    expect(page.locator("h1")).to_have_text(run)


def test_what_rest_refuses_is_told_with_the_way_out(system, watch):
    watched = watch()
    page = watched.open(system, "#/send")
    page.get_by_label("Function").fill("ad")
    page.get_by_role("button", name="Send").click()
    told = page.locator(".toast.error")
    expect(told).to_contain_text(re.compile("no function is named `ad`", re.IGNORECASE))
    expect(told.locator(".fix")).to_contain_text("Did you mean `add`?")
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    watched.check("422")


def test_what_a_job_gave_is_never_read_as_html(system, client, browser, run):
    nasty = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    client.run("echo", {nasty: nasty}, job_id=run)
    page = browser.open(system, f"#/job/{run}")
    expect(page.locator(".card", has_text="Result").locator(".value")).to_contain_text(json.dumps(nasty))
    assert "owned" not in page.title()


def test_help_says_where_things_are(system, browser):
    page = browser.open(system, "#/help")
    expect(page.locator("main")).to_contain_text(f"-X POST {system.config.rest_url}/sys_cmd")
    expect(page.locator("main")).to_contain_text(str(system.home))
    page.goto(f"{system.config.web_url}/#/nowhere")
    expect(page.locator("h1")).to_have_text("There is no such page")
