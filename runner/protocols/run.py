"""A run as its listeners see it."""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runner.protocols.media import Image, Table
from runner.protocols.state import Progress
from runner.protocols.strategy import Trainable
from runner.protocols.world import World

if TYPE_CHECKING:
    from runner.config.run_dir import RunDir


class Outcome(Enum):
    """How an attempt ended; the words of status.json."""

    DONE = "done"
    """It took all the steps that it was asked for, or a callback ended it."""
    FAILED = "failed"
    """An error ended it."""
    PREEMPTED = "preempted"
    """A signal ended it at a step boundary; it can be resumed."""


class Trackers(Protocol):
    """All trackers of a run, from any rank: on every rank but 0 the methods do nothing.

    What is logged belongs to the current step. A tracker that raises is reported once and never ends the run.
    """

    def log(self, values: Mapping[str, float]) -> None:
        """Record numbers, in metrics.jsonl too. They must be plain floats, on the host."""
        ...

    def log_images(self, images: Mapping[str, Image]) -> None:
        """Record pictures, by name."""
        ...

    def log_tables(self, tables: Mapping[str, Table]) -> None:
        """Record tables, by name."""
        ...

    def log_text(self, texts: Mapping[str, str]) -> None:
        """Record pieces of text, by name."""
        ...

    def log_artifact(self, path: Path, *, name: str, kind: str) -> None:
        """Keep a file, or a directory with all that is in it.

        Args:
            path: it must stay as it is until the run ends, since an upload may happen in the background.
            name: what to find it by.
            kind: what it is: model, dataset, profile, …
        """
        ...

    def handle(self, name: str) -> Any | None:
        """The library's own object behind a tracker, for example wandb's Run; None on every rank but 0.

        Raises:
            HookError: the run has no tracker of that name, or it has no such object.
        """
        ...


class Run(Protocol):
    """A run at work, on one rank: what listeners are given."""

    @property
    def run_dir(self) -> "RunDir":
        """Where the run writes."""
        ...

    @property
    def world(self) -> World:
        """The ranks."""
        ...

    @property
    def trainable(self) -> Trainable:
        """Model and optimizer."""
        ...

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        ...

    @property
    def trackers(self) -> Trackers:
        """Where a listener may record what it finds."""
        ...
