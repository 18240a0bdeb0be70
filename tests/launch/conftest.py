"""Every launch of a test is gone when the test is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import Launch, Launcher
from machines import Node, StartNode

from tests.conftest import Zygote


@pytest.fixture
def launch(tmp_path: Path, zygote: Zygote) -> Iterator[Launcher]:
    """Start a launching process in the test's directory; its new interpreters are forks unless forks=False."""
    launches: list[Launch] = []

    def start(**options: Any) -> Launch:
        launches.append(Launch(tmp_path / "run", zygote, **options))
        return launches[-1]

    yield start
    for started in launches:
        started.kill()


@pytest.fixture
def node(project: Path, zygote: Zygote, tmp_path: Path) -> Iterator[StartNode]:
    """Start the command as one machine would: node("train", "points", …, host="a"); see tests/zygote.py.

    Its ranks, which are new interpreters, are forks unless forks=False.
    """
    nodes: list[Node] = []

    def start(*argv: str, forks: bool = True, **within: str) -> Node:
        started = zygote.start(list(argv), cwd=project, scratch=tmp_path, env={}, within=within, forks=forks)
        nodes.append(Node(started))
        return nodes[-1]

    yield start
    for started in nodes:
        started.kill()
        started.end()
