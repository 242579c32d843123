"""The files of keys: whose they must be, how they change, and what is seen of it by who looks all the time."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from exesys import config as configuration
from exesys import keystore, tokens
from exesys.config import Config
from exesys.errors import BadCommand, BootError, Conflict, NotFound, Unavailable
from exesys.tokens import LOCAL, Role


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configuration.parse("", None, {"EXESYS_HOME": str(tmp_path / "home")}, tmp_path, tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# --- making, rotating, revoking -------------------------------------------------


def test_the_first_token_has_company_for_this_users_own_tools(config: Config) -> None:
    assert keystore.read(config) == ()
    assert keystore.credentials(config) == {}
    made = keystore.add(config, Role.read, "shop")
    local, shop = keystore.read(config)
    assert (local.name, local.role, shop) == (LOCAL, Role.admin, made.entry)
    sent = keystore.credentials(config)["Authorization"]
    assert tokens.find([local, shop], tokens.bearer(sent)) == local
    assert tokens.find([local, shop], made.text) == shop
    keystore.add(config, Role.read, "other")
    assert [each.name for each in keystore.read(config)] == [LOCAL, "shop", "other"]


def test_only_its_owner_may_enter_and_read(config: Config) -> None:
    old = os.umask(0)
    try:
        made = keystore.add(config, Role.admin, "shop")
    finally:
        os.umask(old)
    keys = config.home / "keys"
    assert [mode(path) for path in (config.home, keys, keys / "private")] == [0o700] * 3
    assert [mode(path) for path in (keys / "tokens.json", keys / "private" / "local.token")] == [0o600] * 2
    files = [path for path in keys.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"lock", "tokens.json", "local.token"}, "no scratch is left"
    assert not any(made.text.encode() in path.read_bytes() for path in files), "the token is kept nowhere"


def test_a_token_is_rotated_and_the_old_one_revoked(config: Config) -> None:
    old = keystore.add(config, Role.submit, "shop")
    with pytest.raises(Conflict, match="--rotate"):
        keystore.add(config, Role.submit, "shop")
    new = keystore.add(config, Role.submit, "shop", rotate=True)
    assert tokens.find(keystore.read(config), old.text)
    assert tokens.find(keystore.read(config), new.text)
    assert keystore.revoke(config, Role.submit, "shop", old=True) == 1
    assert tokens.find(keystore.read(config), old.text) is None
    assert tokens.find(keystore.read(config), new.text)
    assert keystore.revoke(config, Role.submit, "shop") == 1
    assert [each.name for each in keystore.read(config)] == [LOCAL]


def test_the_token_of_own_tools_is_rotated_in_its_file(config: Config) -> None:
    keystore.add(config, Role.read, "shop")
    before = keystore.credentials(config)
    keystore.add(config, Role.admin, LOCAL, rotate=True)
    assert keystore.credentials(config) != before
    keystore.revoke(config, Role.admin, LOCAL, old=True)
    assert tokens.find(keystore.read(config), tokens.bearer(keystore.credentials(config)["Authorization"]))
    keystore.revoke(config, Role.admin, LOCAL)
    assert keystore.credentials(config) == {}
    with pytest.raises(BadCommand, match="own tools"):
        keystore.add(config, Role.read, LOCAL)


def test_what_cannot_be_is_refused(config: Config) -> None:
    with pytest.raises(NotFound, match="--rotate"):
        keystore.add(config, Role.read, "shop", rotate=True)
    assert keystore.read(config) == ()
    keystore.add(config, Role.read, "shop")
    assert keystore.add(config, Role.submit, "shop").entry.role is Role.submit, "another role is another token"
    for number in range(tokens.MOST - 3):
        keystore.add(config, Role.read, f"n{number}")
    with pytest.raises(BadCommand, match="the most"):
        keystore.add(config, Role.read, "more")


def test_days_are_counted_from_now(config: Config) -> None:
    entry = keystore.add(config, Role.read, "shop", days=2).entry
    assert entry.expires_s - entry.created_s == 2 * 86_400


def test_many_at_once_lose_nothing(config: Config) -> None:
    keystore.add(config, Role.read, "first")
    threads = [threading.Thread(target=keystore.add, args=(config, Role.read, f"t{n}")) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.name for each in keystore.read(config)} == {LOCAL, "first", *(f"t{n}" for n in range(12))}


def test_the_environment_comes_before_the_file(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    keystore.add(config, Role.read, "shop")
    monkeypatch.setenv("EXESYS_TOKEN", "exs_mine")
    assert keystore.credentials(config) == {"Authorization": "Bearer exs_mine"}


# --- what will not do -----------------------------------------------------------


def to_link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


WRONG: list[tuple[str, Callable[[Path], None], str]] = [
    ("keys", lambda path: path.chmod(0o750), "chmod 700"),
    ("keys", lambda path: path.chmod(0o701), "chmod 700"),
    ("keys", to_link, "no directory"),
    ("keys/tokens.json", lambda path: path.chmod(0o640), "chmod 600"),
    ("keys/tokens.json", lambda path: path.chmod(0o602), "chmod 600"),
    ("keys/tokens.json", to_link, "links are not followed"),
    ("keys/tokens.json", lambda path: (path.unlink(), path.mkdir(0o700))[0], "is no file"),
    ("keys/tokens.json", lambda path: (path.unlink(), os.mkfifo(path, 0o600))[0], "is no file"),
    ("keys/tokens.json", lambda path: path.write_text("{}") and None, "is damaged"),
    ("keys/tokens.json", lambda path: path.write_text("") and None, "is damaged"),
]


@pytest.mark.parametrize(("name", "spoil", "said"), WRONG)
def test_links_wrong_modes_and_damage_are_refused_with_what_to_do(
    config: Config, name: str, spoil: Callable[[Path], None], said: str
) -> None:
    keystore.add(config, Role.admin, "shop")
    spoil(config.home / name)
    for call in (
        lambda: keystore.read(config),
        lambda: keystore.add(config, Role.read, "more"),
        lambda: keystore.revoke(config, Role.admin, "shop"),
    ):
        with pytest.raises(BootError) as caught:
            call()
        assert said in str(caught.value)
        assert caught.value.fix
    with pytest.raises(Unavailable, match="no token can be checked"):
        keystore.Watch(config).tokens()


def test_a_directory_of_another_user_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    keystore.add(config, Role.admin, "shop")
    uid = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with pytest.raises(BootError, match="belongs to another user"):
        keystore.read(config)


def test_the_token_of_own_tools_must_be_private_too(config: Config) -> None:
    keystore.add(config, Role.admin, "shop")
    keystore.local_file(config).chmod(0o644)
    with pytest.raises(BootError, match="chmod 600"):
        keystore.credentials(config)


@pytest.mark.parametrize("section", ["rest", "web"])
def test_listening_wider_needs_a_token(config: Config, section: str) -> None:
    keystore.check_reach(config, section, "127.0.0.1")
    with pytest.raises(BootError) as caught:
        keystore.check_reach(config, section, "0.0.0.0")
    assert f"[{section}] host is 0.0.0.0" in caught.value.message
    assert "keys new admin" in caught.value.fix
    keystore.add(config, Role.read, "shop")
    keystore.check_reach(config, section, "0.0.0.0")


# --- watching -------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_change_is_seen_within_a_moment_and_the_file_is_read_only_then(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    watch = keystore.Watch(config, clock)
    assert watch.tokens() == ()
    made = keystore.add(config, Role.read, "shop")
    assert watch.tokens() == (), "it is not looked at all the time"
    clock.now += keystore.LOOK_S
    assert made.entry in watch.tokens()

    reads = []
    real = keystore.read_private
    monkeypatch.setattr(keystore, "read_private", lambda path: reads.append(path) or real(path))
    for _ in range(5):
        clock.now += keystore.LOOK_S
        watch.tokens()
    assert not reads
    keystore.tokens_file(config).chmod(0o644)
    clock.now += keystore.LOOK_S
    with pytest.raises(Unavailable):
        watch.tokens()
    assert reads


def test_damage_lets_nobody_in_and_is_told_once(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    watch = keystore.Watch(config, clock)
    keystore.add(config, Role.read, "shop")
    well = keystore.tokens_file(config).read_bytes()
    keystore.tokens_file(config).write_bytes(well[: len(well) // 2])
    for _ in range(5):
        clock.now += keystore.LOOK_S
        with pytest.raises(Unavailable, match="is damaged"):
            watch.tokens()
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    keystore.tokens_file(config).write_bytes(well)
    clock.now += keystore.LOOK_S
    assert len(watch.tokens()) == 2
    assert "can be read again" in caplog.text
