"""What passes from stage to stage for a batch, found by running the loss hook once without values.

Every rank runs it by itself, once for each new combination of shapes, and so knows which tensors to expect and what to
compute from shapes alone. What cannot be cut is found here, on all ranks, before anything is sent.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Module
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from runner.errors import HookError
from runner.protocols import Loss, MicroBatch
from runner.strategy.parallel.split import Cut
from runner.strategy.parallel.stand_in import Absent, Where, absent_leaves, fake_of

Hook = Callable[[Module, Any, int], Loss | Tensor]


class Carried(NamedTuple):
    """A tensor that one stage sends to the next."""

    number: int
    """Among the leaves of the arguments of the module at which the next stage begins."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    trained: bool
    """Whether a gradient comes back."""


class Output(NamedTuple):
    """What a module returned."""

    leaves: list[Any]
    """Absent tensors, and whatever else there was."""
    spec: TreeSpec


@dataclass(frozen=True)
class Record:
    """What a run of the hook found."""

    carried: list[list[Carried]] = field(default_factory=list)
    """The tensors that each stage after the first receives."""
    outputs: dict[str, list[Output]] = field(default_factory=dict)
    """What each call of a piece returned, by its name."""


class _Finished(BaseException):
    """The last stage has begun: what follows is its own."""


@final
class Outline:
    """A model without values, which is run to see what it passes on."""

    def __init__(self, model: Module, cut: Cut, holders: Mapping[str, frozenset[int]], loss: Hook) -> None:
        """Copy the modules of a model; its parameters and buffers are not copied.

        Args:
            model: with all its parameters, whose memory is not needed afterwards.
            cut: where the stages begin.
            holders: the stages that have each parameter and buffer, by name.
            loss: the user's hook.
        """
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._where = Where()
        self._model = copy_modules(model)
        self._cut, self._loss = cut, loss
        self._records: dict[Any, Record] = {}
        self._record = Record()
        for name, module in self._model.named_modules(remove_duplicate=False):
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                path = f"{name}.{key}" if name else key
                if tensor is not None and path in holders:
                    fake = fake_of(self.mode, tensor, tensor.device)
                    absent = Absent.of(fake, trained=tensor.requires_grad, held=holders[path], where=self._where)
                    hide(module, key, absent)
            if name in cut.pieces and any(path.startswith(f"{name}.") for path in holders):
                self._watch(name, module)
            if name in cut.begins:
                module.register_forward_pre_hook(self._begin(name), with_kwargs=True, prepend=True)

    def of(self, micro_batch: MicroBatch, *, training: bool) -> Record:
        """What passes between stages for a micro-batch of these shapes.

        Raises:
            HookError: the model cannot be cut there, or not with this hook.
        """
        key = (training, torch.is_grad_enabled(), *map(_outline, tree_leaves(micro_batch.batch)))
        if key not in self._records:
            self._records[key] = self._run(micro_batch, training)
        return self._records[key]

    def _run(self, micro_batch: MicroBatch, training: bool) -> Record:
        self._record, self._where.stage = Record(), 0
        self._model.train(training)
        with torch.random.fork_rng():
            try:
                self._loss(self._model, *micro_batch)
            except _Finished:
                return self._record
        raise HookError(
            f"the loss hook does not call {self._cut.begins[self._where.stage]}, at which stage "
            f"{self._where.stage + 1} of the pipeline begins. Name a module that its model calls: strategy.split."
        )

    def _begin(self, name: str) -> Any:
        number = self._cut.begins.index(name)

        def begin(module: Module, args: Any, kwargs: Any) -> None:
            if self._where.stage != number:
                raise HookError(called_again(name, number + 1))
            found = absent_leaves((args, kwargs))
            self._record.carried.append(
                [Carried(at, tuple(leaf.fake.shape), leaf.fake.dtype, leaf.trained) for at, leaf in found]
            )
            for _, leaf in found:
                leaf.held = frozenset({number + 1})
            self._where.stage = number + 1
            if number + 2 == self._cut.num_stages:
                raise _Finished

        return begin

    def _watch(self, name: str, module: Module) -> None:
        """Record what a piece returns, which is absent wherever the piece is."""
        where = self._where

        def absent(value: Any) -> Any:
            if not isinstance(value, Tensor) or isinstance(value, Absent):
                return value
            fake = value if isinstance(value, FakeTensor) else fake_of(self.mode, value, value.device)
            return Absent.of(fake, trained=value.requires_grad, held=frozenset({where.stage}), where=where)

        def note(module: Module, args: Any, kwargs: Any, output: Any) -> Any:
            output = tree_map(absent, output)
            leaves, spec = tree_flatten(output)
            self._record.outputs.setdefault(name, []).append(Output(leaves, spec))
            return output

        module.register_forward_hook(note, with_kwargs=True)


def output_again(output: Output) -> Any:
    """What a module returned, with new absent tensors of the same shapes."""
    leaves = [Absent.of(one.fake, trained=one.trained) if isinstance(one, Absent) else one for one in output.leaves]
    return tree_unflatten(leaves, output.spec)


def copy_modules(model: Module) -> Module:
    """Copies of a model's modules, which share its parameters and buffers."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def hide(module: Module, key: str, absent: Absent | None) -> None:
    """Put an absent tensor in place of a parameter or buffer: it can be used, but is none of the module's any more."""
    module._parameters.pop(key, None)
    module._buffers.pop(key, None)
    module._non_persistent_buffers_set.discard(key)
    module.__dict__[key] = absent


def called_again(name: str, stage: int) -> str:
    """The message about a module that is called again where its stage has been passed."""
    return (
        f"{name}, of stage {stage} of the pipeline, is called twice for one micro-batch. A loss hook may "
        "call its model once, and a model may go through its blocks once. Use strategy.pipeline=1, or call the model "
        "on both inputs together."
    )


def _outline(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return (tuple(leaf.shape), leaf.dtype)
    return leaf if isinstance(leaf, int | float | str | bool | None) else type(leaf)
