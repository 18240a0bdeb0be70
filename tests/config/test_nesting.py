"""YAML that would end the process, or fill its memory, is an error."""

import pytest
import yaml

from runner.config.store import load_yaml

LAUGHS = ["a: &a [1, 2]", *(f"a{n}: &a{n} [{', '.join(['*a' + (str(n - 1) if n else '')] * 10)}]" for n in range(9))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000 + "]" * 100_000, "line 1 is nested more than 100 levels deep"),  # ends PyYAML with SIGSEGV
        ("- " * 100_000, "nested more than 100 levels"),
        ("a: &a [*a]", "line 1: a contains itself"),
        ("a: &a {b: [*a]}", "a contains itself"),
        ("\n".join(LAUGHS), "its aliases stand for more than 1,000,000 values"),
        ("a: *b", "undefined alias"),
    ],
    ids=["brackets", "dashes", "list_of_itself", "mapping_of_itself", "laughs", "no_anchor"],
)
def test_what_is_beyond_reason_is_refused(text: str, words: str) -> None:
    with pytest.raises(yaml.YAMLError, match=words):
        load_yaml(text)


def test_what_is_nested_and_repeated_with_reason_is_loaded() -> None:
    assert load_yaml("a: &a [1, {b: 2}]\nc: [*a, *a]\n") == {"a": [1, {"b": 2}], "c": [[1, {"b": 2}]] * 2}
    deep: object = 1
    for _ in range(99):
        deep = [deep]
    assert load_yaml("[" * 99 + "1" + "]" * 99) == deep
    assert load_yaml("") is None
