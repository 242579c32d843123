"""How the command line shows things: values as JSON, lists as tables, the rest as sentences on stderr."""

from __future__ import annotations

import json
import sys
import threading
import zoneinfo
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from exesys.logs import readable

LEAST_FOLDED = 24


def show(value: Any) -> None:
    """Print a value as one line of JSON."""
    from exesys.http import to_json

    sys.stdout.write(to_json(value).decode())


def show_whole(value: Any) -> None:
    """Print something large as JSON: over several lines on a terminal, where a person reads it."""
    from exesys.http import to_json

    if sys.stdout.isatty():
        print(json.dumps(json.loads(to_json(value)), indent=2, ensure_ascii=False))
    else:
        show(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a header and rows: in columns on a terminal, with tabs between and a row a line elsewhere."""
    cells = [list(columns), *([" ".join(str(cell).split()) for cell in row] for row in rows)]
    if not sys.stdout.isatty():
        for row in cells:
            print("\t".join(row))
        return
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    if sum(widths[:-1]) + 2 * len(widths) + LEAST_FOLDED > console.width:
        # No room to fold the last column: the terminal breaks the lines. Folded in narrow
        # columns, names could be neither read nor copied.
        for row in cells:
            gaps = (" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
            print("  ".join(cell + gap for cell, gap in zip(row, gaps, strict=True)).rstrip())
        return
    shown = Table(box=None, pad_edge=False)
    for position, name in enumerate(cells[0], 1):
        shown.add_column(Text(name), no_wrap=position < len(widths), overflow="fold")
    for row in cells[1:]:
        shown.add_row(*map(Text, row))
    console.print(shown)


def line(*cells: str | tuple[str, str]) -> None:
    """Print a row that comes by itself, at once; a cell may have a style of rich, for a terminal."""
    texts = [(cell, "") if isinstance(cell, str) else cell for cell in cells]
    if not sys.stdout.isatty():
        print("\t".join(" ".join(text.split()) for text, _ in texts), flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console().print(Text("  ").join(Text(text, style) for text, style in texts), soft_wrap=True)


_PALETTE = ("cyan", "green", "magenta", "blue", "yellow", "bright_cyan", "bright_green", "bright_magenta")
_NAME_CHARS = 12


class Columns:
    """Prints lines of several programs as they come, from any thread, each line behind the name of its program.

    On a terminal each name has a colour of its own; `as_json`, each line is an object.
    """

    def __init__(self, as_json: bool = False) -> None:
        self._as_json = as_json
        self._colours: dict[str, str] = {}
        self._lock = threading.Lock()

    def __call__(self, program: str, text: str, style: str = "") -> None:
        """Print `text`, which may have several lines. `style` is rich's word for how it looks on a terminal."""
        with self._lock:
            for line in text.splitlines() or [""]:
                for shown in [line] if self._as_json else readable(line).splitlines() or [""]:
                    self._print(program, shown, style)

    def _print(self, program: str, line: str, style: str) -> None:
        if self._as_json:
            show({"program": program, "line": line})
        elif sys.stdout.isatty():
            from rich.console import Console
            from rich.text import Text

            colour = self._colours.setdefault(program, _PALETTE[len(self._colours) % len(_PALETTE)])
            shown = Text.assemble((f"{program:<{_NAME_CHARS}} │ ", colour), (line, style))
            Console().print(shown, soft_wrap=True)
        else:
            sys.stdout.write(f"{program:<{_NAME_CHARS}} | {line}\n")
        sys.stdout.flush()


def note(text: str) -> None:
    """Tell a person something that is no part of the output."""
    print(f"exesys: {text}", file=sys.stderr)


def note_broken(modules: dict[str, str]) -> None:
    """Name the modules that cannot be loaded, each with the last line of its traceback."""
    for name, text in modules.items():
        print(f"broken: {name}: {text.strip().splitlines()[-1]}", file=sys.stderr)


def when(ms: int | None, zone: str = "") -> str:
    """Write a moment as people do, in a time zone, else in this machine's; "" when there is none.

    Its offset from UTC stands behind it, Z for none.
    """
    if not ms:
        return ""
    moment = datetime.fromtimestamp(ms / 1000, zoneinfo.ZoneInfo(zone) if zone else UTC)
    text = (moment if zone else moment.astimezone()).isoformat(" ", "seconds")
    return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text


def names(to: str | Sequence[str]) -> str:
    """Write a step's target as it is given on the command line."""
    return to if isinstance(to, str) else ",".join(to)
