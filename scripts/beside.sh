#!/bin/bash
# Runs a check beside a command, says last what the check has found, and fails if either does.
# Usage: scripts/beside.sh CHECK COMMAND…     the check is one word, split at its spaces
set -u

found=$(mktemp)
$1 > "$found" 2>&1 &
check=$!
"${@:2}"
code=$?
wait "$check"
checked=$?
echo "$1:"
cat "$found"
rm -f "$found"
exit "$((code ? code : checked))"
