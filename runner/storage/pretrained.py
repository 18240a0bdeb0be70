"""What `from_pretrained` reads besides the weights: config.json and generation_config.json.

A model that follows transformers' convention can write both. Training asks it for them, in the process that has called
the model hook anyway, and keeps them in the run's directory. An export copies them from there: it imports and calls
nothing that a run's directory names.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

from torch.nn import Module

from runner import durable
from runner.errors import CheckpointError
from runner.storage.format import TensorMetadata
from runner.storage.memory import DTYPES

__all__ = ["save_model_config", "write_model_config"]

logger = logging.getLogger(__name__)

CONFIG = "config.json"
FILES = (CONFIG, "generation_config.json")


class Config(Protocol):
    """The part of transformers.PreTrainedConfig that is needed here."""

    architectures: list[str] | None

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


def save_model_config(path: Path, model: Module) -> None:
    """Keep a model's own configuration files in one file of the run's directory; none if it does not have them.

    Args:
        model: as the model hook returned it, before anything is done to it.
    """
    if not isinstance(model, Pretrained):
        return
    model.config.architectures = [type(model).__name__]  # as PreTrainedModel.save_pretrained does
    with TemporaryDirectory() as directory:
        try:
            model.config.save_pretrained(directory)
            if isinstance(model, CanGenerate) and model.can_generate():
                model.generation_config.save_pretrained(directory)
        except Exception as error:  # noqa: BLE001  a model's own code may raise anything, and a run needs neither file
            rule = "the model's own configuration cannot be written, so an export will have no config.json: %s: %s"
            logger.warning(rule, type(error).__name__, error)
            return
        files = {name: (Path(directory) / name).read_text() for name in FILES if (Path(directory) / name).exists()}
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    durable.replace(path, json.dumps({"model": type(model).__name__, "shapes": shapes, "files": files}) + "\n")


def write_model_config(directory: Path, path: Path, tensors: Mapping[str, TensorMetadata]) -> None:
    """Write the files that training kept into an export; none if it kept none.

    Args:
        path: where training kept them.
        tensors: the weights to be exported, for their dtype and to check that they are this model's.

    Raises:
        CheckpointError: the file is damaged, or is of another model than the one in the checkpoint.
    """
    if not path.exists():
        return
    model, shapes, files = _read(path)
    wrong = [f"{name} {list(one.shape)}" for name, one in tensors.items() if shapes.get(name) != list(one.shape)]
    if wrong:
        raise CheckpointError(
            f"{path} describes another {model} than the one in the checkpoint, which has {', '.join(wrong)}: a later "
            "attempt has changed the model. Export a checkpoint of that attempt, or leave out config.json: --no-config."
        )
    # The dtype that from_pretrained is to build, as PreTrainedModel.save_pretrained writes it.
    dtype = next((one.dtype for one in tensors.values() if DTYPES[one.dtype].is_floating_point), None)
    for name in FILES:
        if name in files:
            content = {**files[name], "dtype": dtype} if name == CONFIG else files[name]
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            durable.write_new(directory / name, text)


def _read(path: Path) -> tuple[str, Mapping[str, Any], Mapping[str, Mapping[str, Any]]]:
    try:
        kept = json.loads(path.read_bytes())
        files = {name: dict(json.loads(text)) for name, text in kept["files"].items()}
        return str(kept["model"]), dict(kept["shapes"]), files
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not what training wrote ({type(error).__name__}: {error}), so there is nothing to make "
            "config.json of. Export without it: --no-config."
        ) from error
