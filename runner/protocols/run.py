"""The view of a run that listeners get."""

from collections.abc import Mapping, Sequence
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
    """How an attempt ended; the values are written to status.json."""

    DONE = "done"
    """All requested steps were taken, or a callback ended the run."""
    FAILED = "failed"
    """An error ended it."""
    PREEMPTED = "preempted"
    """A signal ended it at a step boundary; it can be resumed."""


class Trackers(Protocol):
    """All trackers of a run, usable on any rank; except on rank 0 the methods do nothing.

    Values are logged for the current step. A tracker's first error is reported, and no error of it ends the run.
    """

    def log(self, values: Mapping[str, float]) -> None:
        """Record numbers, which are also written to metrics.jsonl. They must be plain floats."""
        ...

    def log_images(self, images: Mapping[str, Image]) -> None:
        """Record images by name."""
        ...

    def log_tables(self, tables: Mapping[str, Table]) -> None:
        """Record tables by name."""
        ...

    def log_text(self, texts: Mapping[str, str]) -> None:
        """Record texts by name."""
        ...

    def log_artifact(self, path: Path, *, name: str, kind: str) -> None:
        """Store a file, or a directory with all its content.

        Args:
            path: must not change until the run ends, since it may be uploaded in the background.
            name: of the artifact.
            kind: of artifact: model, dataset, profile, …
        """
        ...

    def handle(self, name: str) -> Any | None:
        """The library's own object behind a tracker, for example wandb's Run; None on every rank except 0.

        Raises:
            HookError: the run has no tracker of that name, or it has no such object.
        """
        ...


class Run(Protocol):
    """A running attempt on one rank, as passed to listeners."""

    @property
    def run_dir(self) -> "RunDir":
        """The directory that the run writes to."""
        ...

    @property
    def world(self) -> World:
        """All ranks of the run."""
        ...

    @property
    def trainable(self) -> Trainable:
        """The models and their optimizers."""
        ...

    @property
    def progress(self) -> Progress:
        """Step and position in the data."""
        ...

    @property
    def eval_prefixes(self) -> Sequence[str]:
        """What the metrics of each evaluation set are called before the last slash; an evaluation may be of some."""
        ...

    @property
    def trackers(self) -> Trackers:
        """The trackers, for a listener's own values."""
        ...
