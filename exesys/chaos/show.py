"""`bin/exesys chaos`: runs a drill, and shows the account."""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
from collections import defaultdict
from types import FrameType
from typing import Any

from exesys import output
from exesys.chaos import plan
from exesys.chaos.blows import may_reset
from exesys.chaos.drill import READY_S, Outcome, Struck, drill
from exesys.config import Config

SHOWN = 20  # faults are told one by one up to so many
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COLUMNS = ("accepted", "ended well", "ended in error, as planned", "wrong", "ran again")


def chaos(config: Config, given: argparse.Namespace) -> int:
    """Run it. The system that these settings are of is not touched: the drill makes one of its own."""
    for signum in ENDING:
        signal.signal(signum, _interrupt)
    seed = secrets.randbelow(1 << 31) if given.seed is None else given.seed
    deck = plan.deck(given.only or ())
    if not may_reset():
        deck = [each for each in deck if each[0] != plan.RESET]
        output.note(f"the kernel lets you not {plan.RESET} of other processes: that is left out.")
    kinds = ", ".join(dict.fromkeys(kind for kind, _ in deck))
    output.note(f"seed {seed}, {given.minutes:g} min, {given.rate:g} commands a second; blows: {kinds}.")
    outcome = drill(given.minutes * 60, seed, given.rate, deck, lambda text: print(text, file=sys.stderr), given.keep)
    if given.json:
        output.show(
            {
                "exact": outcome.account.exact,
                "seed": seed,
                "seconds": round(outcome.seconds, 1),
                "accepted": outcome.accepted,
                "rate": round(outcome.rate, 1),
                "account": {
                    kind: {column: row[column] for column in COLUMNS} for kind, row in outcome.account.rows.items()
                },
                "blows": [
                    {"blow": str(each.blow), "struck": each.what, "back_s": each.back_s} for each in outcome.struck
                ],
                "faults": outcome.account.faults,
            }
        )
    else:
        _show(outcome, seed)
    return 0 if outcome.account.exact else 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End the private system and remove it, and let nothing interrupt that."""
    for signum in ENDING:
        signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt


def _show(outcome: Outcome, seed: int) -> None:
    output.table(("blow", "times", "all there again after, at most"), _blows(outcome))
    print()
    rows = [[kind, *(row[column] for column in COLUMNS)] for kind, row in outcome.account.rows.items()]
    output.table(("kind", *COLUMNS), rows)
    print()
    faults = outcome.account.faults
    for fault in faults[:SHOWN]:
        print(f"WRONG {fault}")
    if len(faults) > SHOWN:
        print(f"… and {len(faults) - SHOWN} more; --json has all")
    told = ", ".join(f"{answer} {count}" for answer, count in outcome.answers.most_common())
    print(
        f"{outcome.accepted} commands were accepted in {outcome.seconds:.0f} s, {outcome.rate:.0f} a second ({told})."
    )
    if faults:
        print(f"The account is NOT exact: {len(faults)} faults. The same blows again: --seed {seed}")
    else:
        print("The account is exact: each accepted command has one end, each result is right, nothing is left over.")


def _blows(outcome: Outcome) -> list[list[Any]]:
    found: dict[str, list[Struck]] = defaultdict(list)
    for struck in outcome.struck:
        found[str(struck.blow)].append(struck)
    longest = {name: max(READY_S if each.back_s is None else each.back_s for each in found[name]) for name in found}
    return [[name, len(found[name]), f"{longest[name]:.1f} s"] for name in sorted(found)]
