"""Tokens in Megatron's files: what megatron-core makes of the same ones, and one clear error for a damaged file."""

import json
import pickle
import struct
from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from runner.config.hooks import hook_of, resolve
from runner.data.megatron import IndexedTokens, PackedTokens, build_data
from runner.data.megatron.index import index_bytes
from runner.data.megatron.write import token_type, write_tokens
from runner.data.mixture import Mixture
from runner.errors import DataError
from tests.data.megatron_oracle import CASES, DOCUMENTS, FACTS, LENGTHS, SPLITS, digest, documents
from tests.data.test_source import request

MEGATRON = json.loads(FACTS.read_text())


def written(path: Path, some: Sequence[Sequence[int]], dtype: str = "uint16") -> str:
    """Files of these documents; their prefix."""
    write_tokens(path, some, dtype=numpy.dtype(dtype))
    return str(path)


def items(dataset: Any) -> list[list[int]]:
    """Every item of a map-style dataset."""
    return [dataset[index].tolist() for index in range(len(dataset))]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_files_are_those_of_megatron_core_byte_for_byte(tmp_path: Path, dtype: str) -> None:
    found = write_tokens(tmp_path / "deep" / "er" / "tokens", documents(dtype), dtype=numpy.dtype(dtype))
    assert found == (len(LENGTHS), sum(LENGTHS))
    for end, wanted in MEGATRON["files"][dtype].items():
        assert digest(str(tmp_path / "deep" / "er" / f"tokens.{end}")) == wanted
    assert sorted(path.name for path in (tmp_path / "deep" / "er").iterdir()) == ["tokens.bin", "tokens.idx"]
    read = IndexedTokens(tmp_path / "deep" / "er" / "tokens")
    assert items(read) == [one.tolist() for one in documents(dtype)]
    assert read[0].dtype == torch.int64


@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_those_of_megatron_core(tmp_path: Path, split: str) -> None:
    for number in DOCUMENTS:
        path = written(tmp_path / f"{number}", [[one % 7] for one in range(number)], "uint8")
        for part, ends in zip(("train", "valid", "test"), MEGATRON["splits"][split][str(number)], strict=True):
            if ends is None or ends[0] == ends[1]:
                with pytest.raises(DataError, match=f"has no documents in its part '{part}': {number} are split by"):
                    IndexedTokens(path, split=split, part=part)
            else:
                found = IndexedTokens(path, split=split, part=part)
                assert [int(found[place]) for place in (0, -1)] == [ends[0] % 7, (ends[1] - 1) % 7]
                assert len(found) == ends[1] - ends[0]


@pytest.mark.parametrize(("case", "samples"), [*zip(CASES, MEGATRON["samples"], strict=True)])
def test_samples_are_those_of_megatron_core(tmp_path: Path, case: Any, samples: list[list[int]]) -> None:
    write_tokens(tmp_path / "tokens", documents(case["dtype"]), dtype=numpy.dtype(case["dtype"]))
    part = IndexedTokens(tmp_path / "tokens", split=case["split"], part=case["part"])
    packed = PackedTokens(part, sequence_length=case["sequence_length"], seed=case["seed"])
    assert items(packed) == samples
    assert len(packed) == len(samples) > 1


def test_without_a_seed_each_token_is_predicted_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "tokens", [[], [1, 2, 3], [], [], [4], [5, 6, 7, 8, 9], []])
    packed = PackedTokens(IndexedTokens(path), sequence_length=2, seed=None)
    assert items(packed) == [[1, 2, 3], [3, 4, 5], [5, 6, 7], [7, 8, 9]]
    assert packed[0].dtype == torch.int64
    with pytest.raises(IndexError):
        packed[4]


def raw_index(
    *,
    lengths: Sequence[int] = (2, 3, 1),
    offsets: Sequence[int] = (0, 4, 10),
    starts: Sequence[int] = (0, 1, 2, 3),
    head: bytes = b"MMIDIDX\x00\x00",
    version: int = 1,
    code: int = 8,
    rest: bytes = b"",
) -> bytes:
    """An index, written number by number."""
    parts = [head, struct.pack("<QBQQ", version, code, len(lengths), len(starts))]
    parts += [struct.pack("<i", one) for one in lengths] + [struct.pack("<q", one) for one in (*offsets, *starts)]
    return b"".join([*parts, rest])


def raw(path: Path, index: bytes, tokens: bytes = struct.pack("<6H", 1, 2, 3, 4, 5, 6)) -> Path:
    """Both files, as they are given."""
    path.with_suffix(".idx").write_bytes(index)
    path.with_suffix(".bin").write_bytes(tokens)
    return path


def test_a_document_of_several_sequences_is_one_and_an_empty_one_is_empty(tmp_path: Path) -> None:
    path = raw(tmp_path / "tokens", raw_index(starts=(0, 0, 2, 2, 3, 3)))
    found = IndexedTokens(path)
    assert items(found) == [[], [1, 2, 3, 4, 5], [], [6], []]
    packed = PackedTokens(found, sequence_length=2, seed=None)
    assert items(packed) == [[1, 2, 3], [3, 4, 5]]


def test_sequences_may_stand_in_another_order_than_in_the_index(tmp_path: Path) -> None:
    path = raw(tmp_path / "tokens", raw_index(lengths=(1, 2, 3), offsets=(10, 0, 4)))
    assert items(IndexedTokens(path)) == [[6], [1, 2], [3, 4, 5]]


WHOLE = raw_index()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"", "tokens.idx does not begin with MMIDIDX"),
        (WHOLE[:33], "tokens.idx does not begin with MMIDIDX"),
        (
            WHOLE[:40],
            "tokens.idx has 40 bytes, but an index of 3 sequences and 3 documents has 102. Its writing was cut",
        ),
        (WHOLE[:-1], "tokens.idx has 101 bytes, but an index"),
        (WHOLE + b"12", "tokens.idx has 104 bytes, but an index"),
        (WHOLE + b"123", "tokens.idx has a byte for each sequence after its documents: the modes of a multimodal"),
        (raw_index(head=b"TNTIDX\x00\x00\x01"), "tokens.idx is of the format before this one"),
        (raw_index(version=2), "tokens.idx is of version 2 of Megatron's format. Version 1 is the one"),
        (raw_index(code=7), r"tokens.idx has tokens of type 7, but tokens are whole numbers, of type 1 \(uint8\), 2 "),
        (raw_index(code=4), "tokens.idx has a sequence of negative length, or one that begins amid a token"),
        (raw_index(code=1), "tokens.bin has 12 bytes, but the sequences of tokens.idx end at byte 11."),
        (raw_index(lengths=(2, -3, 1)), "tokens.idx has a sequence of negative length"),
        (raw_index(offsets=(0, -4, 10)), "tokens.idx has a sequence of negative length"),
        (raw_index(lengths=(2, 3, 2)), "tokens.bin has 12 bytes, but the sequences of tokens.idx end at byte 14. One"),
        (raw_index(lengths=(2, 3, 0)), "tokens.bin has 12 bytes, but the sequences of tokens.idx end at byte 10. One"),
        (raw_index(starts=(0, 1, 2, 2)), "tokens.idx: the numbers of the first sequences of its documents must begin"),
        (raw_index(starts=(1, 1, 2, 3)), "tokens.idx: the numbers of the first sequences of its documents must begin"),
        (raw_index(starts=(0, 2, 1, 3)), "tokens.idx: the numbers of the first sequences of its documents must begin"),
        (raw_index(lengths=(1, 2, 3), offsets=(10, 0, 4), starts=(0, 2, 3)), "tokens.idx: sequence 1 stands elsewhere"),
        (raw_index(lengths=(), offsets=(), starts=(0,)), "tokens.idx has 0 sequences and 0 documents. It needs one"),
    ],
)
def test_a_damaged_index_is_one_error_that_names_the_file_and_the_rule(
    tmp_path: Path, index: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        IndexedTokens(raw(tmp_path / "tokens", index))


def test_a_file_of_tokens_that_is_cut_short_longer_empty_or_missing_is_told(tmp_path: Path) -> None:
    for tokens in (b"\x01" * 11, b"\x01" * 13, b""):
        path = raw(tmp_path / "tokens", WHOLE, tokens)
        with pytest.raises(DataError, match=f"tokens.bin has {len(tokens)} bytes, but the sequences of tokens.idx end"):
            IndexedTokens(path)
    with pytest.raises(DataError, match=r"tokens.idx has documents without any token. At least one is needed."):
        IndexedTokens(raw(path, raw_index(lengths=(0,), offsets=(0,), starts=(0, 1)), b""))
    raw(path, WHOLE).with_suffix(".bin").unlink()
    with pytest.raises(DataError, match=r"tokens.bin: No such file .* prefix of two files, tokens.bin and tokens.idx"):
        IndexedTokens(path)
    raw(path, WHOLE).with_suffix(".idx").unlink()
    with pytest.raises(DataError, match=r"tokens.idx: No such file or directory"):
        IndexedTokens(path)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"split": "8:1:1"}, r"the split '8:1:1' must be up to three numbers, the shares of train, valid, test"),
        ({"split": "1,1,1,1"}, "must be up to three numbers"),
        ({"split": "-1,2"}, "must be up to three numbers"),
        ({"split": "0,0"}, "of which one is above 0"),
        ({"split": "1,1", "part": "dev"}, "there is no part 'dev' of a split: they are train, valid, test."),
    ],
)
def test_a_wrong_split_is_told(tmp_path: Path, asked: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        IndexedTokens(raw(tmp_path / "tokens", WHOLE), **asked)


@pytest.mark.parametrize("sequence_length", [0, 6])
def test_too_few_tokens_for_a_sample_are_told(tmp_path: Path, sequence_length: int) -> None:
    found = IndexedTokens(raw(tmp_path / "tokens", WHOLE))
    with pytest.raises(DataError, match=r"tokens has 6 tokens in its part 'train', .* Use a length from 1 to 5, or"):
        PackedTokens(found, sequence_length=sequence_length, seed=0)


def test_a_seed_out_of_range_is_told(tmp_path: Path) -> None:
    found = IndexedTokens(raw(tmp_path / "tokens", WHOLE))
    with pytest.raises(DataError, match=r"seed=4294967296 must be from 0 to 4294967295"):
        PackedTokens(found, sequence_length=2, seed=2**32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "there is no token to write to .*: 0 documents have none."),
        ([[], []], "there is no token to write to .*: 2 documents have none."),
        ([[1], [70000]], "document 1 has the token 70000, which uint16 does not hold"),
        ([[1], [-1]], "document 1 has the token -1, which uint16 does not hold"),
        (
            [[[1], [2]]],
            r"document 0 must have its tokens in one row of whole numbers: got int64 values of shape \[2, 1\]",
        ),
        ([[0.5]], r"document 0 must have its tokens in one row of whole numbers: got float64"),
    ],
)
def test_what_cannot_be_written_is_told_and_nothing_is_left(tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        written(tmp_path / "tokens", given)
    assert [*tmp_path.iterdir()] == []


def test_files_are_not_written_over(tmp_path: Path) -> None:
    path = Path(written(tmp_path / "tokens", [[1]]))
    with pytest.raises(DataError, match=r"tokens.bin exists. Give another prefix, or move it away."):
        written(path, [[2]])
    assert items(IndexedTokens(path)) == [[1]]


def test_tokens_have_the_smallest_type_that_holds_them() -> None:
    sizes = [str(token_type(largest)) for largest in (255, 256, 65535, 65536, 2**31 - 1)]
    assert sizes == ["uint8", "uint16", "uint16", "int32", "int32"]
    with pytest.raises(DataError, match="token 2147483648 is more than 2147483647"):
        token_type(2**31)


def test_to_another_process_goes_the_path_and_not_the_tokens(tmp_path: Path) -> None:
    path = written(tmp_path / "tokens", [[*range(50_000)], [7]])
    assert IndexedTokens(path)[0].tolist() == [*range(50_000)]  # more than is asked for page by page
    found = IndexedTokens(path, split="1,1", part="valid")
    sent = pickle.dumps(found)
    assert len(sent) < 1000
    assert pickle.loads(sent)[0].tolist() == [7]


def test_an_index_of_many_documents_is_read_without_an_object_for_each(tmp_path: Path) -> None:
    """More than are checked at a time."""
    lengths = array("i", [3]) * (5 << 19)
    (tmp_path / "many.idx").write_bytes(b"".join(index_bytes(numpy.dtype("u1"), lengths)))
    with (tmp_path / "many.bin").open("wb") as file:
        file.truncate(3 * len(lengths))
    packed = PackedTokens(IndexedTokens(tmp_path / "many"), sequence_length=99, seed=0)
    assert len(packed) == (3 * len(lengths) - 1) // 99
    assert packed[len(packed) - 1].tolist() == [0] * 100


def test_a_blend_reads_every_sample_once_an_epoch_whatever_the_ranks_workers_and_stops(tmp_path: Path) -> None:
    paths = {
        "low": written(tmp_path / "low", [[*range(start, start + 30)] for start in range(0, 300, 30)]),
        "high": written(tmp_path / "high", [[*range(start, start + 20)] for start in range(1000, 1400, 20)]),
    }
    data = build_data(path=paths, sequence_length=10, split="1,0,0", weights={"low": 1, "high": 3}, seed=5)
    assert data.eval is None
    assert isinstance(data.train, Mixture)

    def read(steps: int, *, state: Any = None, ranks: int = 1, workers: int = 0) -> tuple[list[tuple[int, ...]], Any]:
        asked = [request(rank=rank, ranks=ranks, workers=workers, step_items=8) for rank in range(ranks)]
        sources = [data.train.open_source(one) for one in asked]
        for source in sources:
            source.load_state_dict(state or source.state_dict())
        seen: list[tuple[int, ...]] = []
        for step in zip(*(islice(source, steps) for source in sources), strict=True):
            for micros in zip(*(of_rank.micro_batches for of_rank in step), strict=True):
                seen += [tuple(row) for micro in micros for row in micro.batch.tolist()[: micro.items]]
        return seen, sources[0].state_dict()

    whole, _ = read(16)
    first, state = read(5, ranks=3)
    assert first + read(11, state=state, ranks=2, workers=1)[0] == whole
    counts = Counter("high" if sample[0] >= 1000 else "low" for sample in whole)
    assert counts["high"] == pytest.approx(96, abs=2)
    low = [sample for sample in whole if sample[0] < 1000]
    assert len({*low[:29]}) == 29 == len(IndexedTokens(paths["low"])) * 3 - 1  # all samples before one comes again


def test_a_recipe_puts_the_parts_together_without_a_hook_of_its_own(tmp_path: Path) -> None:
    """As in docs/data.md."""
    documents = {"_target_": "runner.data.IndexedTokens", "path": written(tmp_path / "tokens", [[1], [2, 3, 4], [5]])}
    train = {
        "_target_": "runner.data.PackedTokens",
        "documents": documents | {"split": "2,1"},
        "sequence_length": 3,
        "seed": None,
    }
    data = resolve(hook_of({"_target_": "runner.Data", "train": train}), [])()
    assert items(data.train) == [[1, 2, 3, 4]]


def test_the_ready_made_hook_evaluates_on_the_part_that_it_is_told(tmp_path: Path) -> None:
    one = written(tmp_path / "one", [[number] * 10 for number in range(10)])
    options: dict[str, Any] = {"sequence_length": 9, "split": "8,1,1", "seed": 0}
    data = build_data(path=one, **options)
    assert isinstance(data.train, PackedTokens)
    assert (len(data.train), items(data.eval)) == (8, [[8] * 10])
    tested = build_data(path=one, evaluate="test", **options).eval
    assert items(tested) == [[9] * 10]
    named = build_data(path={"one": one, "same": one}, **options).eval
    assert {name: len(part) for name, part in named.items()} == {"one": 1, "same": 1}
    with pytest.raises(DataError, match=r"evaluate='dev' must be one of valid, test."):
        build_data(path=one, evaluate="dev", **options)
