"""The loss hook, with plain tensors in its result: what ranks have computed in parts is the same number on all."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from runner.protocols import Loss

Hook = Callable[..., Loss | Tensor]


def whole_loss(loss: Hook) -> Hook:
    """The loss hook, with plain tensors in its result whatever the model returned."""
    return lambda *arguments: whole_result(loss(*arguments))


def whole_result(result: Loss | Tensor) -> Loss | Tensor:
    """What the loss hook returned, as plain tensors. Collective."""
    if not isinstance(result, Loss):
        mean: Tensor = _whole(result)
        return mean
    return result._replace(
        total=_whole(result.total),
        count=_whole(result.count),
        metrics={name: (_whole(total), _whole(count)) for name, (total, count) in result.metrics.items()},
        outputs={name: _whole(values) for name, values in result.outputs.items()},
    )


def _whole(value: Any) -> Any:
    """A plain tensor, which is no view: fully_shard hangs a hook on the loss."""
    return value.full_tensor().clone() if isinstance(value, DTensor) else value
