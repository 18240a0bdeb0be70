"""Initial weights that are bitwise those of the model hook, although DeepSpeed rounds them.

DeepSpeed first casts a model to bfloat16 and then copies the optimizer's float32 weights from that. Here each rank
saves its own part of the hook's weights before the cast, and restores it afterwards.
"""

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.overrides import TorchFunctionMode

from runner.errors import ModelError
from runner.protocols import World
from runner.strategy.deepspeed import library
from runner.strategy.deepspeed.partitions import Partitions


def build_partitioned(
    build_model: Callable[[], Module], *, during_init: bool, config: dict[str, Any], dtype: torch.dtype, world: World
) -> tuple[Module, dict[int, Tensor]]:
    """Build a model and partition each of its parameters, one at a time. Collective.

    Args:
        during_init: partition while the model is built (zero.Init), so that no rank ever holds all of it.
        config: DeepSpeed's configuration.
        dtype: of the weights in the forward.

    Returns:
        The model, and this rank's elements of each parameter (by id) as the hook initialised them, if rounded.
    """
    from deepspeed import zero

    exact: dict[int, Tensor] = {}

    class ExactInit(zero.Init):  # type: ignore[misc]
        def _zero_init_param(self, parameter: Any) -> None:
            size = -(-parameter.numel() // world.size)
            if dtype != parameter.dtype and parameter.is_floating_point():
                exact[id(parameter)] = parameter.data.flatten()[world.rank * size : (world.rank + 1) * size].float()
                exact[id(parameter)] = exact[id(parameter)].clone()
                parameter.data = parameter.data.to(dtype)
            super()._zero_init_param(parameter)

    # No overrides: tensors are created where the hook creates them, so that they get the same random numbers as always.
    options = {"config_dict_or_path": config, "dtype": dtype, "tensor_overrides": []}
    if during_init:
        with library.quiet():
            exact_init = ExactInit(**options)
        with exact_init, _RejectLostWrites():
            model = build_model()
    else:
        model = build_model()
        with library.quiet():
            ExactInit(module=model, **options)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(world.device)
    return model, exact


def build_full(build_model: Callable[[], Module], *, dtype: torch.dtype) -> tuple[Module, dict[int, Tensor]]:
    """Build a model without partitioning it.

    Returns:
        The model, and the elements of each parameter (by id) that DeepSpeed will round, as the hook initialised them.
    """
    model = build_model()
    rounded = [parameter for parameter in model.parameters() if parameter.dtype != dtype]
    return model, {
        id(parameter): parameter.detach().flatten() for parameter in rounded if parameter.is_floating_point()
    }


def restore_exact_weights(
    weights: Mapping[int, Tensor], partitions: Partitions, named: Mapping[str, Parameter], *, is_partitioned: bool
) -> None:
    """Give the optimizer the weights of the model hook.

    Args:
        weights: elements of each parameter, by id.
        is_partitioned: whether `weights` holds this rank's elements only.
    """
    for name, partition in partitions.items():
        exact = weights.get(id(named[name]))
        if exact is not None and partition.length:
            start = 0 if is_partitioned else partition.start
            with partitions.resident(partition.group, write=True):
                partition.owner.detach()[partition.at : partition.at + partition.length] = exact[
                    start : start + partition.length
                ]


@final
class _RejectLostWrites(TorchFunctionMode):
    """Raises on writes to a parameter that zero.Init has partitioned already, which would be lost."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name: str = func.__name__
        if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], Parameter):
            is_partitioned = vars(args[0]).get("ds_numel", 0) and not args[0].data.numel()
            if is_partitioned:
                raise ModelError(
                    f"the model hook calls {name} on a parameter of shape {list(vars(args[0])['ds_shape'])} after its "
                    "module was built: under strategy.zero_init=true it is partitioned by then. Initialise it in its "
                    "own module or through Module.apply, or use strategy.zero_init=false."
                )
        return func(*args, **(kwargs or {}))
