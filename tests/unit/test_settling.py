"""How long a start waits for application servers before it tells how they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exesys import apps, config

INI = "[appserver:words]\nclass = word_dict:Dictionary\n"


def told(state: str, reason: str = "") -> list[dict[str, Any]]:
    return [{"name": "words", "state": state, "reason": reason}]


@pytest.mark.parametrize(
    ("looks", "state"),
    [
        ([told("starting"), told("ready")], "ready"),
        ([told("starting"), told("failed", "ValueError: no words")], "failed"),
        ([told("failed", "BusyLoadingError: Valkey is loading the dataset in memory"), told("ready")], "ready"),
    ],
    ids=["ready", "failed", "Redis was reading its file"],
)
def test_it_waits_until_each_is_seen_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, looks: list[list[dict[str, Any]]], state: str
) -> None:
    left = iter(looks)
    monkeypatch.setattr(apps, "ask_rest", lambda config: next(left))
    [each] = apps.settled(config.parse(INI, None, {}, tmp_path, tmp_path))
    assert each["state"] == state
    assert list(left) == []
