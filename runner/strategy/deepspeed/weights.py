"""The weights that a run begins with: those that the model hook made, to the last bit, whatever DeepSpeed rounds.

DeepSpeed casts a model to bfloat16 first and takes the float32 weights of the optimizer from that. Here what the hook
made is kept aside, the part of it that the rank will own, and put back in their place.
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


def cut(
    build_model: Callable[[], Module], *, inside: bool, config: dict[str, Any], dtype: torch.dtype, world: World
) -> tuple[Module, dict[int, Tensor]]:
    """Build a model and cut each of its parameters, one at a time. Collective.

    Args:
        inside: cut them while the model is built (zero.Init): no rank ever holds all of it.
        config: DeepSpeed's.
        dtype: in which the forward sees weights.

    Returns:
        The model, and this rank's elements of each parameter (by its id) as the hook made them.
    """
    from deepspeed import zero

    made: dict[int, Tensor] = {}

    class CutExactly(zero.Init):  # type: ignore[misc]
        def _zero_init_param(self, parameter: Any) -> None:
            size = -(-parameter.numel() // world.size)
            if dtype != parameter.dtype and parameter.is_floating_point():
                made[id(parameter)] = parameter.data.flatten()[world.rank * size : (world.rank + 1) * size].float()
                made[id(parameter)] = made[id(parameter)].clone()
                parameter.data = parameter.data.to(dtype)
            super()._zero_init_param(parameter)

    # No overrides: tensors are made where the hook makes them, so that they get the numbers of every other strategy.
    options = {"config_dict_or_path": config, "dtype": dtype, "tensor_overrides": []}
    if inside:
        with library.quiet():
            cutting = CutExactly(**options)
        with cutting, _Guard():
            model = build_model()
    else:
        model = build_model()
        with library.quiet():
            CutExactly(module=model, **options)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(world.device)
    return model, made


def whole(build_model: Callable[[], Module], *, dtype: torch.dtype) -> tuple[Module, dict[int, Tensor]]:
    """Build a model.

    Returns:
        The model, and each parameter's elements (by its id) as the hook made them; none if nothing will be rounded.
    """
    model = build_model()
    kept = [parameter for parameter in model.parameters() if parameter.dtype != dtype]
    return model, {id(parameter): parameter.detach().flatten() for parameter in kept if parameter.is_floating_point()}


def put_back(
    made: Mapping[int, Tensor], partitions: Partitions, named: Mapping[str, Parameter], *, is_cut: bool
) -> None:
    """Give the optimizer the weights that the hook made.

    Args:
        is_cut: `made` holds this rank's elements only.
    """
    for name, partition in partitions.items():
        exact = made.get(id(named[name]))
        if exact is not None and partition.length:
            start = 0 if is_cut else partition.start
            with partitions.resident(partition.group, write=True):
                partition.owner.detach()[partition.at : partition.at + partition.length] = exact[
                    start : start + partition.length
                ]


@final
class _Guard(TorchFunctionMode):
    """Under zero.Init a parameter is gone as soon as its module was built: what writes to it then would be lost."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name: str = func.__name__
        if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], Parameter):
            gone = vars(args[0]).get("ds_numel", 0) and not args[0].data.numel()
            if gone:
                raise ModelError(
                    f"the model hook calls {name} on a parameter of shape {list(vars(args[0])['ds_shape'])} after its "
                    "module was built: under strategy.zero_init=true it is cut by then. Initialise it in its own "
                    "module or through Module.apply, or use strategy.zero_init=false."
                )
        return func(*args, **(kwargs or {}))
