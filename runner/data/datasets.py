"""What a data hook returned, checked before it is used."""

import re
from collections.abc import Iterable, Iterator, Mapping, Set, Sized
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import DataLoader, IterableDataset

from runner.config.run_spec import Eval
from runner.data.seeded import ReadsMany
from runner.data.stream import Stream
from runner.errors import DataError, HookError
from runner.protocols import Data, OpensSource, World

KINDS = "Return a map-style dataset, with __len__ and __getitem__, or a stream, with __iter__ (docs/data.md)."
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
        _check_dataset(returned.train, "train")
    for prefix, dataset in eval_sets(returned).items():
        _check_dataset(dataset, prefix)
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


def is_stream(dataset: Any) -> bool:
    """Whether the items of a dataset are read by iterating over it, as they have no index."""
    if isinstance(dataset, IterableDataset):
        return True
    has_index = isinstance(dataset, Sized) and isinstance(dataset, Indexed | ReadsMany)
    return isinstance(dataset, Iterable) and not has_index


def num_items(dataset: Any, name: str) -> int:
    """The length of a map-style dataset.

    Raises:
        DataError: it has no length or no items by index, or is empty.
    """
    if not isinstance(dataset, Sized):
        kind = type(dataset).__name__
        raise DataError(
            f"the data hook's {name!r} dataset ({kind}) has no length, which an order of its items needs. {KINDS}"
        )
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Indexed | ReadsMany):
        kind = type(dataset).__name__
        raise DataError(f"the data hook's {name!r} dataset ({kind}) has no items by index. {KINDS}")
    length = len(dataset)
    if length == 0:
        raise DataError(f"the data hook's {name!r} dataset is empty. Return at least one item.")
    return length


def check_agreement(data: Data, world: World) -> None:
    """See that every rank has as many items: each takes its own of one order. Collective.

    Raises:
        DataError: they do not.
    """
    sets = {"train": data.train} | eval_sets(data)
    lengths = {name: len(one) for name, one in sets.items() if not isinstance(one, OpensSource) and not is_stream(one)}
    of_ranks = world.gather_objects(lengths)
    for name in lengths:
        counts = [of_rank.get(name) for of_rank in of_ranks]
        if any(count != counts[0] for count in counts):
            listed = ", ".join(f"{count} on rank {rank}" for rank, count in enumerate(counts))
            raise DataError(
                f"the ranks disagree on the number of items of the data hook's {name!r} dataset: {listed}. Every rank "
                "reads its own items of one order, so the dataset must be the same on every rank: do not divide it by "
                "rank in the hook."
            )


def _check_dataset(dataset: Any, name: str) -> None:
    """See that a dataset can be read.

    Raises:
        HookError: it is a DataLoader that makes batches.
        DataError: it is neither map-style nor a stream, is empty, or can be read once only.
    """
    if isinstance(dataset, DataLoader) and (dataset.batch_size is not None or dataset.batch_sampler is not None):
        raise HookError(
            f"the data hook's {name!r} is a DataLoader that makes batches, but must be a dataset: the runner makes the "
            f"loaders. Return {name}=loader.dataset and collate=loader.collate_fn; batch.items, loader.workers and "
            "order say the rest. A loader of single items, with batch_size=None, is a stream."
        )
    if isinstance(dataset, Stream):
        _check_dataset(dataset.dataset, name)
    elif not is_stream(dataset):
        num_items(dataset, name)
    elif isinstance(dataset, Iterator):
        raise DataError(
            f"the data hook's {name!r} dataset ({type(dataset).__name__}) is an iterator, which can be read once only. "
            "Return an object whose __iter__ begins at the first item, such as an IterableDataset."
        )
    elif isinstance(dataset, Set):
        raise DataError(
            f"the data hook's {name!r} dataset ({type(dataset).__name__}) has no items by index, and its order differs "
            "between processes. Return a list."
        )
