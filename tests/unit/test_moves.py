"""Several renames as one: broken off anywhere, they have not begun or are carried out by the next to look."""

import contextlib
import json
import os
from pathlib import Path

import pytest

from exesys import moves
from exesys.errors import BootError

MOVES = [("redis", "redis.before"), ("redis-backup", "redis-backup.before"), ("redis.restoring", "redis")]
OLD = {"redis": "old", "redis-backup": "replica", "redis.restoring": "new"}
NEW = {"redis": "new", "redis.before": "old", "redis-backup.before": "replica"}


class Killed(BaseException):
    """Stands for kill -9."""


def make(place: Path) -> None:
    for name, text in OLD.items():
        (place / name).mkdir()
        (place / name / "data").write_text(text)


def there(place: Path) -> dict[str, str]:
    return {each.name: (each / "data").read_text() for each in place.iterdir() if each.is_dir()}


def test_all_is_renamed(tmp_path):
    make(tmp_path)
    moves.carry_out(tmp_path, MOVES)
    assert there(tmp_path) == NEW
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(NEW)


def kill_at(monkeypatch: pytest.MonkeyPatch, turn: int) -> None:
    """Have the process die before the call of that number among those that change the directory."""
    left = [turn]

    def dying(call):
        def called(*arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return call(*arguments, **options)

        return called

    for owner, name in ((os, "rename"), (os, "fsync"), (os, "unlink"), (Path, "rename"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))


def test_killed_anywhere_it_is_the_old_or_the_new_and_never_a_mix(tmp_path):
    seen = []
    for turn in range(100):
        place = tmp_path / str(turn)
        place.mkdir()
        make(place)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, turn)
            try:
                moves.carry_out(place, MOVES)
                ended = True
            except Killed:
                ended = False
        if ended:
            break
        # The next may be killed in the middle, too.
        for again in range(turn % 3):
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
                kill_at(patch, again % 2)
                moves.settle(place)
        moves.settle(place)
        assert there(place) in (OLD, NEW)
        assert not (place / moves.PENDING).exists()
        seen.append(there(place) == NEW)
    assert ended
    assert seen == sorted(seen)
    assert set(seen) == {False, True}, "it was killed before and behind the decision"


def test_without_a_list_nothing_is_done(tmp_path):
    make(tmp_path)
    moves.settle(tmp_path)
    moves.settle(tmp_path / "nowhere")
    assert there(tmp_path) == OLD


@pytest.mark.parametrize("text", ["", "[", "[[1]]", json.dumps([["redis"]]), "7"])
def test_a_list_that_cannot_be_read_is_told_and_nothing_is_renamed(tmp_path, text):
    make(tmp_path)
    (tmp_path / moves.PENDING).write_text(text)
    with pytest.raises(BootError, match=moves.PENDING):
        moves.settle(tmp_path)
    assert there(tmp_path) == OLD


def test_a_list_that_cannot_be_written_renames_nothing(tmp_path):
    make(tmp_path)
    blocked = tmp_path / f"{moves.PENDING}.new"
    blocked.mkdir()
    with pytest.raises(BootError, match="cannot be written"):
        moves.carry_out(tmp_path, MOVES)
    blocked.rmdir()
    assert there(tmp_path) == OLD
