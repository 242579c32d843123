#!/bin/sh
# Starts ExeSys: makes .venv if need be (see _venv.sh), then `bin/exesys up`.
#   bin/start_exe_sys.sh [--foreground] [--json]
set -u
here=$(dirname "$(readlink -f "$0")")
root=$(dirname "$here")
. "$here/_venv.sh"
ensure_venv start
exec "$here/exesys" up "$@"
