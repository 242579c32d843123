"""Every command and every piece of Python in the README and the pages does what they say. `pages` says how."""

import pages
import pytest
from harness import free_ports


@pytest.fixture(scope="module")
def clone(services):
    """A clone that was started by the README's first command."""
    clone = pages.Clone(*free_ports(2), {})
    try:
        started = clone.sh("bin/start_exe_sys.sh")
        assert started.code == 0, started
        assert "one job was run" in started.out
        yield clone
    finally:
        clone.sh("bin/exesys down")
        clone.remove()


@pytest.fixture(scope="module")
def accounts(tell):
    found = {}
    yield found
    left_out = [reason for account in found.values() for reason in account.left_out]
    ran, compared = (sum(column) for column in list(zip(*found.values(), strict=True))[:2]) if found else (0, 0)
    tell(f"pages: {ran} blocks of {len(found)} pages were run, {compared} outputs compared, {len(left_out)} not run:")
    for reason in left_out:
        tell(f"  {reason}")


@pytest.fixture
def fresh(clone):
    """The modules, the settings and the system as a page finds them."""
    changed = clone.restore()
    if "etc" in changed:
        assert clone.sh("bin/exesys restart").code == 0
    elif clone.sh("bin/exesys status").code:
        assert clone.sh("bin/exesys up").code == 0
    elif "modules" in changed:
        assert clone.sh("bin/exesys reload").code == 0
    return clone


@pytest.mark.parametrize("page", [page for page in pages.all_pages() if any(b.language for b in pages.blocks(page))])
def test_what_a_page_shows_is_so(fresh, page, accounts):
    accounts[page] = pages.run(fresh, page)


def test_a_new_function_is_five_commands_away():
    """From the clone: start, new-module, reload, curl."""
    given = [
        command
        for block in pages.blocks("README.md")
        if block.language == "sh" and not block.not_run
        for command in pages.commands(block.text)
    ]
    assert [command.split()[:2] for command in given[:4]] == [
        ["bin/start_exe_sys.sh"],
        ["bin/exesys", "new-module"],
        ["bin/exesys", "reload"],
        ["curl", "-H"],
    ]
    workflow = next(block for block in pages.blocks("README.md") if block.language == "python")
    assert len(workflow.text.strip().splitlines()) <= 10


def test_outputs_are_compared_but_for_ids_and_moments():
    shown = '{"job_id":"16fd2706-8baf-433b-82eb-8c7fada847da","at_ms":1,"result":…}\n'
    assert pages.fits(shown, '{"job_id":"00000000-8baf-433b-82eb-8c7fada847da","at_ms":17,"result":[1,2]}')
    assert not pages.fits(shown, '{"job_id":"x","at_ms":17,"result":1}')
    assert not pages.fits("6\n7\n", "6\n8\n")
