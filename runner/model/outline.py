"""The model of a spec on torch's meta device: modules, names and shapes without values, memory or a device.

Everything that calls the user's model hook before launch does so here.
"""

import warnings
from typing import TYPE_CHECKING

from runner.config.hooks import resolve
from runner.config.run_spec import RunSpec

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = ["NoOutline", "build_outline"]


class NoOutline(Exception):
    """The model cannot be built without values. The message says why."""


def build_outline(spec: RunSpec, *, converted: bool = False) -> "Module":
    """Call the model hook under the meta device.

    Args:
        converted: let the precision convert the model, as it does in a run.

    Raises:
        NoOutline: that failed, or the hook returned something else than a module.
    """
    import torch

    hook, roots = spec.model, spec.import_roots
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as that loading values into it does nothing
            model = resolve(hook, roots)()
            if converted:
                spec.precision.convert(model, spec.hardware)
    except Exception as error:  # a user's function may raise anything where it finds no values
        raise NoOutline(f"{type(error).__name__}: {error}") from error
    if not isinstance(model, torch.nn.Module):
        raise NoOutline(f"{hook.target} returned a {type(model).__name__}")
    return model
