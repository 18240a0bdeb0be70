"""A stage of a pipeline as the schedules of torch.distributed.pipelining drive it.

torch's own PipelineStage takes shapes and dtypes from the first micro-batch and keeps them. This one knows those of
each micro-batch beforehand, so that micro-batches may differ in length.
"""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining.stage import _PipelineStageBase
from torch.nn import Module

from runner.strategy.parallel.carried import Carried

Compute = Callable[[int, Sequence[Tensor]], tuple[Tensor, ...]]
"""The forward of a micro-batch, by its number in the step: from what has arrived to what the next stage receives."""


@final
class Stage(_PipelineStageBase):
    """Communication and backward of a stage."""

    def __init__(
        self, module: Module, index: int, num_stages: int, device: torch.device, group: dist.ProcessGroup
    ) -> None:
        super().__init__(module, index, num_stages, device, group)
        self._compute: Compute = lambda number, arrived: ()
        self._receives: Sequence[Sequence[Carried]] = ()
        self._sends: Sequence[Sequence[Carried]] = ()
        self._arrived: dict[int, list[Tensor]] = {}
        self._graphs: dict[int, tuple[tuple[Tensor, ...], list[Tensor]]] = {}
        self._gradients: dict[int, list[Tensor | None]] = {}
        self._answers: dict[int, list[Tensor | None]] = {}
        self._weights_left: dict[int, dict[str, Any]] = {}
        self._counts: dict[int, list[Tensor]] = {}
        self.args_recv_info[0] = ()  # a schedule of several stages a rank looks for skips to other stages here

    def begin_step(
        self,
        compute: Compute,
        receives: Sequence[Sequence[Carried]],
        sends: Sequence[Sequence[Carried]],
        count: Tensor,
    ) -> None:
        """Get ready for some micro-batches.

        Args:
            compute: their forward.
            receives: what arrives from the stage before, for each; empty for the first stage.
            sends: what goes to the next, for each; empty for the last stage.
            count: a scalar, the same tensor for all stages of a rank. After the last forward, the last stage has the
                step's count in it; all others get it with the gradients of the last micro-batch.
        """
        self.clear_runtime_states()
        self.chunks = num_micro_batches = max(len(receives), len(sends))
        self._compute, self._receives, self._sends = compute, receives, sends
        self._counts = {num_micro_batches - 1: [count]}  # what passes beside the gradients of a micro-batch

    def clear_runtime_states(self) -> None:
        """Forget the micro-batches of the last step."""
        for held in (self._arrived, self._graphs, self._gradients, self._answers, self._weights_left):
            held.clear()

    def start(self, operation: Any, tensors: Sequence[Tensor], stage: int) -> list[dist.Work]:
        """Start to send tensors to another stage, or to receive them."""
        return dist.batch_isend_irecv(self._ops(operation, tensors, stage)) if tensors else []

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Receive activations."""
        if self.is_first:
            return []
        self._arrived[fwd_chunk_id] = self._empty(self._receives[fwd_chunk_id])
        return self._ops(dist.irecv, self._arrived[fwd_chunk_id], self.stage_index - 1)

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Send activations."""
        if self.is_last:
            return []
        return self._ops(dist.isend, self._graphs[fwd_chunk_id][0], self.stage_index + 1)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Receive the gradients of activations."""
        if self.is_last or not self.has_backward:
            return []
        self._gradients[bwd_chunk_id] = buffers = self._empty([one for one in self._sends[bwd_chunk_id] if one.trained])
        return self._ops(dist.irecv, [*buffers, *self._counts.get(bwd_chunk_id, ())], self.stage_index + 1)

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Send the gradients of what has arrived."""
        if self.is_first or not self.has_backward:
            return []
        gradients = self.get_local_bwd_output(bwd_chunk_id)
        return self._ops(dist.isend, [*gradients, *self._counts.get(bwd_chunk_id, ())], self.stage_index - 1)

    def set_local_fwd_input(self, prev_stage_outputs: Any, mb_index: int) -> None:
        """Take activations from the stage before, which is on the same rank."""
        self._arrived[mb_index] = [tensor.detach() for tensor in prev_stage_outputs]

    def get_local_bwd_output(self, mb_index: int) -> tuple[Tensor, ...]:
        """The gradients of what has arrived; zeros where there was none."""
        trained = [one for one in self._receives[mb_index] if one.trained]
        answers = self._answers.pop(mb_index)
        return tuple(
            torch.zeros(one.part or one.shape, dtype=one.dtype, device=self.device) if gradient is None else gradient
            for one, gradient in zip(trained, answers, strict=True)
        )

    def set_local_bwd_input(self, next_stage_bwd_outputs: tuple[Tensor | None, ...], mb_index: int) -> None:
        """Take gradients from the next stage, which is on the same rank."""
        self._gradients[mb_index] = list(next_stage_bwd_outputs)

    def forward_one_chunk(
        self, fwd_chunk_id: int, args: Any, kwargs: Any = None, save_forward_output: bool = True
    ) -> Any:
        """The forward of a micro-batch: what the next stage receives, or the scalar that backward begins at."""
        arrived = self._arrived.pop(fwd_chunk_id, [])
        if not self.is_first and self.has_backward:
            for one, tensor in zip(self._receives[fwd_chunk_id], arrived, strict=True):
                tensor.requires_grad_(one.trained)
        outputs = self._compute(fwd_chunk_id, arrived)
        self._graphs[fwd_chunk_id] = (outputs, arrived)
        return outputs[0] if self.is_last else outputs

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        """The backward of a micro-batch, or the part of it that other stages wait for."""
        outputs, arrived = self._graphs.pop(bwd_chunk_id)
        roots, gradients = self._roots(bwd_chunk_id, outputs)
        inputs = [tensor for tensor in arrived if tensor.requires_grad]
        given = {"stage_output": roots, "output_grads": gradients, "input_values": inputs}
        answers: Sequence[Tensor | None] = [None] * len(inputs)
        if full_backward:
            if roots:
                answers, _ = self.backward_maybe_with_nosync("full", given, last_backward=last_backward)
        elif inputs and roots:
            answers, groups = self.backward_maybe_with_nosync("input", given, last_backward=last_backward)
            self._weights_left[bwd_chunk_id] = {"stage_output": roots, "param_groups": groups}
        elif roots:  # without inputs, nobody waits
            self._weights_left[bwd_chunk_id] = given
        self._answers[bwd_chunk_id] = list(answers)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """The gradients of a micro-batch's weights, where `backward_one_chunk` has left them for later."""
        if (left := self._weights_left.pop(bwd_chunk_id, None)) is not None:
            self.backward_maybe_with_nosync("weight" if "param_groups" in left else "full", left, last_backward)

    def _roots(self, number: int, outputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Any]:
        """Where backward begins, with the gradients that have arrived there."""
        if self.is_last:
            return outputs, (None,)  # a scalar
        trained = [tensor for tensor, one in zip(outputs, self._sends[number], strict=True) if one.trained]
        pairs = [
            (tensor, gradient)
            for tensor, gradient in zip(trained, self._gradients.pop(number), strict=True)
            if tensor.requires_grad
        ]
        return tuple(tensor for tensor, _ in pairs), tuple(gradient for _, gradient in pairs)

    def _ops(self, operation: Any, tensors: Sequence[Tensor], stage: int) -> list[dist.P2POp]:
        peer = self._resolve_peer_global_rank(stage)
        return [dist.P2POp(operation, tensor.contiguous(), peer, self.group) for tensor in tensors]

    def _empty(self, wanted: Sequence[Carried]) -> list[Any]:
        return [torch.empty(one.part or one.shape, dtype=one.dtype, device=self.device) for one in wanted]

    def _prepare_forward_infra(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `begin_step` has all that is needed."""

    def _prepare_backward_infra(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def _create_grad_recv_info(self, act_send_info: Any) -> tuple[()]:
        return ()

    def _get_init_p2p_neighbors_ops(self) -> list[dist.P2POp]:
        return []
