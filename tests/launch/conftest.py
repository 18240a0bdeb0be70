"""Every launch of a test is gone when the test is."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from launching import Launch, Launcher
from machines import Node, StartNode


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


@pytest.fixture
def node(project: Path) -> Iterator[StartNode]:
    """Start the command as one machine would: node("train", "points", …)."""
    nodes: list[Node] = []

    def start(*argv: str, within: Sequence[str] = (), cwd: Path = project) -> Node:
        nodes.append(Node(argv, cwd=cwd, within=within))
        return nodes[-1]

    yield start
    for started in nodes:
        started.kill()
        started.end()
