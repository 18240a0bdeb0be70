"""What composing a recipe gives, in plain containers, with where each value came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.compose.origins import Origins
from runner.compose.recipe import Recipe, import_roots
from runner.config.read import read
from runner.config.run_spec import RunSpec
from runner.config.store import Composition, StoredSpec, dump_yaml
from runner.errors import Fault
from runner.model.check import model_faults

__all__ = ["Composed"]


@dataclass(frozen=True, kw_only=True)
class Composed:
    """One configuration, not yet read."""

    recipe: Recipe
    config: dict[str, Any]
    """Resolved, without Hydra's own node."""
    hydra: Mapping[str, Any]
    """Hydra's own node, unresolved."""
    sources: Origins
    faults: tuple[Fault, ...] = ()
    """What kept overrides from being applied; `config` is what the others make."""

    @property
    def name(self) -> str:
        """Of the run; the recipe's file name until the recipe is known to give one."""
        name = self.config.get("name")
        return str(name) if name not in (None, "", "???") and "/" not in str(name) else self.recipe.name

    def read(self) -> RunSpec:
        """Typed and checked.

        Raises:
            SpecError: every fault, of composing and of reading.
        """
        roots = import_roots(self.recipe)
        return read(
            self.config,
            import_roots=roots,
            origin=self.sources.origin,
            known_faults=self.faults,
            rules=[model_faults],
        )

    def stored(self) -> StoredSpec:
        """As it is frozen in a run's directory."""
        return StoredSpec(
            config=self.config,
            import_roots=import_roots(self.recipe),
            source=Composition(
                recipe=str(self.recipe.path),
                overrides=list(self.sources.overrides),
                choices=dict(self.hydra["runtime"]["choices"]),
                search_path=[str(path) for path in (self.recipe.directory, *self.sources.directories)],
            ),
        )

    def write_hydra_dir(self, run_dir: Path) -> None:
        """Leave `.hydra/{config,hydra,overrides}.yaml` behind, as Hydra itself does for a run."""
        directory = run_dir / ".hydra"
        directory.mkdir()
        runtime = {**self.hydra["runtime"], "output_dir": str(run_dir)}
        pages: dict[str, dict[str, Any] | list[str]] = {
            "config": self.config,
            "hydra": {"hydra": {**self.hydra, "runtime": runtime}},
            "overrides": list(self.sources.overrides),
        }
        for name, page in pages.items():
            (directory / f"{name}.yaml").write_text(dump_yaml(page))
