"""The result of composing a recipe: plain containers plus the origin of each value."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.composition.lock_file import Lock
from runner.composition.origins import Origins
from runner.composition.other_options import LeftOut
from runner.composition.outline import Outline
from runner.composition.recipe import Recipe, import_roots, own_roots
from runner.config.masking import hidden, shown_override
from runner.config.parts import imports_any
from runner.config.read import GROUPS, Rule, read
from runner.config.run_spec import RunSpec
from runner.config.store import Composition, StoredSpec, dump_yaml
from runner.errors import Fault
from runner.model.check import model_faults

__all__ = ["Composed", "is_shipped"]


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A composed configuration that has not been converted to typed parts yet."""

    recipe: Recipe
    config: dict[str, Any]
    """Resolved, without Hydra's own node; a Secret in place of each value that must not be shown."""
    hydra: Mapping[str, Any]
    """Hydra's own node, unresolved."""
    origins: Origins
    left_out: tuple[LeftOut, ...] = ()
    """What files set for options that were replaced."""
    faults: tuple[Fault, ...] = ()
    """One for each override that could not be applied; `config` is the result of applying the others."""
    lock: Lock | None = None
    """What the recipe is locked to, if it is a lock file."""

    @property
    def name(self) -> str:
        """The run's name, or the recipe's file name if the configuration has no valid one."""
        name = self.config.get("name")
        return str(name) if name not in (None, "", "???") and "/" not in str(name) else self.recipe.name

    @property
    def shown_overrides(self) -> list[str]:
        """The overrides of the command line, as they are recorded."""
        return [shown_override(text) for text in self.origins.overrides]

    def outline(self) -> Outline:
        """Convert to typed parts, and summarize them. Hooks are not imported.

        Raises:
            SpecError: holds every fault found while composing and converting.
        """
        return Outline.of(self._read((), check=False), recipe=self.recipe.reference, choices=self.choices)

    def read(self, *, rules: Sequence[Rule] = (model_faults,)) -> RunSpec:
        """Convert to typed parts and check them.

        Args:
            rules: further rules. The default calls the model hook on the meta device where parts ask for that.

        Raises:
            SpecError: holds every fault found while composing and converting; or, if there is none, while checking.
        """
        return self._read(rules)

    def read_without_imports(self) -> RunSpec:
        """Like `read`, but of all that the configuration names only the runner's own parts are imported.

        What is built of others is missing in the result, as `config.read.read` says.
        """
        return self._read((), roots=own_roots(), imports=is_shipped)

    def _read(
        self,
        rules: Sequence[Rule],
        *,
        check: bool = True,
        roots: Sequence[str] | None = None,
        imports: Callable[[str], bool] = imports_any,
    ) -> RunSpec:
        return read(
            self.config,
            import_roots=import_roots(self.recipe) if roots is None else roots,
            origin=self.origins.origin,
            known_faults=self.faults,
            check=check,
            rules=rules,
            imports=imports,
        )

    @property
    def choices(self) -> dict[str, Any]:
        """The option of each group."""
        return dict(self.hydra["runtime"]["choices"])

    def stored(self) -> StoredSpec:
        """Return the form that is written to a run directory."""
        return StoredSpec(
            config=self.config,
            import_roots=import_roots(self.recipe),
            source=Composition(
                recipe=self.recipe.reference,
                overrides=self.shown_overrides,
                choices=self.choices,
                search_path=[str(path) for path in (self.recipe.directory, *self.origins.directories)],
            ),
        )

    def write_hydra_dir(self, run_dir: Path) -> None:
        """Write `.hydra/{config,hydra,overrides}.yaml`, as Hydra does for each run."""
        directory = run_dir / ".hydra"
        directory.mkdir()
        runtime = {**self.hydra["runtime"], "output_dir": str(run_dir)}
        files: dict[str, dict[str, Any] | list[str]] = {
            "config": hidden(self.config),
            "hydra": {"hydra": _shown({**self.hydra, "runtime": runtime})},
            "overrides": self.shown_overrides,
        }
        for name, content in files.items():
            (directory / f"{name}.yaml").write_text(dump_yaml(content))


def is_shipped(target: str) -> bool:
    """Whether a target is of the runner, and does not call another one that it is given."""
    return target.startswith("runner.") and target not in GROUPS.values()


def _shown(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {name: _shown(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_shown(value) for value in node]
    return shown_override(node) if isinstance(node, str) else node
