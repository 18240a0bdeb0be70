"""What a data hook returned, checked before it is used."""

import re
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import DataLoader, IterableDataset

from runner.config.run_spec import Eval
from runner.data.loader import ReadsMany
from runner.errors import DataError, HookError
from runner.protocols import Data, OpensSource

MAP_STYLE = "Return a map-style dataset, with __len__ and __getitem__, or a source of your own (docs/own_stream.md)."
SET_NAME = re.compile(r"[\w.-]+", re.ASCII)


@runtime_checkable
class Indexed(Protocol):
    """What has items by index."""

    def __getitem__(self, index: int, /) -> Any:
        """One item."""
        ...


def check_data(returned: Any, target: str, *, evaluation: Eval) -> Data:
    """What the data hook returned, if a run can use it.

    Args:
        target: the data hook's dotted path.
        evaluation: what the recipe says of evaluations.

    Raises:
        HookError: it is no Data.
        DataError: a dataset cannot be trained on, or evaluated.
    """
    if not isinstance(returned, Data):
        raise HookError(f"{target} returned a {type(returned).__name__}, but must return runner.Data(train=…, eval=…).")
    if not isinstance(returned.train, OpensSource):
        num_items(returned.train, "train")
    for prefix, dataset in eval_sets(returned).items():
        num_items(dataset, prefix)
    _check_sets(returned, target, evaluation)
    if returned.eval is None and evaluation.every_steps is not None:
        raise DataError(
            f"eval.every_steps is set, but {target} returned no eval dataset. Return one, or set it to null."
        )
    return returned


def _check_sets(data: Data, target: str, evaluation: Eval) -> None:
    """Raise DataError if the recipe names an evaluation set that there is not, or gives two of them one prefix."""
    names = [*data.eval] if isinstance(data.eval, Mapping) else []
    for name in evaluation.sets:
        if name not in names:
            there = f"It gives: {', '.join(names)}." if names else "It names none: return eval={'name': dataset, …}."
            raise DataError(f"eval.sets.{name}: {target} gives no evaluation set {name!r}. {there}")
    prefixes = [evaluation.of_set(name).prefix or f"eval/{name}" for name in names]
    if doubled := sorted({prefix for prefix in prefixes if prefixes.count(prefix) > 1}):
        raise DataError(f"eval.sets: two evaluation sets have the prefix {doubled[0]}. Give one of them another.")


def eval_sets(data: Data) -> dict[str, Any]:
    """The evaluation sets by what stands before the names of their metrics: eval, or eval/<set> if they are named.

    Raises:
        DataError: there is a mapping without sets, or with a name that cannot be part of a metric's.
    """
    if data.eval is None:
        return {}
    if not isinstance(data.eval, Mapping):
        return {"eval": data.eval}
    if not data.eval:
        raise DataError(
            "the data hook's eval is an empty mapping. Name at least one dataset, eval={'valid': …}, or return "
            "eval=None."
        )
    for name in data.eval:
        if not isinstance(name, str) or not SET_NAME.fullmatch(name):
            raise DataError(
                f"the data hook's eval has a set named {name!r}. Its metrics are called eval/<set>/loss, so a name is "
                "text of letters, digits, '_', '-' and '.'. Rename it."
            )
    return {f"eval/{name}": dataset for name, dataset in data.eval.items()}


def set_name(path: str) -> str:
    """The name of an evaluation set, given a key of `eval_sets`; empty for a single one."""
    return path.partition("/")[2]


def prediction_sets(data: Data) -> dict[str, Any]:
    """Every dataset that can be predicted on, by its name: train, and eval or the names of the evaluation sets."""
    named = {set_name(path) or path: dataset for path, dataset in eval_sets(data).items()}
    return {"train": data.train, **named}


def num_items(dataset: Any, name: str) -> int:
    """The length of a map-style dataset.

    Raises:
        HookError: it is a DataLoader.
        DataError: it has no length or no items by index, or is empty.
    """
    if isinstance(dataset, DataLoader):
        raise HookError(
            f"the data hook's {name!r} is a DataLoader, but must be a dataset: the runner makes the loaders. Return "
            f"{name}=loader.dataset and collate=loader.collate_fn; batch.items, loader.workers and order say the "
            "rest."
        )
    try:
        length = len(dataset)
    except TypeError:
        kind = type(dataset).__name__
        raise DataError(
            f"the data hook's {name!r} dataset ({kind}) has no length: its order could not be resumed. {MAP_STYLE}"
        ) from None
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Indexed | ReadsMany):
        kind = type(dataset).__name__
        raise DataError(
            f"the data hook's {name!r} dataset ({kind}) has no items by index: its order could not be resumed. "
            f"{MAP_STYLE}"
        )
    if length == 0:
        raise DataError(f"the data hook's {name!r} dataset is empty. Return at least one item.")
    return length
