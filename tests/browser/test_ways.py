"""Ways to use the dashboard: by keyboard, on a phone, in the dark, and while the server comes and goes."""

import os
import signal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

PLACES = ["#/", "#/jobs", "#/send", "#/dead", "#/queues", "#/workers", "#/runners", "#/timers", "#/apps", "#/help"]
NARROW_PX = 60
PHONE = {"width": 360, "height": 740}
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def places(system, client):
    """All pages, with something on each."""
    client.run("echo", {"a": [1, 2]}, job_id="shown")
    return [*PLACES, "#/job/shown"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_fault(system, places, watch, tell, theme):
    watched = watch(color_scheme=theme, bypass_csp=True)  # for axe, which is a script from elsewhere
    page = watched.open(system)
    faults = []
    for place in places:
        page.goto(f"{system.config.web_url}/{place}")
        expect(page.locator("h1")).to_be_visible()
        page.locator("main :is(td, .card, .empty):visible").first.wait_for()
        found = Axe().run(page).response["violations"]
        faults += [f"{place}: {each['id']} {each['nodes'][0]['html']}" for each in found if each["impact"] in SERIOUS]
    tell(f"axe-core, {theme}: {len(places)} pages of the dashboard, {len(faults)} serious faults")
    assert faults == []


def test_everything_fits_on_a_phone(system, places, watch):
    watched = watch()
    watched.context.set_default_timeout(15_000)
    page = watched.open(system)
    page.set_viewport_size(PHONE)
    for place in places:
        page.goto(f"{system.config.web_url}/{place}")
        expect(page.locator("h1")).to_be_visible()
        page.locator("main :is(td, .card, .empty):visible").first.wait_for()
        wide = page.evaluate(
            "Math.max(document.documentElement.scrollWidth, document.querySelector('main').scrollWidth)"
        )
        assert wide <= PHONE["width"], place
    watched.check()


def test_the_theme_is_chosen_and_kept(system, browser):
    page = browser.open(system)
    back = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(back)
    page.get_by_role("button", name="Theme: system").click()
    assert page.evaluate(back) == light
    page.get_by_role("button", name="Theme: light").click()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(back) != light
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()


def test_a_command_is_sent_found_and_opened_by_the_keyboard_alone(system, browser):
    page = browser.open(system)
    keys = page.keyboard
    for key in ("g", "s"):
        keys.press(key)
    page.get_by_label("Function").wait_for()
    for _ in range(30):
        if page.get_by_label("Function").evaluate("field => field === document.activeElement"):
            break
        keys.press("Tab")
    keys.type("echo")
    keys.press("Escape")
    keys.press("Tab")
    keys.type('"typed"')
    for _ in range(5):
        keys.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Send":
            break
    keys.press("Enter")
    expect(page.locator(".card .value")).to_have_text('"typed"')
    job_id = page.locator(".card h2 a").text_content()
    page.locator("#content").evaluate("main => main.focus()")
    for key in ("g", "j"):
        keys.press(key)
    expect(page.locator("h1")).to_have_text("Jobs")
    keys.press("/")
    expect(page.get_by_label("Search by id")).to_be_focused()
    keys.press("Escape")
    for _ in range(20):
        if page.evaluate("document.activeElement.className") == "table":
            break
        keys.press("Tab")
    keys.press("ArrowDown")
    expect(page.locator("tr.current")).to_contain_text(job_id)
    keys.press("Enter")
    expect(page.locator("h1")).to_have_text(job_id)


def test_a_server_that_goes_and_comes_back_is_told_and_followed_again(system, client, watch):
    watched = watch()
    page = watched.open(system, "#/jobs")
    rest = system.pids()["rest"]
    os.kill(rest, signal.SIGKILL)
    page.locator("#link[data-state=away]").wait_for()
    expect(page.locator(".toast.error")).to_contain_text("does not answer")
    expect(page.locator(".toast", has_text="Connected again.")).to_be_visible()
    expect(page.locator(".toast.error")).to_have_count(0)
    page.locator("#link[data-state=live]").wait_for()
    client.run("echo", 1, job_id="after-the-fall")
    expect(page.locator("main tbody tr", has_text="after-the-fall")).to_be_visible()
    watched.check("Failed to load resource", "ERR_")


def test_a_page_out_of_sight_holds_no_stream_and_misses_nothing(system, client, browser):
    page = browser.open(system, "#/jobs")
    client.run("echo", 1, job_id="before-it-hid")
    expect(page.locator("main tbody tr", has_text="before-it-hid")).to_contain_text("data_available")
    hide = "(hidden) => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    with page.expect_event("requestfailed", lambda request: "/events" in request.url):
        page.evaluate(hide, True)
    client.run("echo", 1, job_id="while-it-hid")
    with page.expect_request(lambda request: "/events" in request.url) as asked:
        page.evaluate(hide, False)
    assert asked.value.headers["last-event-id"]
    expect(page.locator("main tbody tr", has_text="while-it-hid")).to_contain_text("data_available")
    expect(page.locator(".toast")).to_have_count(0)
