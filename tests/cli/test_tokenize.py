"""`runner tokenize` writes texts as tokens; a line that is no text is told with its place, and nothing is left."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from runner.data.megatron import IndexedTokens

Runner = Callable[..., tuple[int, str, str]]
TEXTS = [topics[name] for name in sorted(topics)]


def lines(path: Path, *values: Any) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def read(path: str) -> list[list[int]]:
    documents = IndexedTokens(path)
    return [documents[number].tolist() for number in range(len(documents))]


def test_texts_become_bytes_with_a_zero_after_each(runner: Runner, project: Path) -> None:
    lines(project / "texts.jsonl", *({"text": text} for text in TEXTS), {"text": ""})
    size = sum(len(text.encode()) + 1 for text in TEXTS)
    code, out, err = runner("tokenize", "texts.jsonl", "--out", "tokens/pydoc")
    assert (code, out) == (0, "tokens/pydoc\n")
    assert err == f"{len(TEXTS)} documents, {size:,} tokens of uint8\n1 empty texts are left out\n"
    assert [bytes(tokens).decode() for tokens in read("tokens/pydoc")] == [f"{text}\0" for text in TEXTS]
    code, _, err = runner("tokenize", "texts.jsonl", "--out", "tokens/pydoc")
    assert (code, err) == (5, "tokens/pydoc.bin exists. Give another prefix, or move it away.\n")


def test_several_files_another_key_and_another_end(runner: Runner, project: Path) -> None:
    lines(project / "a.jsonl", {"content": "é", "text": 1})
    lines(project / "b.jsonl", {"content": "b\u0100"})
    assert runner("tokenize", "a.jsonl", "b.jsonl", "--out", "ended", "--key", "content", "--end", "256")[0] == 0
    assert read("ended") == [[195, 169, 256], [98, 196, 128, 256]]
    assert IndexedTokens("ended").read(0, 0, 1).dtype == "uint16"
    assert runner("tokenize", "a.jsonl", "--out", "bare", "--key", "content", "--no-end")[0] == 0
    assert read("bare") == [[195, 169]]
    err = runner("tokenize", "b.jsonl", "--out", "inside", "--key", "content", "--end", "98")[2]
    assert err.endswith("1 documents have the token of an end inside, too\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "texts.jsonl:2 is no JSON: Expecting ',' delimiter"),
        (
            b'{"content": "a", "name": 1}',
            "texts.jsonl:2 has content, name, but must be an object with text under 'text'",
        ),
        (b'["text"]', "texts.jsonl:2 is a list, but must be an object with text under 'text'. Another key: --key NAME"),
        (b'{"text": 1}', "texts.jsonl:2 has text, but must be an object with text under 'text'"),
        (b'{"text": "\xff"}', "texts.jsonl:2: 'utf-8' codec can't decode byte 0xff"),
        (b'{"text": "\\ud800"}', "texts.jsonl:2: 'utf-8' codec can't encode character '\\ud800'"),
    ],
)
def test_a_line_without_text_is_told_with_its_place(runner: Runner, project: Path, line: bytes, message: str) -> None:
    (project / "texts.jsonl").write_bytes(b'{"text": "a"}\n' + line + b"\n")
    code, out, err = runner("tokenize", "texts.jsonl", "--out", "tokens")
    assert (code, out) == (5, "")
    assert err.startswith(message)
    assert [*project.glob("tokens*")] == []


def test_what_cannot_be_read_is_told(runner: Runner, project: Path) -> None:
    assert runner("tokenize", "no.jsonl", "--out", "tokens")[::2] == (5, "no.jsonl: No such file or directory.\n")
    lines(project / "texts.jsonl")
    assert runner("tokenize", "texts.jsonl", "--out", "tokens")[::2] == (
        5,
        "there is no token to write to tokens.bin: 0 documents have none.\n",
    )
    code, _, err = runner("tokenize", "texts.jsonl", "--out", "tokens", "--end", "-1")
    assert (code, err) == (2, "--end: -1 is no token: they are numbers from 0.\n")
    code, _, err = runner("tokenize", "texts.jsonl", "--out", "tokens", "--tokenizer", "./nowhere")
    assert code == 2
    assert err.startswith("--tokenizer: transformers cannot load ./nowhere: ")


def test_a_tokenizer_of_transformers_makes_the_tokens(runner: Runner, project: Path) -> None:
    tokenizer(project / "with_end", eos_token="<end>")
    tokenizer(project / "without")
    lines(project / "texts.jsonl", {"text": "two one"}, {"text": "one three"})
    assert runner("tokenize", "texts.jsonl", "--out", "tokens", "--tokenizer", "./with_end")[0] == 0
    assert read("tokens") == [[2, 1, 70000], [1, 0, 70000]]
    code, _, err = runner("tokenize", "texts.jsonl", "--out", "ended", "--tokenizer", "./without")
    assert (code, err) == (
        2,
        "--end: ./without has no token for the end of a text. Give one, --end ID, or do without: --no-end.\n",
    )


def tokenizer(path: Path, **special: str) -> None:
    """A tokenizer of whole words, saved as transformers does."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words: Mapping[str, int] = {"<unknown>": 0, "one": 1, "two": 2, "<end>": 70000}
    inner = Tokenizer(models.WordLevel(dict(words), unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(path)
