"""The pages of the Python interface: what programs call, and the protocols between the rooms, from their docstrings."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import runner
from runner import protocols
from runner_site.markdown import page_link

__all__ = ["pages"]

DEPTH = 2
HOOKS = "hooks"
"""The module of what hooks return: a part of the page for programs."""
RECORD = (
    "runner.RunRecord",
    "runner.runs.record.Status",
    "runner.runs.record.SavedCheckpoint",
    "runner.config.failure.Failure",
    "runner.config.store.Composition",
)
"""A run's record, and what it consists of."""
RANKS = ("runner.Collectives", "runner.world.gathering.Gathered", "runner.world.collectives.Trigger")
PYTHON = """\
# Python

What programs call, all of it from `runner`: `from runner import train`. [From Python](../python.md) shows it at work.

{functions}

## A declaration, checked

{spec}

## A run, read back

{record}

## What hooks return

[Writing hooks](../hooks.md) shows them at work.

{hooks}

## What hooks and callbacks may ask for

By a parameter named `world`. [Collectives](../collectives.md) shows them at work.

{ranks}

## Loss hooks that come with the runner

{losses}

## Mixtures of experts

[Axes of parallelism](../parallel.md#expert-parallelism) shows them at work.

{experts}"""
PROTOCOLS = """\
# Protocols

What an option of each group must do, and what it meets: one page a module of `runner/protocols/`. Everything here is
imported from `runner.protocols`. Begin with [options of your own](../../extend.md) and [the design](../../design.md).

```{{toctree}}
:maxdepth: 1

{names}
```
"""


def pages(docs: Path) -> Iterator[tuple[str, str]]:
    """The name and the Markdown of each page.

    Args:
        docs: the folder with the pages that people write.
    """
    functions = [name for name in runner.__all__ if name.islower() and not name.startswith("_")]
    yield (
        "python",
        PYTHON.format(
            functions="\n\n".join(_auto("function", f"runner.{name}") for name in functions),
            spec=_auto("class", "runner.RunSpec"),
            record="\n\n".join(
                _auto("class", name, ":members:", ":undoc-members:", ":class-doc-from: class") for name in RECORD
            ),
            hooks="\n\n".join(_auto("class", f"runner.{name}", ":members:") for name in ("Data", "Loss")),
            ranks="\n\n".join(_auto("class", name, ":members:", ":class-doc-from: class") for name in RANKS),
            losses=_auto("module", "runner.losses", ":members:"),
            experts=_auto("module", "runner.model.experts", ":members:"),
        ),
    )
    names = [module.name for module in pkgutil.iter_modules(protocols.__path__) if module.name != HOOKS]
    yield "protocols/index", PROTOCOLS.format(names="\n".join(names))
    for name in names:
        yield f"protocols/{name}", "\n\n".join(_protocol(name, docs))


def _protocol(name: str, docs: Path) -> Iterator[str]:
    module = import_module(f"{protocols.__name__}.{name}")
    yield f"# {name}"
    own = f"own_{name}"
    if (docs / f"{own}.md").is_file():
        yield f"{page_link(own, depth=DEPTH)} shows one at work."
    yield _auto("module", module.__name__, ":members:", ":undoc-members:", ":member-order: bysource")


def _auto(kind: str, name: str, *options: str) -> str:
    body = "\n".join([f".. auto{kind}:: {name}", *(f"   {option}" for option in options)])
    return f"```{{eval-rst}}\n{body}\n```"
