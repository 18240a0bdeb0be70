"""Where DeepSpeed keeps this rank's part of each parameter: the two layouts of its optimizers.

Stages 1 and 2 flatten and concatenate all parameters of an optimizer group and split the result into one partition a
rank; stage 3 splits each parameter and concatenates a rank's partitions. Either way a rank owns a range of each.
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
    """Shape of the full parameter."""
    group: int
    """Index of the flat tensor."""
    is_swapped: bool = False
    """Whether the flat tensor and its state are on disk between steps."""


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
        """Store the partitions and the functions that access them.

        Args:
            refresh: copies the weights that the optimizer updates to those that the forward uses. Collective.
            swap_in: loads a swapped flat tensor and its state into memory.
            swap_out: frees that memory again; true = write it to disk first.
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
        """Keep a flat tensor and its state in memory inside the block; changes persist only with `write`."""
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
    def resident_group(self) -> int | None:
        """Index of the swapped flat tensor that is in memory, if any."""
        return self._resident


def partition_flat(zero: Any, groups: Mapping[str, int], named: Mapping[str, Parameter], *, rank: int) -> Partitions:
    """The layout of stages 1 and 2.

    Args:
        zero: DeepSpeed's optimizer.
        groups: index of each trained parameter's optimizer group, by parameter name.
    """
    offsets = [_offsets(zero, group) for group in range(len(zero.optimizer.param_groups))]
    partitions = {}
    for name, group in groups.items():
        parameter, owner = named[name], zero.optimizer.param_groups[group]["params"][0]
        first = (
            offsets[group][id(parameter)] - rank * owner.numel()
        )  # relative to this rank's partition; may be negative
        at, stop = (min(max(end, 0), owner.numel()) for end in (first, first + parameter.numel()))
        partitions[name] = Partition(
            owner, tuple(owner.shape), at, at - first, stop - at, tuple(parameter.shape), group
        )
    return Partitions(partitions, refresh=zero.update_lp_params, swap_in=_never, swap_out=_never)


def _offsets(zero: Any, group: int) -> dict[int, int]:
    """The offset of each parameter (by id) in the flattened group.

    DeepSpeed's own map of this (`_hp_mapping`) is wrong when it assigns parameters to ranks round-robin.
    """
    if "round_robin_bit16_groups" in vars(zero):
        row = zip(zero.round_robin_bit16_groups[group], zero.round_robin_bit16_offsets[group], strict=True)
        return {id(parameter): offset for parameter, offset in row}
    ends = accumulate(parameter.numel() for parameter in zero.bf16_groups[group])
    return {
        id(parameter): end - parameter.numel() for parameter, end in zip(zero.bf16_groups[group], ends, strict=True)
    }


def partition_each(zero: Any, names: Mapping[str, int], named: Mapping[str, Parameter], *, rank: int) -> Partitions:
    """The layout of stage 3; arguments as for `partition_flat`."""
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
            min(size, parameter.ds_numel - start),  # the last ones are padded
            tuple(parameter.ds_shape),
            group,
            bool(zero._swappable_optimizer_subgroup(group)),
        )

    def refresh() -> None:
        zero._partition_all_parameters()
        for group in range(len(zero.fp16_groups)):
            with result.resident(group):
                zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def swap_out(group: int, write: bool) -> None:
        (zero._optimizer_states_and_gradient_swap_out if write else zero._release_swap_buffers)(group)

    result = Partitions(
        partitions, refresh=refresh, swap_in=zero._optimizer_states_and_gradient_swap_in, swap_out=swap_out
    )
    return result


def untrained_tensor(value: Any, *, rank: int) -> Tensor:
    """What a checkpoint stores of a buffer or an untrained parameter: the tensor, or this rank's partition of it."""
    if not (isinstance(value, Parameter) and "ds_tensor" in vars(value)):
        return torch.as_tensor(value).detach()
    parameter: Any = value
    size = parameter.ds_tensor.ds_numel
    start = min(rank * size, parameter.ds_numel)
    return FlatRange(
        lambda: parameter.ds_tensor.detach(),  # noqa: PLW0108  ds_tensor is replaced in every step
        shape=parameter.ds_shape,
        start=start,
        length=min(size, parameter.ds_numel - start),
        dtype=parameter.ds_tensor.dtype,
    )


def _never(*_: Any) -> None:
    raise AssertionError("stages 1 and 2 swap nothing")
