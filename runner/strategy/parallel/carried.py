"""What passes from stage to stage of a pipeline, and where a tensor that is needed on a later stage comes from."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec

from runner.errors import HookError


class Attribute(NamedTuple):
    """An attribute of a module, or of one inside it, that its forward sets to a tensor: a router's own loss, say."""

    path: str
    name: str

    def get(self, module: Module) -> Any:
        """Its value."""
        return vars(module.get_submodule(self.path))[self.name]

    def set(self, module: Module, value: Any) -> None:
        """Give it a value."""
        setattr(module.get_submodule(self.path), self.name, value)


def tensor_attributes(module: Module) -> dict[Attribute, Tensor]:
    """The tensors that a module and those inside it have as plain attributes."""
    return {
        Attribute(path, name): value
        for path, one in module.named_modules()
        for name, value in vars(one).items()
        if isinstance(value, Tensor)
    }


class Source(NamedTuple):
    """A tensor that a module returned, or kept as an attribute."""

    piece: str
    call: int
    leaf: int


class Carried(NamedTuple):
    """A tensor that one stage sends to the next."""

    at: int | Source
    """A leaf of the arguments of the module at which the next stage begins, by its number; or what a module returned
    that a later stage uses otherwise."""
    shape: tuple[int, ...]
    """The whole shape, which this rank may have a part of."""
    dtype: torch.dtype
    trained: bool
    """Whether a gradient comes back."""
    part: tuple[int, ...] | None = None
    """If it is split by sequence among ranks, the shape of this rank's part, which is what passes."""


class Output(NamedTuple):
    """What a module returned, and what it kept as attributes."""

    leaves: list[Any]
    """Absent tensors, and whatever else there was: what it returned, then its attributes."""
    spec: TreeSpec
    """Of what it returned."""
    kept: list[Attribute]

    @property
    def is_one_leaf(self) -> bool:
        """Whether it returned one tensor, and kept nothing."""
        return self.spec.is_leaf() and not self.kept


@dataclass(frozen=True)
class Record:
    """What a run of the hook found."""

    carried: list[list[Carried]] = field(default_factory=list)
    """The tensors that each stage after the first receives."""
    outputs: dict[str, list[Output]] = field(default_factory=dict)
    """What each call of a piece returned, by its name."""
    sources: set[Source] = field(default_factory=set)
    """All that is carried because a later stage uses it otherwise than as arguments where it begins."""
    result: Any = None
    """What the hook returned, with absent tensors; None if it looked at values after the last stage had begun."""


Origin = frozenset[Source] | str
"""What modules have returned that a tensor can be computed from again, on any stage; or why it cannot."""


@final
class Progress:
    """How far the forward is that all stages run, and what its later stages have used of earlier ones."""

    def __init__(self, num_stages: int) -> None:
        self._last = num_stages - 1
        self.start()

    def start(self) -> None:
        """Begin with the first stage."""
        self.stage = 0
        self.inside = ""
        """The module with weights whose forward is running."""
        self.needed: dict[Source, int] = {}
        """The last stage that uses what a module of another stage has returned."""
        self.changed: dict[Source, str] = {}
        """What has been changed in place, by which function."""

    @property
    def is_last(self) -> bool:
        """Whether the last stage has begun."""
        return self.stage == self._last

    def need(self, origin: Origin, what: str) -> None:
        """Note that the stage that has been reached uses a tensor of an earlier one.

        Raises:
            HookError: the tensor cannot reach it.
        """
        if isinstance(origin, str):
            raise HookError(
                f"{what}, and {origin}. Pass it through the blocks, or let the stages begin elsewhere: strategy.split."
            )
        for source in origin:
            self.needed[source] = max(self.stage, self.needed.get(source, 0))

    def note_changed(self, origins: Iterable[Origin], function: str) -> None:
        """Note that a function has changed tensors of these origins in place."""
        for origin in origins:
            if not isinstance(origin, str):
                self.changed |= dict.fromkeys(origin, function)

    def check_unchanged(self) -> None:
        """Raise HookError if something that a later stage needs has been changed in place."""
        for source in self.needed:
            if source in self.changed:
                raise HookError(
                    f"{self.changed[source]} changes in place what {source.piece} returned, which a later stage of "
                    "the pipeline uses as well. Make a new tensor, or let the stages begin elsewhere: strategy.split."
                )


def origin_of(origins: list[Origin], progress: Progress, *, drawn: bool) -> Origin:
    """Where a result comes from, given the same of what it is computed from."""
    if progress.inside:
        return f"{progress.inside} does not return it"
    if drawn:
        return "it is drawn at random outside the modules that have weights, so that no other stage can compute it"
    reason = next((one for one in origins if isinstance(one, str)), None)
    return reason or frozenset[Source]().union(*(one for one in origins if not isinstance(one, str)))


def add_sources(
    record: Record,
    needed: Mapping[Source, int],
    stage_of: Mapping[str, int],
    carried: Callable[[Source, Any], Carried],
) -> None:
    """Let what modules have returned pass through all stages up to the last one that needs it.

    Args:
        needed: the last stage that uses each.
        stage_of: the stage of a piece.
        carried: how an absent tensor passes.
    """
    for source in sorted(needed):
        leaf = record.outputs[source.piece][source.call].leaves[source.leaf]
        record.sources.add(source)
        for stage in range(stage_of[source.piece] + 1, needed[source] + 1):
            record.carried[stage - 1].append(carried(source, leaf))


class Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether a function draws random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.any = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        self.any |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))
