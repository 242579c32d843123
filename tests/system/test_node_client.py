"""`clients/node`, the client for JavaScript, and docs/protocol.md message by message: its own tests, on real systems.

The npm packages are kept below the virtual environment, for the next run. Where
they are not to be had the tests are skipped, but not with CI=true: there they fail.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from harness import free_ports

from exesys.command import OPTIONS
from exesys.keyring import Keyring

PACKAGE = Path(__file__).resolve().parents[2] / "clients" / "node"
INSTALL_S = 180
TEST_S = 180
HEARTBEAT_S = 0.25


def lacking(reason):
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def install(kept):
    """Have npm put what the package needs into a directory, whole or not at all."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        shutil.copy(PACKAGE / "package.json", scratch)
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=INSTALL_S)
        except subprocess.TimeoutExpired:
            lacking(f"npm did not install the client's packages in {INSTALL_S} s")
        if done.returncode:
            lacking(f"npm cannot install the client's packages: {done.stderr[-500:]}")
        if not kept.exists():  # another run may have been quicker
            (Path(scratch) / "node_modules").rename(kept)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package with what it needs: nothing is written into the checkout."""
    if not (shutil.which("node") and shutil.which("npm")):
        lacking("node and npm are not installed")
    stamp = hashlib.sha256((PACKAGE / "package.json").read_bytes()).hexdigest()[:16]
    kept = Path(sys.prefix) / "node" / stamp / "node_modules"  # by its name Node.js finds one in it from another
    if not kept.exists():
        install(kept)
    copy = tmp_path_factory.mktemp("node") / "client"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("node_modules"))
    (copy / "node_modules").symlink_to(kept)
    return copy


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(bus_heartbeat_s=HEARTBEAT_S)


@pytest.fixture(scope="module")
def keyed(make_module, tmp_path_factory):
    """A system whose bus is on TCP and asks for keys, and a directory with one of a client."""
    keys = tmp_path_factory.mktemp("keys")
    [port] = free_ports(1)
    system = make_module(start=False, bus_endpoint=f"tcp://127.0.0.1:{port}")
    Keyring(system.config).new("client", "shop", keys / "shop.key")
    system.up()
    system.keys = keys
    return system


def run(package, name, home, **environ):
    """Run a file of tests; return what node says."""
    environ = {**os.environ, "EXESYS_HOME": str(home), **{key: str(value) for key, value in environ.items()}}
    command = ["node", "--test", "--test-reporter=tap", f"test/{name}.test.js"]
    done = subprocess.run(command, cwd=package, env=environ, capture_output=True, text=True, timeout=TEST_S)
    return done.returncode, done.stdout + done.stderr


def passed(said):
    code, text = said
    assert code == 0, text
    assert re.search(r"^# (fail|skipped|cancelled) [1-9]", text, re.MULTILINE) is None, text
    return int(re.search(r"^# pass (\d+)$", text, re.MULTILINE)[1])


def written(name):
    """How many tests a file has: each is one line, or stands in a list that is gone through."""
    return len(re.findall(r"^(?:test|tested)\(", (PACKAGE / "test" / f"{name}.test.js").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", ["desk", "protocol", "client"])
def test_on_a_system(package, system, name):
    assert passed(run(package, name, system.home)) >= written(name) > 0


def test_with_keys(package, keyed):
    assert passed(run(package, "curve", keyed.home, EXESYS_KEYS=keyed.keys)) >= written("curve") > 0


def test_the_readme_runs(package, system):
    """Its blocks, one after the other: each uses the client of the first."""
    text = (PACKAGE / "README.md").read_text()
    first, flow, stops = re.findall(r"^```js\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    closing = "await client.close();\n"
    (package / "readme.mjs").write_text(first.replace(closing, "") + flow + stops + closing)
    with system.redis() as store:
        store.set("run:mail:u1", 1)
        store.set("run:mail:u1", 0)
    environ = {**os.environ, "EXESYS_HOME": str(system.home)}
    done = subprocess.run(["node", "readme.mjs"], cwd=package, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["6", "[ 1, 2, 3 ]", "ValueError on purpose 1"]
    assert lines[3:5] == ["3", "{ status: 3, state: 'data_available', result: { EOJ: 3 } }"]
    assert lines[5] == "mail:u1 is to stop"


def test_its_options_are_those_of_a_command():
    """One that is missing there would be refused before it is sent."""
    for name in ("src/client.js", "index.d.ts", "README.md"):
        text = (PACKAGE / name).read_text()
        assert {option for option in OPTIONS if not re.search(rf"\b{option}\b", text)} == set(), name


def test_the_types_declare_what_there_is(package):
    """index.d.ts and the code have the same classes, with the same members."""
    declared = {}
    for name, body in re.findall(
        r"^export class (\w+)[^{]*\{\n(.*?)^\}", (PACKAGE / "index.d.ts").read_text(), re.M | re.S
    ):
        declared[name] = set(re.findall(r"^  (?:static |readonly )*(\w+)[?(:]", body, re.MULTILINE)) - {"constructor"}
    script = """
        import * as all from "./src/index.js";
        const members = (kind) => [
          ...Object.getOwnPropertyNames(kind.prototype), ..."connect" in kind ? ["connect"] : [],
        ].filter((name) => name !== "constructor" && !name.startsWith("_"));
        console.log(Object.entries(all).map(([name, kind]) => [name, ...members(kind)].join(" ")).join("\\n"));
    """
    command = ["node", "--input-type=module", "-e", script]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = {name: set(members) for name, *members in (line.split() for line in done.stdout.splitlines())}
    assert found.keys() == declared.keys()
    for name, members in found.items():
        assert members <= declared[name], name
