"""Runs what the pages show: each block of shell and of Python, in order, and compares what is shown to be printed.

Comments in the source of a page say what cannot be seen from a block. Before it stand:

    <!-- not run: REASON -->        it is left out, and the reason is told
    <!-- first: COMMAND -->         run before it: what this page needs and does not show
    <!-- exits with N -->           each of its commands ends with this code instead of 0
    <!-- prints -->                 it is what the last command printed
    <!-- prints, sent again -->     the same, once that command has been given again a few times

In what is printed, `…` stands for anything, and ids and moments may be others.
A block of Python that begins with the name of a file, `# modules/shop.py`, is
written there, any other is run. A block in another language, or in none, is for reading.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from harness import CHECKOUT, FORKS, short_directory

FENCE = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"^<!-- (not run|first|exits with|prints(?:, sent again)?):? ?(.*?) ?-->$", re.MULTILINE)
COMMAND_S = 60.0
AGAIN_S = 10.0
# What is another each time: how it looks, and what stands for it.
MASKS = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "ID"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?"), "MOMENT"),
    (re.compile(r'("\w+_ms":)\d+'), r"\1MOMENT"),
)


class Block(NamedTuple):
    """A block of a page, and what its marks say."""

    page: str
    line: int
    language: str
    text: str
    not_run: str
    first: list[str]
    code: int
    prints: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


class Done(NamedTuple):
    command: str
    code: int
    out: str
    err: str


def blocks(page: str) -> list[Block]:
    """Read a page. A mark that is none of ours is for people who read the source."""
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        marks = MARK.findall(match[1])
        told = dict(marks)
        found.append(
            Block(
                page,
                text.count("\n", 0, match.start(2)) + 1,
                match[2],
                match[3],
                told.get("not run", ""),
                [rest for mark, rest in marks if mark == "first"],
                int(told.get("exits with", 0)),
                next((mark for mark, _ in marks if mark.startswith("prints")), ""),
            )
        )
    return found


def commands(block: str) -> Iterator[str]:
    """Split a block of shell into commands; one goes on by `\\`, in a here-document, or below a `do`."""
    lines = iter(block.splitlines())
    for line in lines:
        whole = [line]
        here = re.search(r"<<'?(\w+)'?$", line)
        while (here and whole[-1] != here[1]) or whole[-1].endswith("\\"):
            whole.append(next(lines))
        if line.strip() and not line.startswith("#"):
            yield "\n".join(whole)


def masked(text: str) -> str:
    for pattern, name in MASKS:
        text = pattern.sub(name, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def fits(shown: str, printed: str) -> bool:
    """Tell whether what was printed is what the page shows."""
    parts = [re.escape(part) for part in masked(shown).split("…")]
    return re.fullmatch(".*?".join(parts), masked(printed), re.DOTALL) is not None


class Clone:
    """A directory like a fresh clone, with its own home and ports, and the packages that are installed here."""

    def __init__(self, rest_port: int, web_port: int, environ: dict[str, str]) -> None:
        self.root = short_directory() / "exesys"
        self.ports = {"127.0.0.1:5000": f"127.0.0.1:{rest_port}", "127.0.0.1:5001": f"127.0.0.1:{web_port}"}
        self.root.mkdir()
        for name in ("bin", "docs", "benchmarks"):
            shutil.copytree(CHECKOUT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (*CHECKOUT.glob("*.md"), CHECKOUT / "setup.py"):
            shutil.copy(path, self.root)
        (self.root / "exesys").symlink_to(CHECKOUT / "exesys")
        self._environment()
        self.restore()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("EXESYS_")}
        # Compiled files of ExeSys are kept here as elsewhere: commands are many.
        clean.pop("PYTHONDONTWRITEBYTECODE", None)
        self.environ = {
            **clean,
            "PYTHONPATH": str(CHECKOUT),
            "EXESYS_REST_PORT": str(rest_port),
            "EXESYS_WEB_PORT": str(web_port),
            "PATH": f"{Path(__file__).parent / 'tools'}:{os.environ['PATH']}",
            "EXESYS_TEST_PYTHON": sys.executable,
            **environ,
        }

    def _environment(self) -> None:
        """Make a .venv that bin/start_exe_sys.sh finds good, of the packages that are installed here."""
        venv = self.root / ".venv"
        (venv / "bin").mkdir(parents=True)
        for path in Path(sys.executable).parent.iterdir():
            if not path.name.startswith("python"):
                (venv / "bin" / path.name).symlink_to(path)
        (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (venv / "bin" / "python").chmod(0o755)
        script = f"root='{self.root}' venv='{venv}'; . bin/_venv.sh; group_stamp"
        stamp = subprocess.run(["sh", "-c", script], cwd=self.root, capture_output=True, text=True, check=True).stdout
        (venv / "stamp-start").write_text(stamp)

    def restore(self) -> set[str]:
        """Put modules and settings back as a clone has them; return the names of the directories that were others."""
        changed = set()
        for name in ("modules", "etc"):
            there, ours = self.root / name, CHECKOUT / name
            if not there.exists() or _contents(there) != _contents(ours):
                shutil.rmtree(there, ignore_errors=True)
                shutil.copytree(ours, there, ignore=shutil.ignore_patterns("__pycache__"))
                changed.add(name)
        return changed

    def sh(self, command: str) -> Done:
        """Run a command as a person types it in the clone, but for the ports."""
        for shown, real in self.ports.items():
            command = command.replace(shown, real)
        if words := _plain(command):
            code, out, err = FORKS.run(words, self.root, self.environ, None, COMMAND_S)
            return Done(command, code, self._shown(out), self._shown(err))
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.root,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        return Done(command, done.returncode, self._shown(done.stdout), self._shown(done.stderr))

    def _shown(self, text: str) -> str:
        for shown, real in self.ports.items():
            text = text.replace(real, shown)
        return text

    def remove(self) -> None:
        shutil.rmtree(self.root.parent, ignore_errors=True)


def _plain(command: str) -> list[str]:
    """Return what follows `bin/exesys` in a command that needs no shell, which is forked many times as fast."""
    if not command.startswith("bin/exesys ") or re.search(r"[|<>&$`\\]", re.sub(r"'[^']*'", "", command)):
        return []
    return shlex.split(command, comments=True)[1:]


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


class Account(NamedTuple):
    """What became of a page's blocks: how many ran, and which did not, each with its reason."""

    run: int
    compared: int
    left_out: list[str]


def run(clone: Clone, page: str) -> Account:
    """Run a page from top to bottom. Fails at the first command that does what the page does not say."""
    last: Done | None = None
    ran = compared = 0
    left_out = []
    for block in blocks(page):
        if block.prints:
            assert last is not None, f"{block}: nothing was run that could have printed this"
            if block.prints != "prints":
                last = _again(clone, last, block.text)
            assert fits(block.text, last.out), f"{block} shows\n{block.text}\nand {last.command}\nprinted\n{last.out}"
            compared += 1
        elif block.not_run:
            left_out.append(f"{block}: {block.not_run}")
        elif block.language in ("sh", "python"):
            for command in block.first:
                _expect(block, clone.sh(command), 0)
            last = _run_block(clone, block)
            ran += 1
    return Account(ran, compared, left_out)


def _again(clone: Clone, last: Done, shown: str) -> Done:
    deadline = time.monotonic() + AGAIN_S
    while not fits(shown, (last := clone.sh(last.command)).out) and time.monotonic() < deadline:
        continue
    return last


def _run_block(clone: Clone, block: Block) -> Done | None:
    if block.language == "python":
        if named := re.match(r"# (\w+/\w+\.py)\n", block.text):
            path = clone.root / named[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.text)
            return None
        (clone.root / "example.py").write_text(block.text)
        return _expect(block, clone.sh(".venv/bin/python example.py"), block.code)
    last = None
    for command in commands(block.text):
        last = _expect(block, clone.sh(command), block.code)
    return last


def _expect(block: Block, done: Done, code: int) -> Done:
    refused = code == 0 and "curl" in done.command and done.out.startswith('{"error":')
    assert (done.code, refused) == (code, False), (
        f"{block}: {done.command}\nended with {done.code}\n--- it printed\n{done.out}\n--- and\n{done.err}"
    )
    return done


def all_pages() -> Sequence[str]:
    """The README first, as a newcomer reads; then the others."""
    docs = sorted(str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "docs").glob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *docs]
