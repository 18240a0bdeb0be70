"""Where a model is cut into the stages of a pipeline: at modules that its forward calls, in the order of definition."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, final

from runner.config.nearest import did_you_mean, listed
from runner.errors import Fault

if TYPE_CHECKING:
    from torch.nn import Module

KEY = "strategy.split"
MODULE_LISTS = ("ModuleList", "ModuleDict")
"""Containers that are never called themselves."""
CHAINS = ("ModuleList", "Sequential")
"""Containers whose members are blocks at which a stage may begin."""


@final
@dataclass(frozen=True)
class Cut:
    """A model's modules, divided among stages."""

    begins: tuple[str, ...]
    """The modules at which the stages after the first begin."""
    pieces: dict[str, int]
    """By name, in the order of definition: the largest modules that are in checkpoints and whole on one stage."""
    stateless: frozenset[str]
    """The names of such modules with nothing in checkpoints: they belong to no stage, and each computes what it can."""

    @property
    def num_stages(self) -> int:
        """How many stages there are."""
        return len(self.begins) + 1


def cut_model(model: "Module", *, num_stages: int, split: Sequence[str]) -> Cut:
    """Cut a model where `split` says, or else so that the largest stage has as few parameters as can be.

    The model has no `split_faults`.
    """
    begins = tuple(split) or _balanced(model, num_stages)
    pieces = dict(_pieces(model, begins))
    stateless = frozenset(name for name in pieces if not _has_state(model.get_submodule(name)))
    return Cut(begins, {name: stage for name, stage in pieces.items() if name not in stateless}, stateless)


def split_faults(model: "Module", *, num_stages: int, split: Sequence[str]) -> Iterator[Fault]:
    """Report names of `split` that are not modules or stand in another order, and models that cannot be balanced."""
    if not split:
        blocks = list(blocks_of(model))
        if len(blocks) < num_stages:
            rule = f"the model has {len(blocks)} blocks at which one of {num_stages} stages could begin"
            children = listed([name for name, _ in model.named_children()])
            way_out = f"Use fewer, or name {num_stages - 1} modules of your own: strategy.split. It has: {children}."
            yield Fault(key="strategy.pipeline", message=f"{rule}: members of a ModuleList or Sequential. {way_out}")
        return
    if len(split) != num_stages - 1:
        rule = f"{len(split)} modules begin {len(split) + 1} stages, but pipeline × stages_per_rank = {num_stages}"
        yield Fault(key=KEY, message=f"{rule}. Name {num_stages - 1}; the first stage begins with the model.")
    names = [name for name, _ in model.named_modules() if name]
    for name in split:
        if name not in names:
            yield Fault(key=KEY, message=f"{name}: the model has no such module.{did_you_mean(name, names)}")
        elif type(model.get_submodule(name)).__name__ in MODULE_LISTS:
            rule = f"{name}: a list of modules is never called, so no stage can begin at it."
            yield Fault(key=KEY, message=f"{rule} Name its first member: {name}.0.")
    order = [names.index(name) for name in split if name in names]
    if order != sorted(set(order)):
        rule = f"{listed(split)} are not in the order in which the model defines them"
        yield Fault(key=KEY, message=f"{rule}. Name each once, first the one that comes first.")


def _pieces(model: "Module", begins: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Each piece, with the number of begins that it or a module before it is."""
    stage = 0

    def walk(module: "Module", prefix: str) -> Iterator[tuple[str, int]]:
        nonlocal stage
        for key, child in module.named_children():
            name = f"{prefix}{key}"
            stage += name in begins
            if type(child).__name__ in MODULE_LISTS or any(begin.startswith(f"{name}.") for begin in begins):
                yield from walk(child, f"{name}.")
            else:
                yield name, stage

    yield from walk(model, "")


def _has_state(model: "Module") -> bool:
    """Whether a module has parameters or persistent buffers."""
    if any(True for _ in model.parameters()):
        return True
    return any(module._buffers.keys() - module._non_persistent_buffers_set for module in model.modules())


def blocks_of(model: "Module", prefix: str = "") -> Iterator[str]:
    """The names of the members of the outermost chains."""
    if type(model).__name__ in CHAINS:
        yield from (f"{prefix}{key}" for key, _ in model.named_children())
        return
    for key, child in model.named_children():
        yield from blocks_of(child, f"{prefix}{key}.")


def _balanced(model: "Module", num_stages: int) -> tuple[str, ...]:
    """The candidates at which the stages after the first begin."""
    candidates = list(blocks_of(model))
    sizes = [0] * (len(candidates) + 1)
    for name, cell in _pieces(model, candidates):
        sizes[cell] += sum(parameter.numel() for parameter in model.get_submodule(name).parameters())
    cells = [sizes[0] + sizes[1], *sizes[2:]]  # what comes before the first block is on its stage
    return tuple(candidates[first] for first in _even_groups(cells, num_stages)[1:])


def _even_groups(sizes: Sequence[int], num_groups: int) -> list[int]:
    """Where each of some groups of neighbours begins, so that the largest sum is as small as can be."""
    sums = [0, *accumulate(sizes)]
    # best[n]: the largest sum of the first n, in as many groups as rounds so far, and where the last of these begins.
    best: list[tuple[int, list[int]]] = [(total, [0]) for total in sums]
    for groups in range(2, num_groups + 1):
        best = [
            min(
                (max(best[at][0], sums[end] - sums[at]), [*best[at][1], at])
                for at in range(groups - 1, max(end, groups))
            )
            for end in range(len(sums))
        ]
    return best[-1][1]


def holders_of(model: "Module", cut: Cut) -> dict[str, frozenset[int]]:
    """The stages that have each parameter and buffer, by every name of it.

    A shared parameter is on every stage that uses it. What belongs to no piece, but to a module around several (a
    position embedding of the model itself), is on all stages, and so are buffers of modules that have no state.
    """
    everywhere = frozenset(range(cut.num_stages))
    of_tensor: dict[int, frozenset[int]] = {}
    names: list[tuple[str, int]] = []
    for owner, module in model.named_modules(remove_duplicate=False):
        piece = next((name for name in cut.pieces if owner == name or owner.startswith(f"{name}.")), None)
        stages = everywhere if piece is None else frozenset({cut.pieces[piece]})
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                names.append((f"{owner}.{key}" if owner else key, id(tensor)))
                of_tensor[id(tensor)] = of_tensor.get(id(tensor), frozenset()) | stages
    return {name: of_tensor[identity] for name, identity in names}
