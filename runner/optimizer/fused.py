"""Which of torch's implementations of an optimizer is used where a recipe leaves it open."""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["fused_or_default"]


def fused_or_default(fused: bool | None, groups: Iterable[Mapping[str, Any]]) -> bool | None:
    """What to give torch as `fused`: the recipe's choice, or True where it is the fastest; None = torch's default.

    On the CPU, torch's default is a loop over parameters and operations.

    Args:
        groups: torch's parameter groups, each with (name, parameter) pairs as `params`.
    """
    if fused is not None:
        return fused
    import torch

    parameters = [parameter for group in groups for _, parameter in group["params"]]
    meshes = {getattr(one, "device_mesh", None) for one in parameters}  # one kernel takes those of one, or plain ones
    on_host = all(one.device.type == "cpu" and one.dtype == torch.float32 for one in parameters)
    return True if on_host and len(meshes) == 1 else None
