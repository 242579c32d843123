"""What the command line does with jobs that failed: list, show, retry, remove."""

from __future__ import annotations

import argparse
import time

from exesys import output, reach
from exesys.config import Config
from exesys.errors import BadCommand, NotFound
from exesys.states import State
from exesys.usage import PROGRAM


def list_(config: Config, given: argparse.Namespace) -> int:
    from exesys import dead, views

    found, following = dead.listed(reach.reader(config), given.limit, str(_until_ms(given)), given.cmd)
    told = [views.dead(ms, step) for ms, step in found]
    if given.json:
        output.show({"dead": told, "next": following or None})
        return 0
    rows = [
        [
            output.when(each["failed_ms"]),
            each["job_id"],
            f"{each['from']} > {output.names(each['to'])}",
            each["cmd"],
            each["attempts"],
            f"{each['error']['type']}: {each['error']['message']}",
        ]
        for each in told
    ]
    output.table(("failed", "job_id", "step", "cmd", "attempts", "error"), rows)
    if not rows:
        output.note("nothing has failed." if given.cmd is None and not given.older_s else "nothing such has failed.")
    elif following:
        output.note(f"there are more: {PROGRAM} dead list --limit {given.limit * 2}")
    return 0


def show(config: Config, given: argparse.Namespace) -> int:
    from exesys import views

    reader = reach.reader(config)
    steps = reach.steps_of(reader, given.job_id)
    if not any(step.state is State.error for step in steps):
        raise NotFound(f"job {given.job_id} has not failed.", fix=f"See `{PROGRAM} jobs {given.job_id}`.")
    told = views.job(given.job_id, steps, whole=True, callbacks=reader.callbacks(steps))
    output.show(told) if given.json else output.show_whole(told)
    return 0


def change(config: Config, given: argparse.Namespace) -> int:
    """Retry or purge one job, or all that fit, in bounded steps until there is none left."""
    done = {"retry": "retried", "purge": "purged"}[given.what]
    if bool(given.job_id) == given.all:
        raise BadCommand("either JOB_ID or --all is needed.", fix=f"For example: {PROGRAM} dead {given.what} --all")
    if given.job_id and (given.cmd is not None or given.older_s is not None):
        raise BadCommand(
            "--cmd and --older-s go with --all.", fix=f"See `{PROGRAM} dead list` for what would be meant."
        )
    with reach.connect(config) as client:
        one = client.retry if given.what == "retry" else client.purge
        if given.job_id:
            steps = one(given.job_id)
            if given.json:
                output.show({"job_id": given.job_id, done: steps})
            elif steps:
                print(f"{steps} step{'s' if steps > 1 else ''} of job {given.job_id} {done}.")
            else:
                print(f"Nothing to do: job {given.job_id} had not failed.")
            return 0
        from exesys import dead

        reader, until_ms = reach.reader(config), _until_ms(given)
        jobs = steps = skipped = passed = 0
        while True:
            swept = dead.sweep(reader, one, until_ms, given.cmd, passed)
            jobs, steps, skipped = jobs + swept.jobs, steps + swept.steps, skipped + swept.skipped
            if not swept.following:
                break
            passed = int(swept.following.partition("-")[2])
            if not given.json:
                output.note(f"{jobs:,} jobs so far")
    if given.json:
        output.show({done: jobs, "steps": steps, "skipped": skipped})
    else:
        print(f"{jobs} job{'' if jobs == 1 else 's'} {done}.")
        if skipped:
            output.note(f"{skipped} could not be {done}: under way again, or gone.")
    return 0


def _until_ms(given: argparse.Namespace) -> int:
    return time.time_ns() // 1_000_000 - int((given.older_s or 0) * 1000)
