"""How activations that are split by sequence among ranks pass from one stage of a pipeline to the next."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import Placement

SEQUENCE = 1
"""The dimension of activations by which sequences are divided: [items, length, features]."""


@final
class SequenceParts:
    """Activations of which each rank sends its own part, to that rank of the next stage which has the same."""

    def __init__(self, mesh: DeviceMesh) -> None:
        """Hold the ranks of one stage that have parts."""
        self._mesh = mesh

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of this rank's part; lengths need not be divisible."""
        return tuple(compute_local_shape_and_global_offset(whole, self._mesh, self._placements(whole))[0])

    def part(self, tensor: DTensor) -> Tensor:
        """This rank's part, to be sent."""
        local: Tensor = tensor.redistribute(placements=self._placements(tensor.shape)).to_local()
        return local

    def whole(self, part: Tensor, shape: tuple[int, ...]) -> DTensor:
        """The activation of this shape, given this rank's part of it."""
        stride = torch.empty(shape, device="meta").stride()
        placements = self._placements(shape)
        return DTensor.from_local(part, self._mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)

    def _placements(self, shape: Sequence[int]) -> list[Placement]:
        return [Shard(SEQUENCE) if len(shape) > SEQUENCE else Replicate()]
