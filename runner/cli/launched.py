"""What the commands that launch a run do around it, and a Python program does not."""

import sys
from pathlib import Path

from runner import terminal
from runner.config.masking import shown_command

__all__ = ["prepare_process", "print_directory"]


def prepare_process() -> None:
    """Let no write to a standard stream raise, and take secrets out of sys.argv, which libraries record."""
    terminal.protect()
    sys.argv[1:] = shown_command(sys.argv[1:])  # wandb puts it among a run's metadata


def print_directory(directory: Path) -> None:
    """Print a run's directory as the last line on stdout, after all that stderr has."""
    sys.stderr.flush()
    print(directory, flush=True)
