"""What a tensor plan says of a module, and how patterns of names find modules."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch.nn import Module


class Style(StrEnum):
    """How a module is split among tensor ranks."""

    COLWISE = "colwise"
    """A linear layer by its outputs, an embedding by its features; each rank's output is its own part."""
    COLWISE_GATHER_OUTPUT = "colwise_gather_output"
    """The same, and every rank gets the whole output."""
    COLWISE_LOSS_PARALLEL = "colwise_loss_parallel"
    """The same, and the output stays split for a cross-entropy that works on the parts: for large vocabularies."""
    ROWWISE = "rowwise"
    """A linear layer by its inputs, an embedding by its rows; the outputs are summed over ranks."""
    SEQUENCE = "sequence"
    """A norm or dropout, whole on every rank; with sequence_parallel each rank takes a part of every sequence."""
    REPLICATE = "replicate"
    """Whole on every rank; with sequence_parallel its output is split by sequence."""
    DIVIDE = "divide"
    """Not a module but an attribute of one: a whole number that is divided by the ranks, such as that of heads."""


class Planned(NamedTuple):
    """A line of a tensor plan."""

    style: Style
    parts: int = 1
    """How many matrices lie side by side in a weight that is split by its outputs: 3 for query, key and value."""


OF_TRANSFORMERS = {
    "colwise_rep": "colwise_gather_output",
    "embedding_rowwise": "rowwise",
    "embedding_colwise": "colwise_gather_output",
    "packed_colwise": "colwise:2",
    "sequence_parallel": "sequence",
    "rowwise_rep": "rowwise",
}
"""Names that transformers' own plans have for what is called otherwise here."""


@runtime_checkable
class HasTensorPlan(Protocol):
    """A model that brings a tensor plan, as models of transformers do."""

    _tp_plan: Mapping[str, str] | None


def planned(text: str) -> Planned:
    """Read a line of a plan: a style, and for colwise perhaps the number of parts: `colwise:3`.

    Raises:
        ValueError: there is no such style.
    """
    name, mark, parts = OF_TRANSFORMERS.get(text, text).partition(":")
    style = Style(name)
    if not mark:
        return Planned(style)
    if not name.startswith(Style.COLWISE) or not parts.isdecimal() or int(parts) < 1:
        raise ValueError(f"{text!r} is not a style with a number of parts, such as colwise:3")
    return Planned(style, int(parts))


def plan_of(model: "Module", plan: Mapping[str, str]) -> Mapping[str, str]:
    """The plan of the recipe, or the model's own if the recipe names none."""
    if plan or not isinstance(model, HasTensorPlan):
        return plan
    return model._tp_plan or {}


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names this module; `*` stands for any part of a name between two dots."""
    ours, theirs = pattern.split("."), name.split(".")
    return len(ours) == len(theirs) and all(map(fnmatchcase, theirs, ours))


def pattern_of(name: str) -> str:
    """The name of a module with `*` for the numbers in it."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def matching(model: "Module", pattern: str) -> "Iterator[tuple[str, Module]]":
    """The modules that a pattern names."""
    return ((name, module) for name, module in model.named_modules() if name and matches(pattern, name))


def is_transposed(module: "Module") -> bool:
    """Whether a layer keeps its weight [inputs, outputs]: transformers' Conv1D, which GPT-2 is made of."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def output_dim(module: "Module") -> int:
    """The dimension of a module's weight that its outputs lie along."""
    from torch.nn import Embedding

    return 1 if is_transposed(module) or isinstance(module, Embedding) else 0


def attributes(model: "Module", pattern: str) -> "Iterator[tuple[Module, str]]":
    """The whole numbers that a pattern names: owner and attribute."""
    path, _, wanted = pattern.rpartition(".")
    owners = [module for _, module in matching(model, path)] if path else [model]
    for module in owners:
        for name, value in vars(module).items():
            if type(value) is int and matches(wanted, name):
                yield module, name


def tied_parameters(model: "Module") -> dict[int, list[str]]:
    """All names of each parameter, by its id; a parameter that several modules share has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names
