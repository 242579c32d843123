# Sourced by start_exe_sys.sh, test.sh and docs.sh: makes .venv, or finds that it is good.
#
# Everything is written below .venv: the packages, the compiled files, pip's
# scratch. ExeSys itself is not installed but found through a .pth file, so the
# checkout stays as it is. Two starts at the same time wait for each other, and
# what was interrupted is made again.
#
#   EXESYS_PYTHON   the Python to use (3.11 or newer; default: python3 and its kin)
#   EXESYS_VENV     the directory to use instead of .venv in the checkout

fail() {
    echo "$*" >&2
    exit 1
}

# Prints the first Python that is new enough and can make a virtual environment.
find_python() {
    why="No Python was found."
    if [ -n "${EXESYS_PYTHON:-}" ]; then
        set -- "$EXESYS_PYTHON"
    else
        set -- python3 python3.13 python3.12 python3.11 python3.14
    fi
    for name; do
        if ! command -v "$name" >/dev/null 2>&1; then
            [ -z "${EXESYS_PYTHON:-}" ] || why="EXESYS_PYTHON is $name, and no such program is there."
        elif ! "$name" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            why="$name is $("$name" --version 2>&1), and Python 3.11 is the oldest that will do."
        elif ! "$name" -I -c 'import venv, ensurepip' 2>/dev/null; then
            why="$name cannot make virtual environments: its venv or ensurepip is missing (Debian and Ubuntu have it in python3-venv)."
        else
            command -v "$name"
            return
        fi
    done
    fail "$why Install Python 3.11 or newer, or name one: EXESYS_PYTHON=/path/to/python3 $0"
}

# What the virtual environment depends on. None when its Python does not run.
base_stamp() {
    echo "$root"
    "$venv/bin/python" -I -S -c 'import sys; print(sys.version_info[:2], sys.prefix)' 2>/dev/null || echo none
}

group_stamp() {
    base_stamp
    cat "$root/setup.py"
}

is_good() {
    [ ! -e "$venv/unfinished" ] && [ -f "$venv/stamp-$1" ] && group_stamp | cmp -s - "$venv/stamp-$1"
}

# Prints the requirements of one group of setup.py, one a line.
requirements() {
    "$venv/bin/python" -I - "$root/setup.py" "$1" <<'PYTHON'
import ast
import sys

tree = ast.parse(open(sys.argv[1], encoding="utf-8").read())
known = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
groups = {"run": ast.literal_eval(known["REQUIRES"]), **ast.literal_eval(known["EXTRAS"])}
print("\n".join(groups[sys.argv[2]]))
PYTHON
}

# install GROUP: quietly; what pip said is left in a log.
install() {
    requirements "$1" >"$venv/tmp/$1.txt" &&
        TMPDIR="$venv/tmp" "$venv/bin/python" -I -m pip install --quiet --no-cache-dir --disable-pip-version-check \
            --requirement "$venv/tmp/$1.txt" >"$venv/install-$1.log" 2>&1
}

must_install() {
    install "$1" || fail "$(tail -n 15 "$venv/install-$1.log")
The packages could not be installed; the lines above are the end of $venv/install-$1.log."
}

# Whether a person made this virtual environment, and it will do.
is_adoptable() {
    [ ! -e "$venv/unfinished" ] && [ ! -e "$venv/stamp-base" ] && [ -e "$venv/pyvenv.cfg" ] &&
        "$venv/bin/python" -I -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# An environment without packages. What a killed start left goes; what is no virtual environment is not touched.
make_base() {
    if ! is_adoptable; then
        if [ ! -e "$venv/unfinished" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ "$(ls -A "$venv")" != lock ]; then
            fail "$venv is no virtual environment, so it is not touched. Move it away, or set EXESYS_VENV."
        fi
        echo "Making the virtual environment $venv."
        find "$venv" -mindepth 1 -maxdepth 1 ! -name lock ! -name unfinished -exec rm -rf {} +
        touch "$venv/unfinished"
        "$python" -I -m venv "$venv" >"$venv/install-venv.log" 2>&1 || fail "$(cat "$venv/install-venv.log")
The virtual environment $venv could not be made; the lines above say why."
    fi
    # Read at each start of its Python: finds ExeSys, keeps compiled files out of the checkout.
    packages=$("$venv/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\nimport sys; sys.pycache_prefix = sys.prefix + "/pycache"\n' "$root" >"$packages/exesys.pth"
    base_stamp >"$venv/stamp-base"
}

make_venv() {
    if [ -e "$venv/unfinished" ] || ! base_stamp | cmp -s - "$venv/stamp-base"; then
        make_base
    fi
    touch "$venv/unfinished"
    mkdir -p "$venv/tmp"
    echo "Installing what ExeSys needs; the first time takes a minute."
    must_install run
    if [ "$1" != start ]; then
        must_install "$1"
    elif ! install trial; then
        echo "SecantusDB, a MongoDB for trials, cannot be installed here (see $venv/install-trial.log): going on without."
    fi
    rm -rf "$venv/tmp"
    group_stamp >"$venv/stamp-$1"
    rm "$venv/unfinished"
}

# ensure_venv start|test|docs: makes the environment for it and sets `venv`; `root` is the checkout.
ensure_venv() {
    venv=${EXESYS_VENV:-$root/.venv}
    case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
    is_good "$1" && return
    python=$(find_python) || exit 1
    { mkdir -p "$venv" && : >>"$venv/lock"; } 2>/dev/null ||
        fail "$venv cannot be written. Set EXESYS_VENV to a directory of yours."
    # The lock goes with the open file: it is free once this shell and its pip have ended, however they do.
    exec 9>>"$venv/lock"
    "$python" -I -c '
import fcntl
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Waiting for another start that makes the same virtual environment.", flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
'
    is_good "$1" || make_venv "$1"
    exec 9>&-
}
