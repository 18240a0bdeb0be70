"""Applies a spec's activation checkpointing and torch.compile to a model, in place."""

from torch.nn import Module

from runner.config.of_blocks import Compiled, Recompute
from runner.config.run_spec import RunSpec
from runner.model.blocks import named_blocks


def apply_recompute(model: Module, spec: RunSpec) -> None:
    """Apply activation checkpointing to blocks, if the spec asks for it.

    Raises:
        SpecError: the model lacks the blocks that the spec names.
    """
    part = spec.activation_checkpointing
    if part.what is Recompute.NONE:
        return
    # It imports torch._dynamo: only runs that use it pay for that.
    from runner.model.recompute import recompute

    blocks = named_blocks(model, spec.blocks.classes, key="blocks.classes")
    recompute(blocks[:: part.every], selective=part.what is Recompute.SELECTIVE)


def apply_compile(model: Module, spec: RunSpec) -> None:
    """Compile the model or its blocks, if the spec asks for it.

    Call it after `apply_recompute`, so that a compiled block includes its recomputation.

    Raises:
        SpecError: the model lacks the blocks that the spec names, or torch lacks the backend or mode.
    """
    part = spec.compile
    if part.what in (Compiled.NONE, Compiled.STEP):
        return
    from runner.model.compiling import compile_in_place

    is_model = part.what is Compiled.MODEL
    compile_in_place([model] if is_model else named_blocks(model, spec.blocks.classes, key="blocks.classes"), part)
