"""What `import` does: read, report, and print or write."""

import argparse
import sys
from pathlib import Path

from runner import durable
from runner.errors import Fault, SpecError
from runner.migrate.command_line import read_command
from runner.migrate.read import read_file
from runner.migrate.recipe import recipe_text
from runner.migrate.report import report

__all__ = ["migrate"]

SUFFIX = ".yaml"


def migrate(arguments: argparse.Namespace) -> int:
    """Translate a file or a command line.

    Raises:
        SpecError: neither or both are given, it cannot be read, or the recipe cannot be written.
    """
    if (arguments.file is None) == (not arguments.foreign):
        rule = "give a configuration file, or -- and the command line of a launcher. See: runner import --help"
        raise SpecError(Fault(key="FILE", message=rule))
    output: Path | None = arguments.output
    if output is not None:
        _check_output(output)
    migration = read_file(arguments.file) if arguments.file is not None else read_command(arguments.foreign)
    print(report(migration), file=sys.stderr)
    if output is None:
        print("\n".join(map(str, migration.settings)))
    else:
        durable.replace(output, recipe_text(migration, name=output.stem))
        print(output)
    return 0


def _check_output(path: Path) -> None:
    """Raise unless a recipe can be written there.

    Raises:
        SpecError: the name does not end in .yaml, the file exists, or its directory does not.
    """
    if path.suffix != SUFFIX:
        raise SpecError(Fault(key="--output", message=f"{path} must end in {SUFFIX}, as recipes do."))
    if path.exists():
        raise SpecError(Fault(key="--output", message=f"{path} exists. Give another name, or move it away."))
    if not path.parent.is_dir():
        raise SpecError(Fault(key="--output", message=f"{path.parent} is not a directory. Create it first."))
