"""What a run is about to do, as far as its declaration says before hooks are imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.counted import counted
from runner.config.run_spec import RunSpec

__all__ = ["Outline"]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The parts of a declaration that a person wants to see at once, in plain values."""

    name: str
    recipe: str
    """Its address, or its file."""
    steps: int
    items: int
    """Of one step."""
    nodes: int
    processes: int
    """On each node."""
    choices: dict[str, Any]
    """The option of each group."""
    directory: str | None
    """What the declaration names as the run's directory."""

    @classmethod
    def of(cls, spec: RunSpec, *, recipe: str, choices: dict[str, Any]) -> "Outline":
        """The outline of a declaration."""
        return cls(
            name=spec.name,
            recipe=recipe,
            steps=spec.run.steps,
            items=spec.batch.items,
            nodes=spec.launch.nodes,
            processes=spec.hardware.processes,
            choices=choices,
            directory=spec.run.dir,
        )

    def __str__(self) -> str:
        ranks = counted(self.processes, "process", "processes")
        if self.nodes > 1:
            ranks = f"{ranks} on each of {self.nodes} nodes"
        options = ", ".join(f"{group}={self.choices.get(group)}" for group in ("strategy", "precision"))
        steps = counted(self.steps, "step", "steps")
        return f"{self.name}: {steps} of {self.items} items | {ranks} | {options} | {_from_here(self.recipe)}"


def _from_here(recipe: str) -> str:
    """A file in the working directory by its path from there, anything else as it is."""
    path, here = Path(recipe), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else recipe
