"""The comment at the top of a recipe, which says what it is."""

from pathlib import Path

__all__ = ["first_comment"]

FOR_PROGRAMS = ("# @package", "# yaml-language-server:")
"""Comments that Hydra and editors read."""


def first_comment(path: Path) -> str:
    """The first line of a config file's header; "" if it has none."""
    lines = (line.strip() for line in path.read_text().splitlines())
    comments = (line.lstrip("# ") for line in lines if line.startswith("#") and not line.startswith(FOR_PROGRAMS))
    return next((comment for comment in comments if comment), "")
