"""The formats of a prediction's file, chosen by its suffix."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SUFFIXES", "Columns", "Format", "format_fault", "format_of"]

Columns = Mapping[str, "Tensor | Sequence[Any]"]
"""The outputs of some items, by name: tensors [items, ...] on the host, or lists with one entry per item."""
SUFFIXES = {
    ".jsonl": "runner.prediction.json_lines",
    ".parquet": "runner.prediction.parquet",
    ".safetensors": "runner.prediction.safetensors_file",
}
NEEDS = {".parquet": ("pyarrow", "pip install 'hydra-runner[parquet]'")}


class Format(Protocol):
    """A module that writes predictions."""

    def write(self, path: Path, batches: Sequence[Columns]) -> None:
        """Write a new file with the items of these batches, in their order, and flush it to the disk.

        Raises:
            HookError: an output cannot be written in this format.
        """
        ...

    def join(self, parts: Sequence[Path], path: Path) -> None:
        """Write a new file with the items of all parts, in their order, and flush it to the disk.

        Raises:
            HookError: the parts do not have the same columns.
        """
        ...


def format_fault(path: Path) -> str:
    """Why a file of this name cannot be written; empty if it can."""
    if path.suffix not in SUFFIXES:
        return f"{path.name} must end in {', '.join(SUFFIXES)}: the suffix chooses the format."
    module, install = NEEDS.get(path.suffix, ("", ""))
    return (
        f"{path.suffix} needs {module}, which is not installed: {install}" if module and not find_spec(module) else ""
    )


def format_of(path: Path) -> Format:
    """The format of a file."""
    return cast("Format", import_module(SUFFIXES[path.suffix]))
