"""Show what this machine has: versions, devices, links, limits, and what is missing for which option.

Made to be pasted into a bug report: it has no values of environment variables, no addresses, no paths, and no names of
hosts or users.
"""

import argparse
from pathlib import Path

USAGE = "[options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How it is shown."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(arguments: argparse.Namespace) -> int:
    """Print the report."""
    import json

    from runner.machine.report import as_text, collect

    report = collect(Path.cwd())
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    return 0
