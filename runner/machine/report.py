"""All that `runner env` tells, as plain values, and as text."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.machine.devices import accelerators, cpu
from runner.machine.limits import container, disk_free_gib, process_limits
from runner.machine.links import device_links, interfaces, names, shared_memory
from runner.machine.options import option_faults
from runner.machine.versions import libraries, versions

__all__ = ["as_text", "collect"]

FORMAT = 1


def collect(directory: Path) -> dict[str, Any]:
    """The report.

    Args:
        directory: whose runs would go below it.
    """
    return {
        "format": FORMAT,
        "versions": versions(),
        "libraries": libraries(),
        "cpu": cpu(),
        "accelerators": accelerators(),
        "interfaces": interfaces(),
        "device_links": device_links(),
        "names": names(),
        "shared_memory": shared_memory(),
        "limits": process_limits(),
        "container": container(),
        "disk_free_gib": disk_free_gib(directory),
        "options": option_faults(),
    }


def as_text(report: Mapping[str, Any]) -> str:
    """The report for people: a paragraph for each section."""
    sections = {key: value for key, value in report.items() if key not in ("format", "options")}
    paragraphs = [_paragraph(key, value) for key, value in sections.items()]
    return "\n\n".join([*paragraphs, *_options(report["options"])])


def _paragraph(key: str, value: Any) -> str:
    title = key.replace("_", " ")
    if isinstance(value, Mapping):
        width = max(map(len, value), default=0)
        return "\n".join([title, *(f"  {name:<{width}}  {_shown(one)}" for name, one in value.items())])
    if isinstance(value, Sequence) and not isinstance(value, str):
        lines = [", ".join(f"{name} {_shown(one)}" for name, one in row.items()) for row in value]
        return "\n".join([title, *(f"  {line}" for line in lines or ["none"])])
    return f"{title}  {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _options(options: Mapping[str, Mapping[str, list[str]]]) -> Iterator[str]:
    width = max(map(len, options))
    usable = {group: [name for name, faults in found.items() if not faults] for group, found in options.items()}
    lines = [f"  {group:<{width}}  {', '.join(found) or 'none'}" for group, found in usable.items()]
    yield "\n".join(["options that can run here", *lines])
    missing = [
        f"  {group}={name}: {' '.join(faults)}"
        for group, found in options.items()
        for name, faults in found.items()
        if faults
    ]
    if missing:
        yield "\n".join(["what the others need", *missing])
