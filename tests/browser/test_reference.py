"""The page of the REST interface: what it shows of each endpoint, and asking from it."""

from __future__ import annotations

import json

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect


@pytest.fixture
def reference(system, browser):
    """Opens the page at a place."""

    def open_at(place=""):
        page = browser.context.new_page()
        page.goto(f"{system.config.web_url}/api.html{place}")
        page.locator("details.asked").first.wait_for()
        return page

    return open_at


def test_it_has_each_endpoint_and_each_schema(system, reference):
    document = system.get("/openapi.json").body
    page = reference()
    names = {told["operationId"] for item in document["paths"].values() for told in item.values()}
    names |= {f"schema-{name}" for name in document["components"]["schemas"]}
    assert {box.get_attribute("id") for box in page.locator("details.asked").all()} == names


def test_an_endpoint_is_shown_and_asked(system, client, reference):
    handle = client.submit("echo", {"a": ["<b>&"]})
    handle.result(20)
    page = reference("#get_jobs_job_id")
    box = page.locator("#get_jobs_job_id")
    expect(box).to_contain_text("It needs the role read.")
    box.get_by_label("job_id").fill(handle.job_id)
    expect(box.locator(".curl")).to_have_text(f"curl '{system.config.rest_url}/jobs/{handle.job_id}'")
    box.get_by_role("button", name="Try it").click()
    expect(box.get_by_role("status")).to_contain_text("200, ")
    assert json.loads(box.locator("pre").last.inner_text())["EOJ"] == {"a": ["<b>&"]}
    box.get_by_role("link", name="Job", exact=True).click()
    expect(page.locator("#schema-Job pre")).to_contain_text("steps: [Step …]")


def test_what_is_refused_is_told(watch, system):
    watched = watch()
    page = watched.context.new_page()
    page.goto(f"{system.config.web_url}/api.html#get_jobs")
    box = page.locator("#get_jobs")
    box.get_by_label("limit").fill("0")
    box.get_by_role("button", name="Try it").click()
    expect(box.get_by_role("status")).to_contain_text("400, ")
    expect(box.locator("pre").last).to_contain_text("Give a whole number, 1 to 1,000.")
    watched.check("400 (Bad Request)")


def test_what_changes_something_has_a_command_and_no_button(reference):
    box = reference("#post_sys_cmd").locator("#post_sys_cmd")
    expect(box.locator(".curl")).to_contain_text("curl -X POST -H 'Content-Type: application/json' -d '{\"cmd\":")
    expect(box.get_by_role("button")).to_have_count(0)


def test_a_stream_shows_how_it_begins(client, reference):
    handle = client.submit("echo", 1)
    handle.result(20)
    box = reference("#get_jobs_job_id_events").locator("#get_jobs_job_id_events")
    box.get_by_label("job_id").fill(handle.job_id)
    box.get_by_role("button", name="Try it").click()
    expect(box.locator("pre").last).to_contain_text("event: end")
    expect(box.locator(".curl")).to_contain_text("curl -N ")


def test_finding(reference):
    page = reference()
    page.get_by_label("Find").fill("/queues/{name}/pause")
    expect(page.locator("details.asked:visible")).to_have_count(1)
    expect(page.locator("section:visible")).to_have_count(1)


def test_with_tokens_it_asks_for_one(make_system, watch):
    system = make_system()
    token = system.exesys("keys", "new", "read", "reader", "--json").json["token"]
    watched = watch()
    page = watched.context.new_page()
    page.goto(f"{system.config.web_url}/api.html")
    expect(page.get_by_role("alert")).to_contain_text("Give a token above.")
    page.get_by_label("Token").fill(token)
    page.get_by_label("Token").press("Tab")
    box = page.locator("#get_workers")
    box.locator("summary").click()
    expect(box.locator(".curl")).to_contain_text('-H "Authorization: Bearer $TOKEN"')
    assert token not in page.content()
    box.get_by_role("button", name="Try it").click()
    expect(box.get_by_role("status")).to_contain_text("200, ")
    watched.check("401 (Unauthorized)")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_fault(system, watch, theme):
    page = watch(color_scheme=theme, bypass_csp=True).context.new_page()  # for axe, which is a script from elsewhere
    page.goto(f"{system.config.web_url}/api.html#get_jobs")
    page.locator("#get_jobs .curl").wait_for()
    faults = [each for each in Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"]) for each in faults] == []
