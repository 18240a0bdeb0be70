"""Which of torch's implementations of an optimizer is used."""

from collections.abc import Iterable, Mapping
from typing import Any

from runner.errors import Fault, SpecError

__all__ = ["fused_or_default"]


def fused_or_default(
    fused: bool | None, groups: Iterable[Mapping[str, Any]], *, takes_distributed: bool, is_faster: bool = True
) -> bool | None:
    """What to give torch as `fused`: the recipe's choice, or True where it is the fastest; None = torch's default.

    On the CPU, torch's default is a loop over parameters and operations.

    Args:
        groups: torch's parameter groups, each with (name, parameter) pairs as `params`.
        takes_distributed: whether the fused implementation takes DTensors.
        is_faster: whether it is faster than a loop.

    Raises:
        SpecError: the recipe's choice is impossible for these parameters.
    """
    import torch

    parameters = [parameter for group in groups for _, parameter in group["params"]]
    meshes = {getattr(one, "device_mesh", None) for one in parameters}  # None = that of a plain tensor
    one_kernel = len(meshes) == 1 and (takes_distributed or None in meshes)
    if fused and not one_kernel:
        what = "of several meshes" if takes_distributed else "that are divided among ranks"
        rule = f"true: torch's fused implementation takes no parameters {what}. Use null or false."
        raise SpecError(Fault(key="optimizer.fused", message=rule))
    on_host = all(one.device.type == "cpu" and one.dtype == torch.float32 for one in parameters)
    return True if fused is None and is_faster and on_host and one_kernel else fused
