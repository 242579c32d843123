"""`bin/exesys demo`: index a directory of texts with the workflow of `modules/text.py`, and search it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from exesys.bus.client import Client
from exesys.config import Config
from exesys.errors import BadCommand
from exesys.flow import Workflow

LICENCES = Path("/usr/share/common-licenses")
INDEX = "demo"
FILES = 5  # in a part
PATIENCE_S = 120.0


def run(config: Config, client: Client, path: str | None, query: str, show: Callable[[Any], None] | None) -> int:
    """Index and search over the bus. Raises JobError when a step fails (without MongoDB, say)."""
    directory = Path(path).absolute() if path else LICENCES if LICENCES.is_dir() else config.root / "docs"
    if not directory.is_dir():
        raise BadCommand(f"{directory} is no directory.", fix="Name a directory of text files.")
    glob = "*.md" if directory == config.root / "docs" else "*"
    asked = {"path": str(directory), "glob": glob, "index": INDEX, "files": FILES}
    flow = Workflow()
    flow.step("split_directory", asked, name="split").then("merge_index", name="merge")
    handle = client.workflow(flow)
    indexed = handle.result(PATIENCE_S)
    found = client.run("search", {"query": query, "index": INDEX, "limit": 5}, PATIENCE_S)
    if show is not None:
        show({"job_id": handle.job_id, "indexed": indexed, "found": found})
        return 0
    print(f"Indexed {directory}: {_counts(indexed)}. See how: bin/exesys workflow show {handle.job_id}")
    print(f"Search for {query!r}:")
    for word, near in found.get("did_you_mean", {}).items():
        print(f"  No document has {word}. Did you mean {' or '.join(near)}?")
    hits = _hits(found)
    if not hits:
        print("  No document has these words.")
    for hit in hits:
        print(f"  {hit['score']:6.2f}  {hit['title']}\n          {hit['snippet']}")
    return 0


def _counts(indexed: Any) -> str:
    numbers = {name: value for name, value in indexed.items() if isinstance(value, int)}
    return ", ".join(f"{value} {name}" for name, value in numbers.items())


def _hits(found: Any) -> list[dict[str, Any]]:
    hits: list[dict[str, Any]] = found["hits"] if isinstance(found, dict) else found
    return hits
