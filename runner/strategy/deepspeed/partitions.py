"""Where DeepSpeed keeps what belongs to a parameter: the two layouts of its optimizers.

Stages 1 and 2 lay all parameters of an optimizer group end to end and cut the row into as many pieces as there are
ranks; stage 3 cuts each parameter and lays a rank's pieces end to end. Both give a rank a range of each parameter.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import Parameter

from runner.strategy.deepspeed.flat_range import FlatRange


class Partition(NamedTuple):
    """A rank's part of a parameter: elements [start, start + length) of it are [at, at + length) of `owner`."""

    owner: Tensor
    """The flat tensor that the optimizer updates."""
    owner_shape: tuple[int, ...]
    at: int
    start: int
    length: int
    shape: tuple[int, ...]
    """Of the whole parameter."""
    group: int
    """Which of the flat tensors it is."""
    is_swapped: bool = False
    """The flat tensor and its state lie on a disk between steps."""


@final
class Partitions(Mapping[str, Partition]):
    """This rank's part of every trained parameter, by name."""

    def __init__(
        self,
        partitions: Mapping[str, Partition],
        *,
        refresh: Callable[[], None],
        swap_in: Callable[[int], None],
        swap_out: Callable[[int, bool], None],
    ) -> None:
        """Know the partitions and how to reach them.

        Args:
            refresh: makes the weights that the forward sees of those that the optimizer updates. Collective.
            swap_in: brings a swapped flat tensor and its state to memory.
            swap_out: lets go of it again; true = write it down before.
        """
        self._partitions = dict(partitions)
        self.refresh = refresh
        self._swap_in = swap_in
        self._swap_out = swap_out
        self._swapped = {partition.group for partition in self._partitions.values() if partition.is_swapped}
        self._resident: int | None = None

    def __getitem__(self, name: str) -> Partition:
        return self._partitions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._partitions)

    def __len__(self) -> int:
        return len(self._partitions)

    @contextmanager
    def resident(self, group: int, *, write: bool = False) -> Iterator[None]:
        """A flat tensor and its state are in memory inside the block; only with `write` do changes outlive it."""
        if group not in self._swapped or group == self._resident:
            yield
            return
        self._swap_in(group)
        self._resident = group
        try:
            yield
        finally:
            self._resident = None
            self._swap_out(group, write)

    @property
    def holds(self) -> int | None:
        """The swapped flat tensor that is in memory just now."""
        return self._resident


def partition_flat(zero: Any, groups: Mapping[str, int], named: Mapping[str, Parameter], *, rank: int) -> Partitions:
    """The layout of stages 1 and 2.

    Args:
        zero: DeepSpeed's optimizer.
        groups: of each trained parameter, by name, in which of the optimizer's groups it is.
    """
    offsets = [_offsets(zero, group) for group in range(len(zero.optimizer.param_groups))]
    partitions = {}
    for name, group in groups.items():
        parameter, owner = named[name], zero.optimizer.param_groups[group]["params"][0]
        first = (
            offsets[group][id(parameter)] - rank * owner.numel()
        )  # in this rank's piece of the row, perhaps before it
        at, stop = (min(max(end, 0), owner.numel()) for end in (first, first + parameter.numel()))
        partitions[name] = Partition(
            owner, tuple(owner.shape), at, at - first, stop - at, tuple(parameter.shape), group
        )
    return Partitions(partitions, refresh=zero.update_lp_params, swap_in=_never, swap_out=_never)


def _offsets(zero: Any, group: int) -> dict[int, int]:
    """Where each parameter (by its id) begins in the row of its group.

    DeepSpeed's own map of this (`_hp_mapping`) is wrong where it deals parameters to ranks in turn.
    """
    if "round_robin_bit16_groups" in vars(zero):
        row = zip(zero.round_robin_bit16_groups[group], zero.round_robin_bit16_offsets[group], strict=True)
        return {id(parameter): offset for parameter, offset in row}
    ends = accumulate(parameter.numel() for parameter in zero.bf16_groups[group])
    return {
        id(parameter): end - parameter.numel() for parameter, end in zip(zero.bf16_groups[group], ends, strict=True)
    }


def partition_each(zero: Any, names: Mapping[str, int], named: Mapping[str, Parameter], *, rank: int) -> Partitions:
    """The layout of stage 3."""
    partitions = {}
    for name in names:
        parameter: Any = named[name]
        group, at, size = zero.grad_position[zero.get_param_id(parameter)]
        start = min(rank * size, parameter.ds_numel)
        partitions[name] = Partition(
            zero.fp32_partitioned_groups_flat[group],
            (int(zero.fp16_partitioned_groups_flat_numel[group]),),
            at,
            start,
            min(size, parameter.ds_numel - start),  # the last pieces are padded
            tuple(parameter.ds_shape),
            group,
            bool(zero._swappable_optimizer_subgroup(group)),
        )

    def refresh() -> None:
        zero._partition_all_parameters()
        for group in range(len(zero.fp16_groups)):
            with held.resident(group):
                zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def swap_out(group: int, write: bool) -> None:
        (zero._optimizer_states_and_gradient_swap_out if write else zero._release_swap_buffers)(group)

    held = Partitions(
        partitions, refresh=refresh, swap_in=zero._optimizer_states_and_gradient_swap_in, swap_out=swap_out
    )
    return held


def frozen(value: Any, *, rank: int) -> Tensor:
    """What a checkpoint takes of a buffer or of a parameter that is not trained: itself, or this rank's piece of it."""
    if not (isinstance(value, Parameter) and "ds_tensor" in vars(value)):
        return torch.as_tensor(value).detach()
    cut: Any = value
    size = cut.ds_tensor.ds_numel
    start = min(rank * size, cut.ds_numel)
    return FlatRange(
        lambda: cut.ds_tensor.detach(),  # noqa: PLW0108  ds_tensor is another one after the next step
        shape=cut.ds_shape,
        start=start,
        length=min(size, cut.ds_numel - start),
        dtype=cut.ds_tensor.dtype,
    )


def _never(*_: Any) -> None:
    raise AssertionError("stages 1 and 2 swap nothing")
