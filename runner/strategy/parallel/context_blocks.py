"""Where sequences are divided among ranks, found in the model and checked before launch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from runner.config.nearest import listed
from runner.errors import Fault
from runner.model.blocks import own_classes
from runner.strategy.parallel.expert_modules import expert_modules
from runner.strategy.parallel.split import blocks_of
from runner.strategy.parallel.styles import Style, plan_of, planned

if TYPE_CHECKING:
    from torch.nn import Module


def context_blocks(model: "Module", classes: Sequence[str]) -> "list[Module]":
    """The modules at which sequences may be divided: the first that is called divides them.

    Args:
        classes: of blocks; empty = those that the model names, or else the members of its outermost lists of modules.
    """
    names = classes or own_classes(model)
    if names:
        return [module for module in model.modules() if type(module).__name__ in names]
    return [model.get_submodule(name) for name in blocks_of(model)]


def context_faults(
    model: "Module", *, classes: Sequence[str], plan: Mapping[str, str] | None, compiled: Sequence[str] | None = None
) -> Iterator[Fault]:
    """Report a model without blocks, a tensor plan whose outputs are split in two ways, and compiled blocks of experts.

    Args:
        classes: as in `context_blocks`.
        plan: how weights are split among tensor ranks; None = not at all.
        compiled: patterns of the names of experts in compiled blocks; None = blocks are not compiled.
    """
    if compiled is not None and any(True for _ in expert_modules(model, compiled)):
        rule = "blocks does not work with strategy.context and experts"
        way_out = "torch.compile cannot pass divided sequences that are flattened to tokens. Use none."
        yield Fault(key="compile.what", message=f"{rule}: {way_out}")
    if not context_blocks(model, classes):
        rule = "sequences are divided where the first block begins, but the model has no lists of modules"
        kinds = listed(dict.fromkeys(type(module).__name__ for module in model.children()))
        way_out = f"Name the classes of its blocks in blocks.classes. It has: {kinds}."
        yield Fault(key="strategy.context", message=f"{rule}. {way_out}")
    for pattern, text in ({} if plan is None else plan_of(model, plan)).items():
        try:
            style = planned(text).style
        except ValueError:
            continue  # the plan's own check reports it
        if style is Style.COLWISE_LOSS_PARALLEL:
            rule = f"{pattern}: {style} splits logits that strategy.context has divided already. Use"
            yield Fault(key="strategy.tensor_plan", message=f"{rule} {Style.COLWISE_GATHER_OUTPUT}.")
