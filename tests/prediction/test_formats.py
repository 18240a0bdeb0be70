"""Files of predictions: what their names say, and what cannot be written."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

from runner.errors import HookError
from runner.prediction.formats import SUFFIXES, Columns, format_fault, format_of


def test_a_format_whose_library_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert format_fault(Path("found.parquet")) == ""
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # importing it raises ModuleNotFoundError
    said = ".parquet needs pyarrow, which is not installed: pip install 'hydra-runner[parquet]'"
    assert format_fault(Path("found.parquet")) == said
    assert format_fault(Path("found.jsonl")) == format_fault(Path("found.safetensors")) == ""


def written(directory: Path, suffix: str, parts: Sequence[Sequence[Columns]]) -> Path:
    """A file joined from parts, each of some batches."""
    path = directory / f"found{suffix}"
    found = format_of(path)
    files = [directory / f"part_{number}{suffix}" for number in range(len(parts))]
    for file, batches in zip(files, parts, strict=True):
        found.write(file, batches)
    found.join(files, path)
    return path


FIVE: Sequence[Sequence[Columns]] = [
    [{"x": torch.arange(6.0).view(2, 3), "n": torch.tensor([1, 2])}, {"x": torch.full((1, 3), 7.0), "n": [3]}],
    [{"x": torch.zeros(2, 3), "n": torch.tensor([4, 5])}],
]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_parts_are_joined_in_their_order(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix, FIVE)
    if suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        columns: Any = {name: [row[name] for row in rows] for name in rows[0]}
    else:
        columns = parquet.read_table(path).to_pydict() if suffix == ".parquet" else load_file(path)
    assert torch.as_tensor(columns["n"]).tolist() == [1, 2, 3, 4, 5]
    assert torch.as_tensor(columns["x"]).tolist() == [[0, 1, 2], [3, 4, 5], [7, 7, 7], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("suffix", "parts", "said"),
    [
        (".jsonl", [[{"x": [{1}]}]], "the output 'x' holds a set, which JSON cannot represent"),
        (".safetensors", [[{"x": ["a"]}]], "the output 'x' is a list of str, but safetensors holds tensors only"),
        (".safetensors", [[{"x": torch.ones(1, 2)}, {"x": torch.ones(1, 3)}]], r"items of the shapes \[2\] and \[3\]"),
        (
            ".safetensors",
            [[{"x": torch.ones(1, 2)}], [{"x": torch.ones(1, 3)}]],
            r"items of the shapes \[2\] and \[3\]",
        ),
        (".parquet", [[{"x": [object()]}]], "the output 'x' cannot be written to Parquet"),
        (".parquet", [[{"x": ["a"]}, {"x": [[1]]}]], "the outputs of two micro-batches do not make one Parquet table"),
        (
            ".parquet",
            [[{"x": ["a"]}], [{"x": [[1]]}]],
            "the outputs of two micro-batches do not make one Parquet table",
        ),
    ],
)
def test_outputs_that_a_format_does_not_hold_are_told(tmp_path: Path, suffix: str, parts: Any, said: str) -> None:
    with pytest.raises(HookError, match=said):
        written(tmp_path, suffix, parts)
