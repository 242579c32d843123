#!/bin/sh
# Builds the documents as a site, into var/site or where it is told: bin/docs.sh /tmp/site
#
# Every warning is an error, every link and anchor is looked at, and nothing is
# loaded from elsewhere. What is there is replaced once all that is so.
set -u
here=$(dirname "$(readlink -f "$0")")
root=$(dirname "$here")
. "$here/_venv.sh"
ensure_venv docs
site=${1:-${EXESYS_HOME:-$root/var}/site}
if [ -e "$site" ] && [ ! -e "$site/objects.inv" ] && [ -n "$(ls -A "$site")" ]; then
    fail "$site is no site that was built here, so it is not touched. Name another directory."
fi
work=$(mktemp -d "$venv/docs-XXXXXX") || fail "$venv cannot be written."
trap 'rm -rf "$work"' EXIT
python=$venv/bin/python
"$python" "$root/docs/site/stage.py" "$work/source" || fail "The pages could not be laid out; the lines above say why."
"$python" -m sphinx --quiet --fail-on-warning --keep-going --conf-dir "$root/docs/site" -b html \
    --doctree-dir "$work/doctrees" "$work/source" "$work/site" || fail "The site was not built; the lines above say why."
# Markdown may show a picture by HTML, whose addresses Sphinx leaves alone.
[ ! -d "$work/source/docs/pictures" ] || cp -r "$work/source/docs/pictures" "$work/site/docs/"
"$python" "$root/docs/site/check.py" "$work/site" || fail "The site was not taken; the lines above say why."
(umask 077 && mkdir -p "$(dirname "$site")") || exit 1
rm -rf "$site" && mv "$work/site" "$site" || exit 1
echo "The site is in $site: open $site/index.html."
