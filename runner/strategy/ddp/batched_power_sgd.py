"""PowerSGD on a whole bucket as one square matrix: Vogels et al. (NeurIPS 2019), torch's batched variant.

torch's batched_powerSGD_hook raises AssertionError in its first factored step (2.13): it passes matrices to a
function that expects batches of matrices. This one uses the same state and sends the same bytes.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    _orthogonalize,
    _report_compression_stats,
)
from torch.futures import Future


def batched_power_sgd(state: PowerSGDState, bucket: GradBucket) -> Future[Tensor]:
    """Average the bucket over all ranks in place, approximated to the matrix rank in `state`."""
    buffer, index = bucket.buffer(), bucket.index()
    if state.iter < state.start_powerSGD_iter:
        state.maybe_increase_iter(bucket)  # type: ignore[no-untyped-call]
        return default_hooks.allreduce_hook(None, bucket)  # type: ignore[arg-type]
    matrix, numbers = _square(buffer)
    if state.use_error_feedback and index in state.error_dict:
        numbers += state.error_dict[index]
    q = state.q_memory_dict.get(index) if state.warm_start else None
    q = _random(state, matrix) if q is None else q
    _orthogonalize(q[None], state.orthogonalization_epsilon)  # type: ignore[no-untyped-call]
    _count(state, buffer, q, bucket)

    def to_q(done: Future[list[Tensor]]) -> Tensor:
        p = state.p_memory_dict[index] = done.value()[0]
        _orthogonalize(p[None], state.orthogonalization_epsilon)  # type: ignore[no-untyped-call]
        summed: Tensor = _all_reduced(matrix.t() @ p).wait()[0]
        return summed

    def to_bucket(done: Future[Tensor]) -> Tensor:
        q = state.q_memory_dict[index] = done.value().div_(dist.get_world_size())
        product = (state.p_memory_dict[index] @ q.t()).view(-1)[: len(buffer)]
        if state.use_error_feedback:
            state.error_dict[index] = numbers - product
        state.maybe_increase_iter(bucket)  # type: ignore[no-untyped-call]
        return buffer.copy_(product)

    return _all_reduced(matrix @ q).then(to_q).then(to_bucket)


def _all_reduced(tensor: Tensor) -> Future[list[Tensor]]:
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None
    future: Future[list[Tensor]] = work.get_future()
    return future


def _square(buffer: Tensor) -> tuple[Tensor, Tensor]:
    """The buffer as a square matrix padded with zeros, and a flat view of it without the padding."""
    side = math.ceil(math.sqrt(len(buffer)))
    matrix = buffer.new_zeros(side, side)
    numbers = matrix.view(-1)[: len(buffer)]
    numbers.copy_(buffer)
    return matrix, numbers


def _random(state: PowerSGDState, matrix: Tensor) -> Tensor:
    """A random initial factor, the same on every rank and different in every step."""
    generator = torch.Generator().manual_seed(int(state.rng.randint(1_000_000_000)))
    columns = min(len(matrix), state.matrix_approximation_rank)
    return torch.randn(len(matrix), columns, generator=generator).to(matrix)


def _count(state: PowerSGDState, buffer: Tensor, q: Tensor, bucket: GradBucket) -> None:
    """Update the compression statistics that PowerSGDState logs from time to time."""
    state.total_numel_before_compression += len(buffer)
    state.total_numel_after_compression += 2 * q.numel()
    _report_compression_stats(bucket, state)  # type: ignore[no-untyped-call]
