"""What the command line does with jobs that failed: list, show, retry, remove."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from exesys import output, reach
from exesys.config import Config
from exesys.errors import BadCommand, NotFound, nearest
from exesys.states import State
from exesys.usage import PROGRAM

if TYPE_CHECKING:
    from exesys.store.reader import Reader

MOST_NAMED = 5


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
        output.note(_nothing(reach.reader(config), given))
    elif following:
        output.note(f"there are more: {PROGRAM} dead list --limit {given.limit * 2}")
    return 0


def show(config: Config, given: argparse.Namespace) -> int:
    from exesys import views

    reader = reach.reader(config, given.job_id)
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
        elif not jobs:
            output.note(_nothing(reader, given))
    return 0


def _nothing(reader: Reader, given: argparse.Namespace) -> str:
    """Say why nothing is found: of --cmd and --older-s, which is it that nothing fits?"""
    from exesys import dead

    known = dead.cmds(reader)
    if not known:
        return "nothing has failed."
    if given.cmd is not None and given.cmd not in known:
        close = nearest(given.cmd, sorted(known))
        some = ", ".join(sorted(known)[:MOST_NAMED]) + (", …" if len(known) > MOST_NAMED else "")
        meant = f"Did you mean `{close}`?" if close else f"Those that have: {some}."
        return f"no job that failed has the cmd `{given.cmd}`. {meant}"
    return f"nothing {'such ' if given.cmd is None else f'of `{given.cmd}` '}has failed so long ago."


def _until_ms(given: argparse.Namespace) -> int:
    return time.time_ns() // 1_000_000 - int((given.older_s or 0) * 1000)
