"""Write what `from_pretrained` reads besides the weights: config.json and generation_config.json.

A model that follows transformers' convention can write both. To get such a model, the run's model hook is called once
more, by default on torch's meta device, where tensors have shapes but no memory.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn import Module

from runner.errors import CheckpointError, HookError
from runner.storage.format import TensorMetadata
from runner.storage.memory import DTYPES

__all__ = ["write_config"]


class Config(Protocol):
    """The part of transformers.PreTrainedConfig that is needed here."""

    architectures: list[str] | None
    dtype: Any

    def save_pretrained(self, save_directory: str) -> None:
        """Write config.json, or generation_config.json."""
        ...


@runtime_checkable
class Pretrained(Protocol):
    """The part of transformers.PreTrainedModel that is needed here."""

    config: Config

    def save_pretrained(self, save_directory: str) -> None:
        """Never called, since it would write weights too. It tells such a model from others that have a `config`."""
        ...


@runtime_checkable
class CanGenerate(Protocol):
    """A model with a generation_config."""

    generation_config: Config

    def can_generate(self) -> bool:
        """Whether its generation_config applies."""
        ...


def write_config(
    directory: Path, build_model: Callable[[], object], tensors: Mapping[str, TensorMetadata], *, device: str
) -> None:
    """Write the model's own configuration files; none for a model that does not follow the convention.

    Args:
        build_model: the run's model hook.
        tensors: the weights to be exported, for their dtype and to check that they are this model's.
        device: the one on which the hook is called, meta or cpu.

    Raises:
        HookError: the hook cannot be called on that device.
        CheckpointError: it builds another model than the one in the checkpoint.
    """
    model = _build(build_model, device)
    if not isinstance(model, Pretrained):
        return
    _check_same_model(model, tensors)
    # As PreTrainedModel.save_pretrained does: the class and the dtype that from_pretrained is to build.
    model.config.architectures = [type(model).__name__]
    model.config.dtype = next((one.dtype for one in tensors.values() if DTYPES[one.dtype].is_floating_point), None)
    model.config.save_pretrained(str(directory))
    if isinstance(model, CanGenerate) and model.can_generate():
        model.generation_config.save_pretrained(str(directory))


def _build(build_model: Callable[[], object], device: str) -> object:
    try:
        with torch.device(device):
            return build_model()
    except Exception as error:  # the user's function may raise anything
        in_memory = "call it on the CPU, with memory for the whole model: --config cpu; or " if device == "meta" else ""
        raise HookError(
            f"the model hook was called on the {device} device to get the model's config, and failed: "
            f"{type(error).__name__}: {error}\nTo export, {in_memory}leave out config.json: --config none."
        ) from error


def _check_same_model(model: object, tensors: Mapping[str, TensorMetadata]) -> None:
    assert isinstance(model, Module)
    built = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [f"{name} {list(one.shape)}" for name, one in tensors.items() if built.get(name) != one.shape]
    if wrong:
        raise CheckpointError(
            f"the model hook builds another {type(model).__name__} than the one in the checkpoint, which has "
            f"{', '.join(wrong)}. Restore its arguments, or leave out config.json: --config none."
        )
