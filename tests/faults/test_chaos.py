"""The proof, in small, of which `exesys chaos --minutes 10` is the whole; and that it finds bugs that were planted."""

import os

from drills import run

MINUTES = os.environ.get("EXESYS_CHAOS_MINUTES", "0.7")
LEAST_RATE = 200


def test_all_that_is_accepted_is_accounted_for_whatever_is_struck(seed, tell):
    drill = run(["--minutes", MINUTES, "--seed", str(seed)])
    assert drill.code == 0, "\n".join(drill.account["faults"]) + drill.told
    assert drill.account["exact"]
    assert drill.account["rate"] >= LEAST_RATE
    assert len(drill.account["blows"]) > float(MINUTES) * 60 / 15
    kinds = {"plain", "workflow", "delayed", "keyed", "retried", "failing", "timer", "runner"}
    rows = drill.account["account"]
    assert kinds <= set(rows)
    assert all(row["accepted"] and not row["wrong"] for row in rows.values())
    tell(f"chaos: {drill.account['accepted']} commands, {drill.account['rate']} a second, exact")


def test_it_finds_that_the_attempt_is_not_checked(broken, tell):
    """What a late finisher reports has been given to another one meanwhile."""
    package = broken("store/report.lua", "if fields[1] == attempt then", "if fields[1] then")
    drill = run(["--minutes", "0.15", "--only", "late-results"], package)
    assert drill.code == 1, drill.told
    assert any("its result is -1" in fault for fault in drill.account["faults"]), drill.account["faults"][:5]
    tell(f"attempt not checked: {len(drill.account['faults'])} faults, such as: {drill.account['faults'][0]}")


def test_it_finds_that_results_are_not_kept_until_they_are_acknowledged(broken, tell):
    """What is on its way to a router that is killed, or in a connection that breaks, is gone with it."""
    package = broken("bus/session.py", "self._unacked[attempt] = Unacked(report, now)", "pass")
    only = ["--only", "kill-router", "--only", "reset-connections-router"]
    drill = run(["--minutes", "0.3", "--seed", "1", *only], package)
    assert drill.code == 1, drill.told
    assert any("ran twice" in fault or "it ran again" in fault for fault in drill.account["faults"]), drill.told
    tell(f"results not kept: {len(drill.account['faults'])} faults, such as: {drill.account['faults'][0]}")
