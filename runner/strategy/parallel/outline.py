"""What passes from stage to stage for a batch, found by running the loss hook once without values.

Every rank runs it by itself, once for each new combination of shapes, and so knows which tensors to expect and what to
compute from shapes alone. What cannot be cut is found here, on all ranks, before anything is sent.

Two kinds of tensors pass: the arguments of the module at which a stage begins; and what a module has returned that a
later stage uses in another way, such as the logits of a router that its loss is computed from.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Module
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from runner.errors import HookError
from runner.protocols import Loss, MicroBatch
from runner.strategy.parallel.carried import (
    Attribute,
    Carried,
    Origin,
    Output,
    Progress,
    Record,
    Source,
    add_sources,
    tensor_attributes,
)
from runner.strategy.parallel.expert_modules import expert_modules
from runner.strategy.parallel.sequence import SequenceParts
from runner.strategy.parallel.split import Cut
from runner.strategy.parallel.stand_in import Absent, AllParameters, Finished, absent_leaves, fake_of
from runner.world.seeds import host_generators_kept

if TYPE_CHECKING:
    from runner.strategy.parallel.context import ContextPlan
    from runner.strategy.parallel.tensor import TensorPlan

Hook = Callable[[Module, Any, int], Loss | Tensor]


@final
class Outline:
    """A model without values, which is run to see what it passes on."""

    def __init__(
        self,
        model: Module,
        cut: Cut,
        holders: Mapping[str, frozenset[int]],
        loss: Hook,
        device: torch.device,
        *,
        experts: Sequence[str] = (),
        plan: "TensorPlan | None" = None,
        context: "ContextPlan | None" = None,
    ) -> None:
        """Copy the modules of a model; its parameters and buffers are not copied.

        Args:
            model: with all its parameters, whose memory is not needed afterwards.
            cut: where the stages begin.
            holders: the stages that have each parameter and buffer, by name.
            loss: the user's hook.
            device: that the stages compute on.
            experts: patterns of the names of modules that hold experts; empty = those of `runner.model.experts`.
            plan: how weight matrices are split; None if they are not.
            context: how sequences are divided; None if they are not.
        """
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._where = Progress(cut.num_stages)
        self._model = copy_modules(model)
        self._cut, self._loss = cut, loss
        self._records: dict[Any, Record] = {}
        self._record = Record()
        for name, module in self._model.named_modules(remove_duplicate=False):
            self._take_values(name, module, holders, device)
            if name in cut.pieces:
                self._watch(name, module)
            if name in cut.begins:
                module.register_forward_pre_hook(self._begin(name), with_kwargs=True, prepend=True)
        self._parts = sequence_parts(plan, context)
        if plan is not None and plan.sequence is not None:
            for module, is_split in plan.outputs(self._model):
                module.register_forward_hook(partial(_mark, is_split))
        if context is not None:
            context.at_blocks(self._model, _split)
        for _, module in expert_modules(self._model, experts):
            module.forward = partial(_like_tokens, module)  # the sizes of the experts' groups depend on values

    def of(self, micro_batch: MicroBatch, *, training: bool) -> Record:
        """What passes between stages for a micro-batch of these shapes.

        Raises:
            HookError: the model cannot be cut there, or not with this hook.
        """
        key = (training, torch.is_grad_enabled(), *map(_outline, tree_leaves(micro_batch.batch)))
        if key not in self._records:
            self._records[key] = self._run(micro_batch, training)
        return self._records[key]

    def _take_values(
        self, name: str, module: Module, holders: Mapping[str, frozenset[int]], device: torch.device
    ) -> None:
        """Put absent tensors in the places of a module's own parameters and buffers."""
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            path = f"{name}.{key}" if name else key
            if tensor is None or path not in holders:
                continue
            weight = self._weight(path, fake_of(self.mode, tensor, device), tensor, holders[path])
            if key in module._buffers:
                module._buffers[key] = weight  # still a buffer: a forward may give it another value
            else:
                hide(module, key, weight)

    def _weight(self, path: str, fake: FakeTensor, tensor: Tensor, held: frozenset[int]) -> Absent:
        """What stands for a parameter or buffer."""
        everywhere = len(held) == self._cut.num_stages
        origin: Origin = frozenset() if everywhere else f"{path} is not on that stage"
        return Absent.of(fake, trained=tensor.requires_grad, held=held, where=self._where, origin=origin)

    def _run(self, micro_batch: MicroBatch, training: bool) -> Record:
        self._record, where = Record(), self._where
        where.start()
        self._model.train(training)
        with torch.random.fork_rng(), host_generators_kept(), AllParameters(self._model):
            try:
                result = self._loss(self._model, *micro_batch)
            except Finished:
                result = None
        if not where.is_last:
            raise HookError(
                f"the loss hook does not call {self._cut.begins[where.stage]}, at which stage "
                f"{where.stage + 1} of the pipeline begins. Name a module that its model calls: strategy.split."
            )
        for _, leaf in absent_leaves(result):
            if leaf.held is not None and where.stage not in leaf.held:
                where.need(leaf.origin, "the loss hook returns what another stage of the pipeline has")
        where.check_unchanged()
        self._record = replace(self._record, result=result)
        add_sources(self._record, where.needed, self._cut.pieces, self._carried)
        return self._record

    def _carried(self, at: int | Source, leaf: Absent) -> Carried:
        """How a tensor passes from stage to stage."""
        shape = tuple(leaf.fake.shape)
        part = self._parts.shape(shape) if leaf.is_split and self._parts is not None else None
        return Carried(at, shape, leaf.fake.dtype, leaf.trained, part)

    def _begin(self, name: str) -> Any:
        number = self._cut.begins.index(name)

        def begin(module: Module, args: Any, kwargs: Any) -> None:
            if self._where.stage != number:
                raise HookError(called_again(name, number + 1))
            found = absent_leaves((args, kwargs))
            self._record.carried.append([self._carried(at, leaf) for at, leaf in found])
            for _, leaf in found:
                leaf.held = frozenset({number + 1})
            self._where.stage = number + 1

        return begin

    def _watch(self, name: str, module: Module) -> None:
        """Record what a piece returns, which is absent wherever the piece is."""
        where, stage = self._where, self._cut.pieces[name]
        before: dict[Attribute, Tensor] = {}

        def enter(module: Module, args: Any, kwargs: Any) -> None:
            if where.stage != stage:
                raise HookError(
                    called_again(name, stage)
                    if name in self._record.outputs
                    else called_elsewhere(name, stage, where.stage)
                )
            where.inside = name
            before.clear()
            before.update(tensor_attributes(module))

        def leave(module: Module, args: Any, kwargs: Any, output: Any) -> Any:
            where.inside = ""
            call = len(self._record.outputs.setdefault(name, []))
            set_now = {key: value for key, value in tensor_attributes(module).items() if value is not before.get(key)}
            leaves, spec = tree_flatten(output)
            leaves += set_now.values()
            for number, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor):
                    leaves[number] = self._returned(leaf, Source(name, call, number))
            self._record.outputs[name].append(Output(leaves, spec, list(set_now)))
            return with_attributes(module, self._record.outputs[name][call], leaves)

        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave, with_kwargs=True)

    def _returned(self, value: Tensor, source: Source) -> Absent:
        """A tensor that a piece returns."""
        if not isinstance(value, Absent):
            fake = value if isinstance(value, FakeTensor) else fake_of(self.mode, value, value.device)
            here = frozenset({self._where.stage})
            value = Absent.of(fake, trained=value.requires_grad, held=here, where=self._where)
        value.origin = frozenset({source})
        return value


def output_again(module: Module, output: Output, arrived: Mapping[int, Tensor]) -> Any:
    """What a module returned, with new absent tensors of the same shapes; sets its attributes likewise.

    Args:
        arrived: those that are not absent here, by the number of the leaf.
    """
    leaves = [
        one
        if not isinstance(one, Absent)
        else arrived[number]
        if number in arrived
        else Absent.of(one.fake, trained=one.trained)
        for number, one in enumerate(output.leaves)
    ]
    return leaves[0] if output.is_one_leaf else with_attributes(module, output, leaves)


def with_attributes(module: Module, output: Output, leaves: Sequence[Any]) -> Any:
    """What a module returns, made of these leaves; those of its attributes are set."""
    num_returned = output.spec.num_leaves
    for attribute, value in zip(output.kept, leaves[num_returned:], strict=True):
        attribute.set(module, value)
    return tree_unflatten(leaves[:num_returned], output.spec)


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


def called_elsewhere(name: str, stage: int, now: int) -> str:
    """The message about a module that another stage calls than the one that has it."""
    return (
        f"{name} belongs to stage {stage} of the pipeline, since the model defines it there, but is called on stage "
        f"{now}. Define modules in the order in which they are called, or let the stages begin elsewhere: "
        "strategy.split."
    )


def sequence_parts(plan: "TensorPlan | None", context: "ContextPlan | None") -> SequenceParts | None:
    """How activations that are split by sequence pass; None if none are."""
    return next((one.sequence for one in (context, plan) if one is not None), None)


def _split(x: Tensor) -> Tensor:
    """An activation that is divided from here on, and everything computed from it."""
    if not isinstance(x, Absent) or x.is_split:
        return x
    return Absent.of(x.fake, trained=x.trained, held=x.held, where=x.progress, origin=x.origin, is_split=True)


def _mark(is_split: bool, module: Module, args: Any, output: Any) -> None:
    """Note whether what a module returns is split by sequence."""
    for _, leaf in absent_leaves(output):
        leaf.is_split = is_split


def _like_tokens(module: Module, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """What has the shape of what experts return, and a gradient if theirs has one."""
    own = [one for owner in module.modules() for one in vars(owner).values() if isinstance(one, Absent)]
    return sum((one.sum() for one in own), tokens * weights.sum())


def _outline(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return (tuple(leaf.shape), leaf.dtype)
    return leaf if isinstance(leaf, int | float | str | bool | None) else type(leaf)
