"""A stage's part of a model: the user's modules, of which those of other stages have no weights and compute nothing.

The loss hook is called with it as with the whole model. Its forward runs from the beginning on every stage: modules of
earlier stages return absent tensors; where the stage begins, what has arrived takes their place; and where the next
stage begins, the forward ends.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_leaves

from runner.errors import HookError
from runner.protocols import Loss, MicroBatch
from runner.strategy.common.forward_loss import outputs_in_evaluation
from runner.strategy.parallel.outline import Hook, Outline, Record, called_again, hide, output_again
from runner.strategy.parallel.split import Cut
from runner.strategy.parallel.stand_in import Absent, absent_leaves, fake_of, present, replace_absent
from runner.world.seeds import mix, seed_rank, seed_torch

Change = Callable[[Any, Any], tuple[Any, Any]]
"""From the arguments of a module to those that it gets instead."""


class _Ended(BaseException):
    """The next stage begins: carries what it receives."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors


@final
class Visit:
    """One forward of a stage."""

    def __init__(self, record: Record, arrived: Sequence[Tensor], seed: int) -> None:
        self.record = record
        self.arrived = arrived
        self.seed = seed
        self.begun = False
        self.calls: Counter[str] = Counter()


@final
class StageModel(Module):
    """The loss hook and a stage's part of the model as one module, which can be sharded."""

    def __init__(self, model: Module, index: int, cut: Cut, loss: Hook, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.index = index
        self.is_first, self.is_last = index == 0, index == cut.num_stages - 1
        self._cut, self._loss, self._device = cut, loss, device
        self._visits: list[Visit] = []  # the one that is going on, if there is one

    def forward(self, micro_batch: MicroBatch, visit: Visit) -> Any:
        """What the next stage receives or, on the last stage, what the loss hook returns.

        Raises:
            HookError: the hook uses what other stages have.
        """
        self._visits.append(visit)
        visit.begun = self.is_first
        seed_rank(visit.seed, self._device)
        try:
            with _all_parameters(self.model):
                result = self._loss(self.model, micro_batch.batch, micro_batch.items)
        except _Ended as end:
            return end.tensors
        finally:
            self._visits.clear()
        if not (visit.begun and self.is_last):
            raise HookError("the loss hook returned before all stages of the pipeline had begun.")
        _check_present(result)
        return outputs_in_evaluation(result)

    def install(self, held: Mapping[str, bool]) -> None:
        """Give the modules their part in a forward: last, so that nothing else replaces what it sets.

        Args:
            held: whether this stage has the weights of a piece, by its name.
        """
        for name, module in self.model.named_modules(remove_duplicate=False):
            if not held.get(name, True):
                module._compiled_call_impl = self._absent(name)  # instead of the module's forward and all hooks
            elif name in held:
                _before(module, lambda args, kwargs: present((args, kwargs)))
            if not self.is_first and name == self._cut.begins[self.index - 1]:
                _before(module, self._begin(name))
            if not self.is_last and name == self._cut.begins[self.index]:
                _before(module, self._end(name))

    def _now(self) -> Visit:
        if not self._visits:
            raise HookError("a stage of a pipeline can only be called by the loss hook.")
        return self._visits[0]

    def _begin(self, name: str) -> Change:
        def begin(args: Any, kwargs: Any) -> Any:
            visit = self._now()
            if visit.begun:
                raise HookError(called_again(name, self.index))
            tensors = iter(visit.arrived)

            def take(leaf: Absent) -> Tensor:
                leaf.arrived = next(tensors)
                return leaf.arrived

            filled = replace_absent((args, kwargs), take)
            assert next(tensors, None) is None, visit.record.carried[self.index - 1]
            visit.begun = True
            seed_torch(mix(visit.seed, self.index), self._device)  # dropout differs from that of the other stages
            return filled

        return begin

    def _end(self, name: str) -> Change:
        def end(args: Any, kwargs: Any) -> Any:
            visit = self._now()
            if not visit.begun:
                raise HookError(f"{name}, at which stage {self.index + 1} begins, is called before stage {self.index}.")
            leaves, tensors = tree_leaves(present((args, kwargs))), []
            for one in visit.record.carried[self.index]:
                tensor = leaves[one.number]
                if isinstance(tensor, Absent) or (tuple(tensor.shape), tensor.dtype) != (one.shape, one.dtype):
                    raise HookError(
                        f"{name} gets a tensor {list(tensor.shape)} of {tensor.dtype}, where {list(one.shape)} of "
                        f"{one.dtype} were expected from the shapes of the batch: stage {self.index} of the pipeline "
                        "must not depend on values in its shapes."
                    )
                assert one.trained or not tensor.requires_grad, f"{name}: no gradient would come back"
                tensors.append(tensor.clone() if tensor._is_view() else tensor)  # zero-bubble detaches it in place
            raise _Ended(tuple(tensors))

        return end

    def _absent(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            visit = self._now()
            outputs = visit.record.outputs.get(name, ())
            number = visit.calls[name]
            if number and visit.begun:
                raise HookError(called_again(name, self._cut.pieces[name]))
            if visit.begun or number >= len(outputs):
                raise HookError(
                    f"{name} belongs to stage {self._cut.pieces[name]} of the pipeline, since the model defines it "
                    f"there, but is called on stage {self.index}. Define modules in the order in which they are "
                    "called, or let the stages begin elsewhere: strategy.split."
                )
            visit.calls[name] += 1
            return output_again(outputs[number])

        return call


def remove_absent(model: Module, outline: Outline, absent: Mapping[str, Tensor], device: torch.device) -> None:
    """Free the parameters and buffers that a stage does not have.

    Args:
        absent: the tensors by name.
    """
    for path, tensor in absent.items():
        owner, _, key = path.rpartition(".")
        fake = fake_of(outline.mode, tensor, device)
        hide(model.get_submodule(owner), key, Absent.of(fake, trained=tensor.requires_grad))


def _before(module: Module, change: Change) -> None:
    """Change the arguments of a module before anything else sees them: a compiler or what gathers its shards."""
    compiled = module._compiled_call_impl
    if compiled is None:
        module.register_forward_pre_hook(lambda _, args, kwargs: change(args, kwargs), with_kwargs=True, prepend=True)
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = change(args, kwargs)
        return compiled(*args, **kwargs)

    module._compiled_call_impl = call


@contextmanager
def _all_parameters(model: Module) -> Iterator[None]:
    """Let a hook that looks at all parameters (to add their norms, say) see that some are not here."""

    def named_parameters(prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Any:
        yield from Module.named_parameters(model, prefix, recurse, remove_duplicate)
        for name, module in model.named_modules(prefix=prefix):
            for key, value in vars(module).items():
                if isinstance(value, Absent):
                    yield f"{name}.{key}" if name else key, value

    model.__dict__["named_parameters"] = named_parameters
    try:
        yield
    finally:
        del model.__dict__["named_parameters"]


def _check_present(result: Loss | Tensor) -> None:
    """Raise HookError if the loss depends on what other stages have."""
    if absent_leaves(result):
        raise HookError(
            "the loss depends on weights or activations of other stages of the pipeline. Only what passes through the "
            "arguments of the modules at which stages begin reaches the last stage: strategy.split."
        )
