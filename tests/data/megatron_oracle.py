"""What megatron-core makes of the same tokens: writes megatron_facts.json, which tests compare with.

    pip install --no-deps megatron-core==0.16.1
    python tests/data/megatron_oracle.py

The tests need neither: on Linux its wheel runs on a CPU, but for macOS it has none.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy

FACTS = Path(__file__).with_name("megatron_facts.json")
SPLITS = ("969,30,1", "8,1,1", "1,0,0", "99.5,.5", "1,1,1", "0,1")
DOCUMENTS = (1, 7, 10, 24, 50, 999, 12345)
LENGTHS = [1 + 37 * number % 29 for number in range(24)]
"""Of the documents of a case: from 1 to 29 tokens."""
CASES = [
    {"dtype": "uint16", "split": "8,1,1", "part": "train", "sequence_length": 8, "seed": 1234},
    {"dtype": "int32", "split": "8,1,1", "part": "valid", "sequence_length": 8, "seed": 1234},
    {"dtype": "uint8", "split": "1,1,1", "part": "test", "sequence_length": 5, "seed": 7},
    {"dtype": "uint16", "split": "1,0,0", "part": "train", "sequence_length": 64, "seed": 0},
    {"dtype": "uint16", "split": "1,0,0", "part": "train", "sequence_length": 1, "seed": 2**32 - 1},
]


def documents(dtype: str) -> Iterator[Any]:
    """The tokens of each document of a case, all different as far as the type allows."""
    values = numpy.random.RandomState(0).permutation(sum(LENGTHS)) % (numpy.iinfo(dtype).max + 1)
    return iter(numpy.split(values, numpy.cumsum(LENGTHS)[:-1]))


def digest(path: str) -> str:
    """Of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def main() -> None:
    """Ask it."""
    import torch
    from megatron.core.datasets import blended_megatron_dataset_config as config
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    found: dict[str, Any] = {"files": {}, "splits": {}, "samples": []}
    with tempfile.TemporaryDirectory() as scratch:
        for dtype in ("uint8", "uint16", "int32"):
            builder = IndexedDatasetBuilder(f"{scratch}/{dtype}.bin", dtype=getattr(numpy, dtype))
            for document in documents(dtype):
                builder.add_document(torch.from_numpy(document), [len(document)])
            builder.finalize(f"{scratch}/{dtype}.idx")
            found["files"][dtype] = {end: digest(f"{scratch}/{dtype}.{end}") for end in ("bin", "idx")}
        for split in SPLITS:
            matrix = config.convert_split_vector_to_split_matrix(config.parse_and_normalize_split(split))
            found["splits"][split] = {  # as BlendedMegatronDatasetBuilder rounds them
                number: [
                    place and [round(place[0] * float(number)), round(place[1] * float(number))] for place in matrix
                ]
                for number in DOCUMENTS
            }
        for case in CASES:
            matrix = config.convert_split_vector_to_split_matrix(config.parse_and_normalize_split(case["split"]))
            place = matrix[("train", "valid", "test").index(case["part"])]
            ends = [round(end * float(len(LENGTHS))) for end in place]
            dataset = IndexedDataset(f"{scratch}/{case['dtype']}")
            found["samples"].append(samples(dataset, numpy.arange(*ends, dtype=numpy.int32), case))
            del dataset
    FACTS.write_text(json.dumps(found, separators=(",", ":")) + "\n")


def samples(dataset: Any, indices: Any, case: dict[str, Any]) -> list[list[int]]:
    """The samples of one epoch, before they are shuffled."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    class NoTokenizer:
        vocab_size, pad, eod = 1 << 20, -1, 0
        unique_identifiers: ClassVar[dict[str, Any]] = {}

    made = GPTDataset(
        dataset,
        None,
        indices,
        None,
        Split[case["part"]],
        GPTDatasetConfig(
            random_seed=case["seed"],
            sequence_length=case["sequence_length"],
            split=case["split"],
            blend=([dataset.path_prefix], None),
            path_to_cache=f"{dataset.path_prefix}-{case['seed']}-{case['sequence_length']}",
            tokenizer=NoTokenizer(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        ),
    )
    shuffled = {int(place): number for number, place in enumerate(made.shuffle_index)}
    return [made._query_document_sample_shuffle_indices(shuffled[place])[0].tolist() for place in range(len(made))]


if __name__ == "__main__":
    main()
