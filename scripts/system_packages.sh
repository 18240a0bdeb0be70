#!/bin/bash
# Installs, with apt, the system packages that the suite needs, and says in one line what it could not install.
# Usage: scripts/system_packages.sh PROGRAM=PACKAGE …     a program that is on the PATH already is left alone
set -u

missing=()
for pair in "$@"; do
    command -v "${pair%%=*}" > /dev/null || missing+=("${pair#*=}")
done
[ "${#missing[@]}" -eq 0 ] && exit 0

if ! command -v apt-get > /dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "system packages: cannot install ${missing[*]} here (needs apt-get and root); what needs them is skipped"
    exit 0
fi
apt-get update -qq > /dev/null 2>&1
for package in "${missing[@]}"; do
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" > /dev/null 2>&1 ||
        echo "system packages: apt-get could not install $package; what needs it is skipped"
done
