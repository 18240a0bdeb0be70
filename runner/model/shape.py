"""What a spec asks to be done to a model as its hook returned it, before any strategy places it."""

from torch.nn import Module

from runner.config.run_spec import Compiled, Recompute, RunSpec
from runner.model.blocks import named_blocks


def shape(model: Module, spec: RunSpec) -> None:
    """Recompute and compile in place, in this order: a compiled block holds its own recomputation.

    Raises:
        SpecError: blocks are asked for that the model does not have, or a compiler that is not there.
    """
    recomputed, compiled = spec.activation_checkpointing, spec.compile
    if recomputed.what is not Recompute.NONE:
        # torch._dynamo and what comes with it: only who asks for it pays.
        from runner.model.recompute import recompute

        blocks = named_blocks(model, spec.blocks.classes, key="blocks.classes")
        recompute(blocks[:: recomputed.every], selective=recomputed.what is Recompute.SELECTIVE)
    if compiled.what is not Compiled.NONE:
        from runner.model.compiling import compile_in_place

        is_whole = compiled.what is Compiled.MODEL
        blocks = [model] if is_whole else named_blocks(model, spec.blocks.classes, key="blocks.classes")
        compile_in_place(blocks, compiled)
