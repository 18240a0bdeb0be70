#!/bin/bash
# Builds sdist and wheel from the last commit into dist/, and checks them as those who install them get them.
# Uploads nothing. Nothing is left in dist/ unless everything holds.
# Usage: scripts/release.sh BIN [--rehearse]
#   BIN          the bin directory of an environment with hydra-runner[release] in it
#   --rehearse   the version need not have a date in CHANGELOG.md yet; dist/ is left as it is
set -eu -o pipefail

bin=$(realpath "$1")
rehearse=${2:-}
cd "$(dirname "$0")/.."
checkout=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
step() { echo "== $*"; }

step "the source: what is committed, and nothing else"
[ -z "$(git status --porcelain)" ] || echo "note: the working tree has changes, which are not in the release"
mkdir "$scratch/source" "$scratch/empty"
git archive HEAD | tar -x -C "$scratch/source"
source=$scratch/source
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$source/runner/__init__.py")
echo "version $version"

step "the changelog"
heading="^## \[${version//./\\.}\] - "
date="[0-9]{4}-[0-9]{2}-[0-9]{2}"
[ "$rehearse" = --rehearse ] && date="($date|unreleased)"
if ! grep -E "$heading$date\$" "$source/CHANGELOG.md"; then
    echo "CHANGELOG.md has no heading '## [$version] - YYYY-MM-DD'. Date the version, commit, and try again."
    exit 1
fi

if [ "$rehearse" != --rehearse ] && grep "is not on PyPI yet" "$source/README.md"; then
    echo "README.md: remove that sentence, commit, and try again."
    exit 1
fi

step "sdist, and the wheel from it"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH    # the same commit gives the same bytes
"$bin/python" -m build --no-isolation --outdir "$scratch/dist" "$source"
wheel=$scratch/dist/hydra_runner-$version-py3-none-any.whl

step "metadata"
"$bin/python" -m twine check --strict "$scratch/dist/"*

step "files of the wheel"
"$bin/python" "$source/scripts/check_wheel.py" "$wheel" "$source"

step "a fresh environment"
"$bin/python" -m venv "$scratch/environment"
torch=$(grep '^torch==' "$source/constraints.txt")
"$scratch/environment/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$source/constraints.txt" "$torch" "$wheel"

step "from an empty directory"
cd "$scratch/empty"
PATH=$scratch/environment/bin:$PATH
export XDG_STATE_HOME=$scratch/state
unset PYTHONPATH VIRTUAL_ENV
[ "$(runner --version)" = "runner $version" ]
runner recipes
runner init rings --yes
cd rings
runner train rings run.steps=20 run.dir=first
runner resume first run.steps=30 strategy=ddp hardware.processes=2

step "done"
sha256sum "$scratch/dist/"* | sed "s|$scratch/||"
if [ "$rehearse" = --rehearse ]; then
    echo "a rehearsal: dist/ is as it was"
else
    rm -rf "$checkout/dist"
    cp -r "$scratch/dist" "$checkout/dist"
    echo "they are in dist/; CONTRIBUTING.md says how to go on"
fi
