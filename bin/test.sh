#!/bin/sh
# Runs the tests, all of them or what is named: bin/test.sh tests/unit -k wire
set -u
here=$(dirname "$(readlink -f "$0")")
root=$(dirname "$here")
. "$here/_venv.sh"
ensure_venv test
cd "$root" || exit 1
# What the tools remember between runs goes into the virtual environment too.
export HYPOTHESIS_STORAGE_DIRECTORY="$venv/hypothesis" COVERAGE_FILE="$venv/coverage"
exec "$venv/bin/python" -m pytest -o cache_dir="$venv/pytest_cache" "$@"
