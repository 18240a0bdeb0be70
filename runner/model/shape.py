"""What a spec asks to be done to a model in place: activation checkpointing and torch.compile."""

from torch.nn import Module

from runner.config.run_spec import Compiled, Recompute, RunSpec
from runner.model.blocks import named_blocks


def apply_recompute(model: Module, spec: RunSpec) -> None:
    """Let blocks recompute their activations in backward, if the spec asks for it.

    Raises:
        SpecError: blocks are asked for that the model does not have.
    """
    part = spec.activation_checkpointing
    if part.what is Recompute.NONE:
        return
    # torch._dynamo and what comes with it: only who asks for it pays.
    from runner.model.recompute import recompute

    blocks = named_blocks(model, spec.blocks.classes, key="blocks.classes")
    recompute(blocks[:: part.every], selective=part.what is Recompute.SELECTIVE)


def apply_compile(model: Module, spec: RunSpec) -> None:
    """Let the model, or its blocks, go through compiled graphs, if the spec asks for it.

    After `apply_recompute`: a compiled block holds its own recomputation.

    Raises:
        SpecError: blocks are asked for that the model does not have, or a compiler that is not there.
    """
    part = spec.compile
    if part.what is Compiled.NONE:
        return
    from runner.model.compiling import compile_in_place

    is_whole = part.what is Compiled.MODEL
    compile_in_place([model] if is_whole else named_blocks(model, spec.blocks.classes, key="blocks.classes"), part)
