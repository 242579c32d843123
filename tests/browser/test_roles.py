"""What a token may do, the dashboard offers; what it may not, it does not."""

import pytest
from playwright.sync_api import expect

from exesys import JobError

DEEDS = {  # page -> buttons, with the role that each needs
    "#/queues": [("Pause", "admin")],
    "#/runners": [("Stop", "submit")],
    "#/timers": [("Run now", "submit"), ("Pause", "admin")],
    "#/dead": [("Retry", "submit"), ("Purge", "admin"), ("Retry all", "admin"), ("Purge all", "admin")],
    "#/job/bad": [("Retry", "submit")],
    "#/job/waits": [("Cancel", "submit")],
}
ROLES = ("read", "submit", "admin")


@pytest.fixture(scope="module")
def guarded(chromium, make_system):
    """A system with a token of each role, and one of each thing that something can be done with."""
    system = make_system(ini="[timer:nightly]\ncmd = echo\ncron = 30 2 * * *\n")
    with system.client() as client:
        client.submit("noop", queue="nobody", job_id="waits").accepted(10)
        client.start_runner("exesys_test.ticks", 1, type="ticks", uuid="a")
        with pytest.raises(JobError):
            client.run("fail", "on purpose", job_id="bad", timeout=10)
    return system, {role: system.exesys("keys", "new", role, role, "--json").json["token"] for role in ROLES}


def enter(watched, system, token, place="#/"):
    """Open a page, and give the token that is asked for."""
    page = watched.context.new_page()
    page.goto(f"{system.config.web_url}/{place}")
    page.get_by_label("Token", exact=True).fill(token)
    page.get_by_role("button", name="Go on").click()
    page.locator("#link[data-state=live]").wait_for()
    return page


@pytest.mark.parametrize("role", ROLES)
def test_each_role_is_offered_what_it_may_do(guarded, watch, role):
    system, tokens = guarded
    watched = watch()
    page = enter(watched, system, tokens[role])
    expect(page.locator("#who")).to_contain_text(f"{role} ({role})")
    assert page.get_by_role("link", name="Send").is_visible() == (role != "read")
    for place, buttons in DEEDS.items():
        page.goto(f"{system.config.web_url}/{place}")
        rows = page.locator("main tbody tr:not(.spacer)") if "job" not in place else page.locator(".facts dd")
        expect(rows.first).to_be_visible()
        for name, needed in buttons:
            found = page.get_by_role("button", name=name, exact=True)
            if ROLES.index(role) >= ROLES.index(needed):
                expect(found.first).to_be_visible()
            else:
                expect(found).to_have_count(0)
    watched.check("401")


def test_a_wrong_token_is_asked_for_again_and_a_good_one_is_kept_in_the_tab(guarded, watch):
    system, tokens = guarded
    watched = watch()
    page = watched.context.new_page()
    page.goto(f"{system.config.web_url}/#/jobs")
    expect(page.get_by_role("dialog")).to_contain_text("this needs a token, and none was sent")
    page.get_by_label("Token", exact=True).fill("exs_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("is not known here")
    page.get_by_label("Token", exact=True).fill(tokens["read"])
    page.keyboard.press("Enter")
    expect(page.locator("main tbody").get_by_role("link", name="bad", exact=True)).to_be_visible()
    page.reload()
    expect(page.locator("main tbody").get_by_role("link", name="bad", exact=True)).to_be_visible()
    assert page.evaluate("Object.keys(localStorage)") == []
    page.get_by_role("button", name="Forget the token").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate("Object.keys(sessionStorage)") == []
    other = watched.context.new_page()  # another tab has to ask for itself
    other.goto(page.url)
    expect(other.get_by_role("dialog")).to_be_visible()
    watched.check("401")
