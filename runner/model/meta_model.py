"""Builds the model of a spec on torch's meta device: modules, names and shapes, without values or memory.

Before launch, the user's model hook is called only here.
"""

import warnings
from typing import TYPE_CHECKING

from runner.config.hooks import WORLD, asks, resolve
from runner.config.run_spec import RunSpec

if TYPE_CHECKING:
    from torch.nn import Module

    from runner.world.collectives import Collectives

__all__ = ["MetaBuildError", "build_meta_model"]


class MetaBuildError(Exception):
    """The model cannot be built on the meta device; the message says why."""


def build_meta_model(spec: RunSpec, *, converted: bool = False) -> "Module":
    """Call the model hook of a spec with one model under the meta device.

    Args:
        converted: also convert the model to the precision, as a run does.

    Raises:
        MetaBuildError: the hook raised an error, or returned something other than a module.
    """
    import torch

    hook, roots = spec.model, spec.import_roots
    assert hook is not None
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for example, that loading values has no effect
            offered = {WORLD: _ranks(spec)} if asks(hook, roots) else {}
            model = resolve(hook, roots)(**offered)
            if converted:
                spec.precision.convert(model, spec.hardware)
    except (Exception, SystemExit) as error:  # a user's function may raise anything on the meta device
        raise MetaBuildError(f"{type(error).__name__}: {error}") from error
    if not isinstance(model, torch.nn.Module):
        raise MetaBuildError(f"{hook.target} returned a {type(model).__name__}")
    return model


def _ranks(spec: RunSpec) -> "Collectives":
    """The ranks of the run as rank 0 sees them, without communication."""
    import torch

    from runner.world.hook_ranks import HookRanks
    from runner.world.rehearsal import RehearsalWorld

    axes = spec.strategy.axes(spec.world_size)
    return HookRanks(RehearsalWorld(torch.device("meta"), rank=0, size=spec.world_size, local_rank=0, axes=axes)).all
