"""Checks a tensor plan against the model, before launch."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from runner.config.nearest import did_you_mean, listed
from runner.errors import Fault
from runner.strategy.parallel.styles import (
    Planned,
    Style,
    attributes,
    is_transposed,
    matching,
    output_dim,
    pattern_of,
    plan_of,
    planned,
    tied_parameters,
)

if TYPE_CHECKING:
    from torch.nn import Module

KEY = "strategy.tensor_plan"


def plan_faults(model: "Module", plan: Mapping[str, str], *, ranks: int) -> Iterator[Fault]:
    """Report patterns that name nothing, styles that do not fit a module, and widths that the ranks do not divide."""
    lines = plan_of(model, plan)
    if not lines:
        rule = f"strategy.tensor={ranks} needs a plan, and {type(model).__name__} brings none of its own."
        names = listed(dict.fromkeys(pattern_of(name) for name, _ in _leaves(model)))
        yield Fault(key=KEY, message=f"{rule} Name how each module is split; it has: {names}.")
    readable: dict[str, Planned] = {}
    for pattern, text in lines.items():
        try:
            readable[pattern] = planned(text)
        except ValueError:
            rule = f"{pattern}: {text}: there is no such style.{did_you_mean(text, list(Style))}"
            yield Fault(key=KEY, message=f"{rule} There are: {listed(Style)}.")
            continue
        yield from _line_faults(model, pattern, readable[pattern], ranks=ranks)
    yield from _tied_faults(model, readable)


def _line_faults(model: "Module", pattern: str, line: Planned, *, ranks: int) -> Iterator[Fault]:
    if line.style is Style.DIVIDE:
        found = [(name, vars(owner)[name]) for owner, name in attributes(model, pattern)]
        if not found:
            rule = f"{pattern}: no module has a whole number of this name."
            yield Fault(key=KEY, message=f"{rule} divide takes the name of a module's attribute, such as heads.")
        for value in sorted({value for _, value in found if value % ranks}):
            yield Fault(key=KEY, message=f"{pattern}: {value} is not divisible by strategy.tensor={ranks}.")
        return
    modules = list(matching(model, pattern))
    if not modules:
        names = list(dict.fromkeys(pattern_of(name) for name, _ in model.named_modules() if name))
        rule = f"{pattern}: the model has no such module.{did_you_mean(pattern, names)}"
        leaves = listed(dict.fromkeys(pattern_of(name) for name, _ in _leaves(model)))
        yield Fault(key=KEY, message=f"{rule} It has: {leaves}.")
    told = set()
    for name, module in modules:
        if (message := _misfit(model, name, module, line, ranks)) and message not in told:
            told.add(message)
            yield Fault(key=KEY, message=f"{pattern}: {message}")


def _tied_faults(model: "Module", lines: Mapping[str, Planned]) -> Iterator[Fault]:
    """Report parameters that several modules share but that these split in different ways."""
    dims: dict[str, int] = {}
    for pattern, line in lines.items():
        by_columns = line.style.startswith(Style.COLWISE)
        if by_columns or line.style is Style.ROWWISE:
            for name, module in matching(model, pattern):
                dim = output_dim(module) if by_columns else 1 - output_dim(module)
                dims |= {f"{name}.{key}": dim for key, _ in module.named_parameters(recurse=False)}
    for names in tied_parameters(model).values():
        if len({dims.get(name) for name in names}) > 1:
            rule = f"{' and '.join(names)} are one weight, but the plan splits them in different ways, or only one."
            yield Fault(key=KEY, message=f"{rule} Use rowwise for the embedding and colwise for the head, or neither.")


def _misfit(model: "Module", name: str, module: "Module", line: Planned, ranks: int) -> str:
    """Why a module cannot be split so, if it cannot."""
    from torch import nn

    if line.style in (Style.SEQUENCE, Style.REPLICATE):
        return ""
    kind = type(module).__name__
    if not (isinstance(module, nn.Linear | nn.Embedding) or is_transposed(module)):
        return f"{line.style} splits linear layers and embeddings, but this is a {kind}. Use sequence or replicate."
    weight = module.get_parameter("weight")
    by_columns = line.style.startswith(Style.COLWISE)
    dim = output_dim(module) if by_columns else 1 - output_dim(module)
    width, pieces = weight.shape[dim], ranks * line.parts
    if width % pieces:
        parts = f" × {line.parts} parts" if line.parts > 1 else ""
        nearest = ", ".join(str(n) for n in range(2, width + 1) if width % (n * line.parts) == 0 and n <= 16)
        return f"its width {width} is not divisible by strategy.tensor={ranks}{parts}. It is by {nearest or 'none'}."
    parent = model.get_submodule(name.rpartition(".")[0])
    head = vars(parent).get("head_dim")
    if by_columns and type(head) is int and (width // pieces) % head:
        return f"its width {width} is {width // line.parts // head} heads, which {ranks} ranks do not divide."
    return ""


def _leaves(model: "Module") -> "Iterator[tuple[str, Module]]":
    return ((name, module) for name, module in model.named_modules() if name and not any(module.children()))
