"""What a data hook may return, and what is said of what it may not."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset

from runner import Data
from runner.config.run_spec import Eval, EvalSet
from runner.data import Stream
from runner.data.datasets import check_agreement, check_data, eval_sets, is_stream, num_items
from runner.errors import DataError, HookError
from tests.data.threads import on_threads


class OwnSource:
    def open_source(self, request: Any) -> None:
        raise AssertionError("a check opens nothing")


def check(returned: Any, *, every_steps: int | None = None, sets: Any = None) -> Any:
    evaluation = Eval(every_steps=every_steps, at_end=True, micro_items=None, sets=sets or {})
    return check_data(returned, "hooks.load", evaluation=evaluation)


def test_what_can_be_trained_on_passes() -> None:
    for data in (
        Data(train=[1]),
        Data(train=OwnSource()),
        Data(train=[1], eval=[2]),
        Data(train=[1], eval={"a-1.b": [2]}),
    ):
        assert check(data) is data


def test_only_a_data_object_is_one() -> None:
    with pytest.raises(HookError, match=r"hooks\.load returned a list, but must return runner\.Data\(train="):
        check([1, 2])


class Endless:
    def __getitem__(self, index: int) -> int:
        return index


def test_a_dataset_without_length_is_refused() -> None:
    with pytest.raises(DataError, match=r"'train' dataset \(Endless\) has no length.*Return a map-style dataset"):
        check(Data(train=Endless()))


@pytest.mark.parametrize("name", ["train", "eval"])
def test_a_loader_in_place_of_a_dataset_is_told_what_to_return(name: str) -> None:
    loader: DataLoader[int] = DataLoader([1, 2], batch_size=2)
    with pytest.raises(HookError, match=f"'{name}' is a DataLoader that makes batches.*Return {name}=loader.dataset"):
        check(Data(**({"train": [1]} | {name: loader})))


class Streamed(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))

    def __len__(self) -> int:
        return 3


class OnlyInBatches:
    def __len__(self) -> int:
        return 3

    def __getitems__(self, indices: list[int]) -> list[int]:
        return indices


def test_a_dataset_of_whole_batches_is_map_style() -> None:
    assert num_items(OnlyInBatches(), "train") == 3


class Streaming:
    """As Hugging Face's streams: what it has by index are columns."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))

    def __getitem__(self, name: str) -> str:
        return name


LOADER: DataLoader[int] = DataLoader([1, 2], batch_size=None)


@pytest.mark.parametrize("stream", [Streamed(), Streaming(), LOADER, Stream(Streamed(), shard=False)])
def test_streams_pass(stream: Any) -> None:
    assert is_stream(stream)
    check(Data(train=stream, eval={"one": stream}))


@pytest.mark.parametrize("dataset", [[1], {0: 1}, OnlyInBatches()])
def test_what_has_an_index_is_no_stream(dataset: Any) -> None:
    assert not is_stream(dataset)


@pytest.mark.parametrize("wrap", [lambda items: items, Stream])
def test_what_can_be_read_once_only_is_refused(wrap: Any) -> None:
    with pytest.raises(DataError, match=r"'train' dataset \(generator\) is an iterator, which can be read once only"):
        check(Data(train=wrap(i for i in range(3))))


def test_a_set_is_refused() -> None:
    with pytest.raises(DataError, match=r"'eval' dataset \(set\) has no items by index, and its order differs"):
        check(Data(train=[1], eval={1, 2}))


@pytest.mark.parametrize("dataset", [{1, 2}, Streamed()])
def test_a_length_without_an_index_is_not_enough_for_an_order(dataset: Any) -> None:
    with pytest.raises(DataError, match=r"has no items by index\. Return a map-style dataset"):
        num_items(dataset, "train")


def test_ranks_with_datasets_of_unequal_length_are_told_on_each() -> None:
    def run(world: Any) -> None:
        check_agreement(Data(train=[0] * 5, eval={"near": [0] * (3 + world.rank), "far": Streamed()}), world)

    for result in on_threads(2, run):
        with pytest.raises(DataError, match=r"disagree on .* 'eval/near' dataset: 3 on rank 0, 4 on rank 1.*do not"):
            raise result


@pytest.mark.parametrize(
    ("data", "name"),
    [(Data(train=[]), "train"), (Data(train=[1], eval=[]), "eval"), (Data(train=[1], eval={"b": []}), "eval/b")],
)
def test_an_empty_dataset_is_refused(data: Any, name: str) -> None:
    with pytest.raises(DataError, match=f"'{name}' dataset is empty. Return at least one item"):
        check(data)


def test_evaluations_in_mid_run_need_something_to_evaluate_on() -> None:
    with pytest.raises(DataError, match=r"eval\.every_steps is set, but hooks\.load returned no eval dataset"):
        check(Data(train=[1]), every_steps=1)


def test_sets_are_told_apart_by_their_names() -> None:
    assert eval_sets(Data(train=[1])) == {}
    assert eval_sets(Data(train=[1], eval=[2])) == {"eval": [2]}
    assert eval_sets(Data(train=[1], eval={"near": [2], "far": [3]})) == {"eval/near": [2], "eval/far": [3]}


def test_a_mapping_without_sets_is_refused() -> None:
    with pytest.raises(DataError, match=r"eval is an empty mapping\. Name at least one dataset.*or return eval=None"):
        check(Data(train=[1], eval={}))


@pytest.mark.parametrize("name", ["a/b", "", "a b", 0, "ä"])
def test_a_name_that_no_metric_can_have_is_refused(name: int | str) -> None:
    with pytest.raises(DataError, match=r"eval has a set named .*eval/<set>/loss.*Rename it") as refused:
        check(Data(train=[1], eval={name: [2]}))
    assert repr(name) in str(refused.value)


def test_sets_of_the_recipe_must_be_among_those_of_the_hook() -> None:
    both = {"near": [1], "far": [1]}
    check(Data(train=[1], eval=both), sets={"far": EvalSet(prefix="test")})
    with pytest.raises(
        DataError, match=r"eval.sets.fra: hooks.load gives no evaluation set 'fra'. It gives: near, far"
    ):
        check(Data(train=[1], eval=both), sets={"fra": EvalSet()})
    with pytest.raises(DataError, match=r"It names none: return eval=\{'name': dataset"):
        check(Data(train=[1], eval=[1]), sets={"far": EvalSet()})
    with pytest.raises(DataError, match="two evaluation sets have the prefix eval/near"):
        check(Data(train=[1], eval=both), sets={"far": EvalSet(prefix="eval/near")})
