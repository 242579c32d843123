"""The two scripts that set up, as far as they can be tried without installing anything."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a space in its path, of which only the scripts and setup.py are there."""
    root = tmp_path / "a checkout"
    shutil.copytree(CHECKOUT / "bin", root / "bin")
    shutil.copy(CHECKOUT / "setup.py", root)
    return root


def run(script, *words, cwd="/", **environ):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EXESYS_")}
    done = subprocess.run(
        [str(script), *words], cwd=cwd, env={**clean, **environ}, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def fake_python(directory, refuses):
    """A Python that fails when it is asked for one thing."""
    path = directory / "python"
    path.write_text(f'#!/bin/sh\ncase "$*" in *{refuses}*) exit 1 ;; esac\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def pretend_installed(checkout, python=sys.executable):
    """Make a .venv that looks as if the script had made it."""
    venv = checkout / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    (venv / "bin" / "python").chmod(0o755)
    (venv / "pyvenv.cfg").touch()
    return venv


def test_a_python_too_old_is_refused(checkout, tmp_path):
    code, _, err = run(checkout / "bin/start_exe_sys.sh", EXESYS_PYTHON=fake_python(tmp_path, "version_info"))
    assert code == 1
    assert "Python 3.11 is the oldest that will do" in err
    assert not (checkout / ".venv").exists()


def test_a_python_without_venv_is_refused(checkout, tmp_path):
    code, _, err = run(checkout / "bin/start_exe_sys.sh", EXESYS_PYTHON=fake_python(tmp_path, "ensurepip"))
    assert code == 1
    assert "python3-venv" in err
    assert not (checkout / ".venv").exists()


def test_a_python_that_is_missing_is_refused(checkout):
    code, _, err = run(checkout / "bin/test.sh", EXESYS_PYTHON="/no/such/python")
    assert code == 1
    assert "EXESYS_PYTHON is /no/such/python, and no such program is there." in err


def test_a_directory_of_something_else_is_not_touched(checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "precious").write_text("mine")
    code, _, err = run(checkout / "bin/start_exe_sys.sh", EXESYS_PYTHON=sys.executable)
    assert code == 1
    assert "is no virtual environment, so it is not touched" in err
    assert (checkout / ".venv" / "precious").read_text() == "mine"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A virtual environment without packages."""
    venv = tmp_path_factory.mktemp("made") / "venv"
    subprocess.run([sys.executable, "-I", "-m", "venv", str(venv)], check=True)
    return venv


def copying_python(directory, made):
    """A Python that makes a virtual environment by copying one, which is many times faster."""
    path = directory / "python"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in "-I -m venv "*) exec cp -a "{made}/." "$4" ;; esac\nexec "{sys.executable}" "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("half", ["nothing but the lock", "no Python", "unfinished"])
def test_what_a_killed_start_left_is_made_again(checkout, made, tmp_path, half):
    """As far as the base: the packages are asked of an index that is not there."""
    venv = checkout / ".venv"
    if half == "nothing but the lock":
        venv.mkdir()
        (venv / "lock").touch()
    elif half == "no Python":
        venv.mkdir()
        (venv / "pyvenv.cfg").touch()
    else:
        pretend_installed(checkout, "/no/such/python")
        (venv / "unfinished").touch()
        (venv / "stale").touch()
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": str(checkout)}
    python = sys.executable if half == "no Python" else copying_python(tmp_path, made)
    code, out, err = run(checkout / "bin/start_exe_sys.sh", EXESYS_PYTHON=python, **offline)
    assert code == 1
    assert "Making the virtual environment" in out
    assert "The packages could not be installed" in err
    assert (venv / "unfinished").exists()
    assert not (venv / "stale").exists()
    asked = subprocess.run(
        [venv / "bin" / "python", "-c", "import sys; print(sys.path[-1], sys.pycache_prefix)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout == f"{checkout} {venv}/pycache\n"
    assert sorted(os.listdir(checkout)) == [".venv", "bin", "setup.py"]


def test_a_good_environment_is_used_at_once(checkout, tmp_path):
    """The stamp says that nothing changed: no pip, and the command line is called as it was given."""
    told = tmp_path / "told"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *version_info*) echo same ;; *) echo "$*" >"{told}" ;; esac\n')
    python.chmod(0o755)
    venv = pretend_installed(checkout, python)
    stamp = f"{checkout}\nsame\n" + (checkout / "setup.py").read_text()
    (venv / "stamp-start").write_text(stamp)
    link = tmp_path / "link"
    link.symlink_to(checkout / "bin" / "start_exe_sys.sh")
    assert run(link, "--foreground", cwd=tmp_path) == (0, "", "")
    assert told.read_text() == "-P -m exesys.cli up --foreground\n"

    (venv / "stamp-start").write_text(stamp + "# changed\n")
    (venv / "stamp-base").write_text(f"{checkout}\nsame\n")
    out = run(link, cwd=tmp_path)[1]
    assert "Installing what ExeSys needs" in out


def test_the_command_line_says_how_to_install(checkout):
    code, _, err = run(checkout / "bin/exesys", "status")
    assert code == 1
    assert f"Run {checkout}/bin/start_exe_sys.sh" in err


def test_the_requirements_can_be_read_as_text():
    """_venv.sh reads them without running setup.py: they must stay plain lists."""
    tree = ast.parse((CHECKOUT / "setup.py").read_text(encoding="utf-8"))
    known = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert "pyzmq>=26" in ast.literal_eval(known["REQUIRES"])
    assert set(ast.literal_eval(known["EXTRAS"])) >= {"trial", "test", "dev"}
