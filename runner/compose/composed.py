"""The result of composing a recipe: plain containers plus the origin of each value."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.compose.origins import Origins
from runner.compose.outline import Outline
from runner.compose.recipe import Recipe, import_roots
from runner.config.read import read
from runner.config.run_spec import RunSpec
from runner.config.store import Composition, StoredSpec, dump_yaml
from runner.errors import Fault
from runner.model.check import model_faults

__all__ = ["Composed"]


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A composed configuration that has not been converted to typed parts yet."""

    recipe: Recipe
    config: dict[str, Any]
    """Resolved, without Hydra's own node."""
    hydra: Mapping[str, Any]
    """Hydra's own node, unresolved."""
    origins: Origins
    faults: tuple[Fault, ...] = ()
    """One for each override that could not be applied; `config` is the result of applying the others."""

    @property
    def name(self) -> str:
        """The run's name, or the recipe's file name if the configuration has no valid one."""
        name = self.config.get("name")
        return str(name) if name not in (None, "", "???") and "/" not in str(name) else self.recipe.name

    def outline(self) -> Outline:
        """Convert to typed parts, and summarize them. Hooks are not imported.

        Raises:
            SpecError: holds every fault found while composing and converting.
        """
        return Outline.of(self._read(check=False), recipe=self.recipe.path, choices=self._choices)

    def read(self) -> RunSpec:
        """Convert to typed parts and check them.

        Raises:
            SpecError: holds every fault found while composing and converting; or, if there is none, while checking.
        """
        return self._read(check=True)

    def _read(self, *, check: bool) -> RunSpec:
        return read(
            self.config,
            import_roots=import_roots(self.recipe),
            origin=self.origins.origin,
            known_faults=self.faults,
            check=check,
            rules=[model_faults],
        )

    @property
    def _choices(self) -> dict[str, Any]:
        """The option of each group."""
        return dict(self.hydra["runtime"]["choices"])

    def stored(self) -> StoredSpec:
        """Return the form that is written to a run directory."""
        return StoredSpec(
            config=self.config,
            import_roots=import_roots(self.recipe),
            source=Composition(
                recipe=str(self.recipe.path),
                overrides=list(self.origins.overrides),
                choices=self._choices,
                search_path=[str(path) for path in (self.recipe.directory, *self.origins.directories)],
            ),
        )

    def write_hydra_dir(self, run_dir: Path) -> None:
        """Write `.hydra/{config,hydra,overrides}.yaml`, as Hydra does for each run."""
        directory = run_dir / ".hydra"
        directory.mkdir()
        runtime = {**self.hydra["runtime"], "output_dir": str(run_dir)}
        files: dict[str, dict[str, Any] | list[str]] = {
            "config": self.config,
            "hydra": {"hydra": {**self.hydra, "runtime": runtime}},
            "overrides": list(self.origins.overrides),
        }
        for name, content in files.items():
            (directory / f"{name}.yaml").write_text(dump_yaml(content))
