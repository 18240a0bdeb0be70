"""Every launch of a test is gone when the test is."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from launching import Launch, Launcher
from machines import Node, StartNode, on_host

from tests.conftest import Zygote


@pytest.fixture
def launch(tmp_path: Path, zygote: Zygote) -> Iterator[Launcher]:
    """Start a launching process in the test's directory."""
    launches: list[Launch] = []

    def start(**options: Any) -> Launch:
        launches.append(Launch(tmp_path / "run", zygote, **options))
        return launches[-1]

    yield start
    for started in launches:
        started.kill()


@pytest.fixture
def node(project: Path, zygote: Zygote, tmp_path: Path) -> Iterator[StartNode]:
    """Start the command as one machine would: node("train", "points", …); `within` one of the hosts, if given."""
    nodes: list[Node] = []

    def start(*argv: str, within: Sequence[str] = (), cwd: Path = project) -> Node:
        if within:
            nodes.append(on_host(within, argv, cwd=cwd))
        else:
            nodes.append(Node(zygote.start(list(argv), cwd=cwd, scratch=tmp_path, env={})))
        return nodes[-1]

    yield start
    for started in nodes:
        started.kill()
        started.end()
