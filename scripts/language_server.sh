#!/bin/bash
# Installs yaml-language-server, which tests/schema drives, from its lock file; says in one line if it cannot.
# Usage: scripts/language_server.sh DIRECTORY     which is created; what is installed there already is left alone
set -u

source=$(dirname "$0")/../tests/schema/editor
cmp -s "$source/package-lock.json" "$1/package-lock.json" && exit 0
if ! command -v npm > /dev/null; then
    echo "language server: npm is not installed; what needs yaml-language-server is skipped"
    exit 0
fi
# The lock file arrives last: it says that all of it is there.
mkdir -p "$1/coming" && cp "$source"/package*.json "$1/coming" &&
    npm ci --prefix "$1/coming" --ignore-scripts --no-audit --no-fund --silent > /dev/null 2>&1 &&
    rm -rf "$1/node_modules" && mv "$1/coming/node_modules" "$1" && mv "$1/coming/package-lock.json" "$1" ||
    echo "language server: npm could not install yaml-language-server; what needs it is skipped"
rm -rf "$1/coming"
