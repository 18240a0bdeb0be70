#!/bin/bash
# Trains the digits recipe to the end; says its accuracy and where the run is.
# Usage: scripts/demo.sh BIN     BIN is the bin directory of an environment with hydra-runner[demo] in it
set -eu -o pipefail

run=$("$1/runner" train digits | tail -n 1)
"$1/python" - "$run" << 'SAY'
import json
import pathlib
import sys

run = pathlib.Path(sys.argv[1])
accuracy = json.loads((run / "status.json").read_text())["metrics"]["eval/accuracy"]
print(f"\naccuracy on the held-out fifth: {accuracy:.4f}\nthe run is in {run}")
SAY
