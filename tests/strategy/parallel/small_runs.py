"""Small runs of the recipes pydoc_lm and moe_pydoc, and the overrides that put them on ranks along axes."""

from importlib.util import find_spec

import pytest

from tests.strategy.parallel.small_gpt import GPT

SIZES = ["model.width=16", "model.depth=2", "model.heads=4"]
MODELS = {
    "gpt": ["pydoc_lm", *SIZES],
    "experts": ["moe_pydoc", *SIZES, "model.hidden=16", "model.experts=4", "loss.balance=0.1", "loss.router_z=0.01"],
}
COMMON = [
    *("hardware=cpu", "hardware.oversubscribe=true", "log.every_steps=1", "blocks.classes=[Block]"),
    *("batch.items=12", "clip.norm=0.5", "optimizer.lr=1e-3"),
    "optimizer.eps=1e-4",  # of rounding, where a gradient is nearly zero, AdamW would make steps of the full rate
]
PLAIN: dict[str, tuple[int, list[str]]] = {
    "single": (1, ["strategy=single"]),
    "ddp": (2, ["strategy=ddp"]),
    "fsdp": (2, ["strategy=fsdp"]),
    "deepspeed_zero3": (2, ["strategy=deepspeed_zero3"]),
}
PLAN = "{" + ", ".join(f"{name}: '{style}'" for name, style in GPT.plan.items()) + "}"


def axes(ranks: int, *, shard: int | str = "auto", **sizes: int) -> tuple[int, list[str]]:
    """Ranks and overrides of these sizes; what is not named is of size 1."""
    others = {axis: sizes.get(axis, 1) for axis in ("replicate", "tensor", "context", "expert", "pipeline")}
    given = [f"strategy.{axis}={size}" for axis, size in {**others, "shard": shard}.items()]
    plan = f"++strategy.tensor_plan={PLAN if 'tensor' in sizes else '{}'}"
    return ranks, ["strategy=parallel", *given, plan]


LAYOUTS = {
    "gpt": PLAIN
    | {
        "tensor 2": axes(2, tensor=2),
        "tensor 4": axes(4, tensor=4),
        "tensor 2 × shard 2": axes(4, tensor=2),
        "tensor 2 × replicate 2": axes(4, tensor=2, shard=1, replicate=2),
        "context 2": axes(2, context=2),
        "context 2 × shard 2": axes(4, context=2),
        "pipeline 2": axes(2, pipeline=2),
        "pipeline 2 × tensor 2": axes(4, pipeline=2, tensor=2),
        "pipeline 2 × shard 2": axes(4, pipeline=2),
        "pipeline 2 × context 2": axes(4, pipeline=2, context=2),
    },
    "experts": PLAIN
    | {
        "expert 2": axes(2, expert=2),
        "expert 2 × shard 2": axes(4, expert=2),
        "expert 2 × pipeline 2": axes(4, expert=2, pipeline=2),
        "expert 2 × context 2": axes(4, expert=2, context=2),
    },
}


def placed(model: str, layout: str) -> list[str]:
    """The overrides of a layout."""
    if layout.startswith("deepspeed") and find_spec("deepspeed") is None:
        pytest.skip("needs the extra deepspeed")
    ranks, overrides = LAYOUTS[model][layout]
    items = 1 if layout == "expert 2 × shard 2" else 2  # whose four ranks read other items each
    return [f"hardware.processes={ranks}", f"batch.micro_items={items}", *overrides]
