"""A stage's part of a model: the user's modules, of which those of other stages have no weights and compute nothing.

The loss hook is called with it as with the whole model. Its forward runs from the beginning on every stage: modules of
earlier stages return absent tensors; where the stage begins, what has arrived takes their place; and where the next
stage begins, the forward ends.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from runner.errors import HookError
from runner.protocols import Loss, MicroBatch
from runner.strategy.common.forward_loss import outputs_in_evaluation
from runner.strategy.parallel.carried import Carried, Record, Source
from runner.strategy.parallel.outline import Hook, Outline, called_again, called_elsewhere, hide, output_again
from runner.strategy.parallel.sequence import SequenceParts
from runner.strategy.parallel.split import Cut
from runner.strategy.parallel.stand_in import Absent, AllParameters, absent_leaves, fake_of, present
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

    def __init__(self, record: Record, arriving: Sequence[Carried], arrived: Sequence[Tensor], seed: int) -> None:
        """Hold what has arrived.

        Args:
            record: what passes between stages.
            arriving: what the stage receives; empty for the first one.
            arrived: the same, with values.
            seed: of the micro-batch.
        """
        self.record = record
        self.seed = seed
        self.begun = False
        self.calls: dict[str, int] = defaultdict(int)
        self.arguments: dict[int, Tensor] = {}
        """Those of the module at which the stage begins, by the number of the leaf."""
        self.sources: dict[Source, Tensor] = {}
        """What modules have returned, on this stage or an earlier one, that later stages use."""
        for one, tensor in zip(arriving, arrived, strict=True):
            if isinstance(one.at, int):
                self.arguments[one.at] = tensor
            else:
                self.sources[one.at] = tensor


@final
class StageModel(Module):
    """The loss hook and a stage's part of the model as one module, which can be sharded."""

    def __init__(
        self,
        model: Module,
        index: int,
        cut: Cut,
        loss: Hook,
        device: torch.device,
        parts: SequenceParts | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.index = index
        self.is_first, self.is_last = index == 0, index == cut.num_stages - 1
        self._cut, self._loss, self._device, self._parts = cut, loss, device, parts
        self._all_parameters = AllParameters(model)
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
            with self._all_parameters:
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
                module._compiled_call_impl = self._absent(name, module)  # instead of the module's forward and all hooks
            elif name in held:
                _around(module, _present, self._note(name, module))
            elif name in self._cut.stateless:
                _around(module, _present)
                _let_shapes_pass(module)
            if not self.is_first and name == self._cut.begins[self.index - 1]:
                _around(module, self._begin(name))
            if not self.is_last and name == self._cut.begins[self.index]:
                _around(module, self._end(name))

    def visit(self, record: Record, arrived: Sequence[Tensor], seed: int) -> Visit:
        """A forward of this stage, given what has arrived from the one before."""
        arriving = [] if self.is_first else record.carried[self.index - 1]
        whole = [
            tensor if one.part is None or self._parts is None else self._parts.whole(tensor, one.shape)
            for one, tensor in zip(arriving, arrived, strict=True)
        ]
        return Visit(record, arriving, whole, seed)

    def _now(self) -> Visit:
        if not self._visits:
            raise HookError("a stage of a pipeline can only be called by the loss hook.")
        return self._visits[0]

    def _begin(self, name: str) -> Change:
        def begin(args: Any, kwargs: Any) -> Any:
            visit = self._now()
            if visit.begun:
                raise HookError(called_again(name, self.index))
            leaves, arguments = _flat(args, kwargs)
            for number, tensor in visit.arguments.items():
                if isinstance(absent := leaves[number], Absent):
                    absent.arrived = tensor
                leaves[number] = tensor
            visit.begun = True
            seed_torch(mix(visit.seed, self.index), self._device)  # dropout differs from that of the other stages
            return arguments(leaves)

        return begin

    def _end(self, name: str) -> Change:
        def end(args: Any, kwargs: Any) -> Any:
            visit = self._now()
            if not visit.begun:
                raise HookError(f"{name}, at which stage {self.index + 1} begins, is called before stage {self.index}.")
            leaves, _ = _flat(*_present(args, kwargs))
            tensors = [
                self._sent(name, leaves[one.at] if isinstance(one.at, int) else visit.sources[one.at], one)
                for one in visit.record.carried[self.index]
            ]
            raise _Ended(tuple(tensors))

        return end

    def _sent(self, name: str, tensor: Tensor, expected: Carried) -> Tensor:
        """What passes to the next stage, which begins at this module.

        Raises:
            HookError: it is not what was expected.
        """
        if isinstance(tensor, Absent) or (tuple(tensor.shape), tensor.dtype) != (expected.shape, expected.dtype):
            raise HookError(
                f"{name} gets a tensor {list(tensor.shape)} of {tensor.dtype}, where {list(expected.shape)} of "
                f"{expected.dtype} were expected from the shapes of the batch: stage {self.index} of the pipeline "
                "must not depend on values in its shapes."
            )
        if (expected.part is None) == isinstance(tensor, DTensor):
            ways = ("divided among ranks", "whole on every rank")
            found, planned = ways if expected.part is None else ways[::-1]
            raise HookError(
                f"{name} gets a tensor {list(tensor.shape)} that is {found}, but by the shapes of the batch it should "
                f"be {planned}. Let the stages begin elsewhere: strategy.split."
            )
        assert expected.trained or not tensor.requires_grad, f"{name}: no gradient would come back"
        if self._parts is not None and isinstance(tensor, DTensor):
            tensor = self._parts.part(tensor)
        # Zero-bubble schedules detach it in place, which a view or what has arrived does not allow.
        return tensor.clone() if tensor._is_view() or (tensor.is_leaf and tensor.requires_grad) else tensor

    def _note(self, name: str, module: Module) -> Callable[[Any], None]:
        """Keep what a piece of this stage returns or has as an attribute, if a later stage uses it."""

        def note(output: Any) -> None:
            wanted = self._now().record.sources
            if not wanted:
                return
            visit = self._now()
            call = visit.calls[name]
            visit.calls[name] += 1
            # The run without values may have ended before this call.
            recorded = visit.record.outputs.get(name, [])[call : call + 1]
            kept = [attribute.get(module) for one in recorded for attribute in one.kept]
            for number, leaf in enumerate(tree_leaves((output, kept))):
                if (source := Source(name, call, number)) in wanted:
                    visit.sources[source] = leaf

        return note

    def _absent(self, name: str, module: Module) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            visit, stage = self._now(), self._cut.pieces[name]
            outputs = visit.record.outputs.get(name, ())
            number = visit.calls[name]
            if number and visit.begun:
                raise HookError(called_again(name, stage))
            if visit.begun or number >= len(outputs):
                raise HookError(called_elsewhere(name, stage, self.index))
            visit.calls[name] += 1
            arrived = {source.leaf: tensor for source, tensor in visit.sources.items() if source[:2] == (name, number)}
            return output_again(module, outputs[number], arrived)

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


def _present(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a module, with what has arrived in its places."""
    return present(args), present(kwargs) if kwargs else kwargs


def _flat(args: Any, kwargs: Any) -> tuple[list[Any], Callable[[list[Any]], tuple[Any, Any]]]:
    """As tree_flatten and tree_unflatten of both, in a tenth of the time if there are only tensors."""
    if not kwargs and all(isinstance(one, Tensor) for one in args):
        return list(args), lambda leaves: (tuple(leaves), {})
    leaves, spec = tree_flatten((args, kwargs))
    return leaves, lambda leaves: tree_unflatten(leaves, spec)


def _around(module: Module, change: Change, note: Callable[[Any], None] = lambda _: None) -> None:
    """Change the arguments of a module before anything else sees them: a compiler or what gathers its shards.

    Args:
        note: gets what the module returns.
    """
    inner: Callable[..., Any] = module._compiled_call_impl or module._call_impl

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = change(args, kwargs)
        output = inner(*args, **kwargs)
        note(output)
        return output

    module._compiled_call_impl = call


def _let_shapes_pass(module: Module) -> None:
    """Keep the hooks of a module without state, such as those of a tensor plan, from what has no values."""
    inner = module._compiled_call_impl
    assert inner is not None

    def call(*args: Any, **kwargs: Any) -> Any:
        if absent_leaves((args, kwargs)):
            return module.forward(*args, **kwargs)
        return inner(*args, **kwargs)

    module._compiled_call_impl = call


def _check_present(result: Loss | Tensor) -> None:
    """Raise HookError if the loss depends on what other stages have."""
    if absent_leaves(result):
        raise HookError(
            "the loss depends on weights or activations of other stages of the pipeline. Only what passes through the "
            "arguments of the modules at which stages begin reaches the last stage: strategy.split."
        )
