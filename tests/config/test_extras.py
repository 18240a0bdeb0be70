"""Which extra brings a module."""

import sys

import pytest

from runner.config.extras import how_to_install
from runner.config.imports import NotFound, locate


def test_a_module_of_an_extra_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it raises ModuleNotFoundError
    with pytest.raises(NotFound) as told:
        locate("transformers.BertModel")
    assert str(told.value).endswith(
        "there is no module 'transformers'. Install it: pip install 'hydra-runner[transformers]'"
    )


@pytest.mark.parametrize("module", ["torch", "nothing_like_it", "pytest", ""])
def test_what_no_extra_brings_has_no_command(module: str) -> None:
    assert how_to_install(module) == ""
