"""`exesys dev` and `exesys new-module`, as somebody who writes functions uses them."""

import json
import os
import pty
import signal
import subprocess
import sys

import pytest
from devs import Dev, a_system
from harness import until


@pytest.fixture(scope="module")
def dev(make_module, tmp_path_factory):
    system, modules = a_system(make_module, tmp_path_factory.mktemp("dev"))
    made = system.exesys("new-module", "hello")
    assert made.code == 0, made
    assert made.out.startswith(f"Wrote {modules / 'hello.py'}. Load it and call it:\n  bin/exesys reload\n  curl ")
    running = Dev(system, "--jobs")
    running.told("Watching")
    running.system, running.modules = system, modules
    yield running
    assert running.end(signal.SIGTERM) == 0, running.lines  # test_dev_figures.py ends it by INT
    assert system.pids() == {}
    assert any("Stopping" in line for line in running.lines)


def test_the_new_module_answers(dev):
    answer = dev.system.post({"cmd": "hello", "data": ["Ada"]}, wait=5)
    assert answer.body["result"] == {"EOJ": ["Hello, Ada!"]}


def test_the_end_of_each_job_is_told(dev):
    dev.system.post({"cmd": "hello", "data": "Ada", "job_id": "told-1"}, wait=5)
    assert dev.told("told-1") == "jobs         | data_available told-1 client hello"
    dev.system.post({"cmd": "fail", "job_id": "told-2", "retries": 1, "backoff_s": 0.01}, wait=5)
    assert dev.told("told-2") == "jobs         | error told-2 client fail, attempt 2"


def test_what_is_saved_is_callable_and_told(dev):
    (dev.modules / "fresh.py").write_text("def fresh(data):\n    return data * 2\n")
    assert "callable: fresh(data)" in dev.told("callable: fresh")
    assert dev.system.post({"cmd": "fresh", "data": 4}, wait=5).body["result"] == {"EOJ": 8}
    dev.told("functions can be called, 0 cannot.")


def test_an_import_error_is_shown_with_its_traceback(dev):
    (dev.modules / "wrong.py").write_text("import no_such_module_at_all\n\n\ndef wrong(data):\n    return data\n")
    dev.told("wrong cannot be called:")
    assert dev.told('wrong.py", line 1').startswith("dev ")
    dev.told("ModuleNotFoundError: No module named 'no_such_module_at_all'")
    (dev.modules / "wrong.py").write_text("def wrong(data):\n    return data\n")
    dev.told("callable: wrong(data)")
    (dev.modules / "half.py").write_text("def half(data:\n")
    assert "SyntaxError" in dev.told("SyntaxError")
    (dev.modules / "half.py").unlink()
    assert dev.system.post({"cmd": "wrong", "data": 1}, wait=5).body["result"] == {"EOJ": 1}


def test_logs_are_shown_behind_the_names_of_their_programs(dev):
    os.kill(dev.system.pids()["web"], signal.SIGTERM)
    dev.told("supervisord  |")
    assert dev.told("worker       | ")
    until(dev.system.ready, "all is there again")


def test_changed_settings_are_told(dev):
    dev.system.ini.write_text("[worker]\nprefetch = 8\n")
    assert "end this with Ctrl-C and start it again" in dev.told("has changed: ")
    dev.system.ini.write_text("[worker]\nslosts = 3\n")
    assert "Did you mean `slots`" in dev.told("would not do")
    dev.system.ini.write_text("")
    dev.told("no setting of the system that runs is another")


def test_a_system_that_runs_is_looked_at_and_goes_on(dev):
    other = Dev(dev.system, "--json")
    until(lambda: any("Watching" in line for line in other.lines), "it watches")
    assert json.loads(other.told("Watching"))["line"].endswith("It ran already: Ctrl-C ends only this view of it.")
    assert other.end(signal.SIGTERM) == 0
    assert "The system goes on." in other.lines[-1]
    assert dev.system.ready()


def test_its_death_ends_the_system(make, tmp_path):
    system, _ = a_system(make, tmp_path)
    running = Dev(system)
    running.told("Watching")
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: system.pids() == {}, "nothing is left")


def test_a_terminal_has_colours(dev):
    parent, child = pty.openpty()
    watching = subprocess.Popen(
        [sys.executable, "-m", "exesys.cli", "dev"],
        cwd=dev.system.root,
        env={**dev.system.environ, "TERM": "xterm-256color"},
        stdout=child,
        stderr=child,
    )
    os.close(child)
    shown = b""
    while b"Watching" not in shown:
        shown += os.read(parent, 4096)
    watching.send_signal(signal.SIGINT)
    while True:
        try:
            if not (more := os.read(parent, 4096)):
                break
        except OSError:  # EIO: it is closed
            break
        shown += more
    os.close(parent)
    assert watching.wait(30) == 0
    assert b"\x1b[36mdev" in shown


def test_a_start_that_cannot_be_says_why(make, tmp_path, dev):
    system, _ = a_system(make, tmp_path, rest_port=dev.system.rest_port)
    said = system.exesys("dev")
    assert said.code == 1
    assert f"Port {dev.system.rest_port} of 127.0.0.1 ([rest] port) is in use by" in said.err
    assert "EXESYS_REST_PORT" in said.err
