"""Every launch of a test is gone when the test is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import Launch, Launcher


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launcher]:
    """Start a launching process in the test's directory."""
    launches: list[Launch] = []

    def start(**options: Any) -> Launch:
        launches.append(Launch(tmp_path / "run", **options))
        return launches[-1]

    yield start
    for started in launches:
        started.kill()
