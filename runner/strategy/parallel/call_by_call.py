"""A predict hook under a pipeline: each call of the model goes through all stages, and its output to all their ranks.

A loss hook goes through the stages as a whole: each runs it as far as its own part of the model (stage_model.py). A
predict hook may do with the model what it likes: call it for each token, and decide by what it said. So all ranks run
the whole hook, with the whole output of each call.
"""

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from runner.errors import HookError
from runner.protocols import Loss, MicroBatch, World
from runner.strategy.parallel.carried import Record
from runner.strategy.parallel.stand_in import Absent
from runner.world.seeds import host_generators_kept

PLAIN = (Tensor, int, float, str, type(None))
"""What may go into a call and come out of it: whatever else a model keeps in it would be in parts on the stages."""
STRUCTURE = "structure"
Through = Callable[[MicroBatch], tuple[Record, Loss | None]]
"""Takes a call through the stages: what it should return, and on the ranks of the last stage what it does."""


def call_once(model: Module, call: Any, items: int) -> Loss:
    """Call a model; in place of a loss hook. What it returns are the outputs, by their numbers.

    Args:
        call: the arguments, those by name, and their names, by which an outline tells calls apart.
        items: ignored.
    """
    args, kwargs, _ = call
    leaves, structure = tree_flatten(model._call_impl(*args, **kwargs))  # type: ignore[no-untyped-call]
    outputs: Mapping[str, Any] = {STRUCTURE: structure, **{str(number): leaf for number, leaf in enumerate(leaves)}}
    return Loss(torch.zeros(()), 0, outputs=outputs)


@final
class Calls:
    """The calls of a model of which this rank has a stage."""

    def __init__(self, model: Module, through: Through, pipeline: World, *, last: int) -> None:
        """Let calls of the model go through all stages.

        Args:
            model: what the hook gets: the modules of this rank's stage.
            through: takes a call through the stages. Collective.
            pipeline: the ranks of all stages.
            last: the rank of the last one.
        """
        self._through, self._pipeline, self._last = through, pipeline, last
        model._compiled_call_impl = self._call  # what a module's __call__ calls, if there is one

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        _check_plain("is called with", tree_leaves((args, kwargs)), PLAIN)
        device = self._pipeline.device
        # A forward seeds generators on every stage; what the hook draws goes on as if it had not.
        with torch.random.fork_rng([] if device.type == "cpu" else [device]), host_generators_kept():
            record, result = self._through(MicroBatch((args, kwargs, list(kwargs)), 1))
        if record.result is None:
            raise HookError(
                "the predict hook's model decides by values after its last stage has begun, so that the other stages "
                "do not know what it returns. Compute it from tensors, or use strategy=single."
            )
        expected = dict(record.result.outputs)
        structure = expected.pop(STRUCTURE)
        _check_plain("returns", list(expected.values()), (*PLAIN, Absent))
        found = {} if result is None else result.outputs
        leaves = [self._received(leaf, found.get(number)) for number, leaf in expected.items()]
        return tree_unflatten(leaves, structure)

    def _received(self, expected: Any, own: Any) -> Any:
        """A leaf of the output, on every rank. Collective."""
        if not isinstance(expected, Tensor):
            return expected
        like = expected.fake if isinstance(expected, Absent) else expected
        if own is None:
            own = torch.empty(like.shape, dtype=like.dtype, device=self._pipeline.device)
        elif (own.shape, own.dtype) != (like.shape, like.dtype):
            raise HookError(
                f"the model returns a tensor {list(own.shape)} of {own.dtype}, where {list(like.shape)} of "
                f"{like.dtype} were expected from the shapes of its arguments. With a pipeline, they must "
                "not depend on values."
            )
        own = own.contiguous()
        self._pipeline.broadcast(own, source=self._last)
        return own


def _check_plain(does: str, leaves: list[Any], allowed: tuple[type, ...]) -> None:
    for leaf in leaves:
        if not isinstance(leaf, allowed):
            raise HookError(
                f"the predict hook's model {does} a {type(leaf).__name__}. Under a pipeline, only tensors, numbers and "
                "text pass between stages. Leave it out (use_cache=False in transformers), or use strategy=single."
            )
