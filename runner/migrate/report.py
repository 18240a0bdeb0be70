"""What became of a foreign configuration, for a person: a line for each of its keys, under three headings."""

from collections.abc import Iterable, Iterator

from runner.migrate.outcome import Line, shown
from runner.migrate.translate import Migration

__all__ = ["report"]

MOST = 64
"""The longest key and value that the column widens for."""


def report(migration: Migration) -> str:
    """All keys: those that became settings, those that need none, and those that ask for what is not there."""
    lines = migration.lines
    became = [line for line in lines if line.outcome.settings]
    needless = [line for line in lines if not line.outcome.settings and not line.outcome.is_missing]
    missing = [line for line in lines if line.outcome.is_missing]
    width = min(MOST, max((len(_given(line)) for line in lines), default=0))
    return "\n".join(
        [
            f"{migration.source}: {len(became)} of {len(lines)} keys became settings",
            *_section("became", became, width),
            *_section("needs no key", needless, width),
            *_section("is not there", missing, width),
        ]
    )


def _section(heading: str, lines: Iterable[Line], width: int) -> Iterator[str]:
    lines = list(lines)
    if not lines:
        return
    yield f"  {heading}:"
    for line in lines:
        settings, remark, _ = line.outcome
        said = " ".join(map(str, settings)) if heading == "became" else ""
        is_told_below = heading == "became" and line.outcome.is_missing
        parts = (said, "" if is_told_below else remark)
        yield f"    {_given(line):<{width}}  {' | '.join(filter(None, parts))}"


def _given(line: Line) -> str:
    key, value = line.argument
    text = " ".join(shown(value).split()) if value is not True or not key.startswith("-") else ""
    sign = " " if key.startswith("-") else ": "
    return f"{key}{sign if text else ''}{text}"
