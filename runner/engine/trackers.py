"""Everything that records a run: metrics.jsonl, and the trackers on top of it."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, final

from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.engine.metrics_file import MetricsFile, open_metrics_file
from runner.errors import HookError
from runner.protocols import (
    HasHandle,
    Image,
    LogsArtifacts,
    LogsImages,
    LogsTables,
    LogsText,
    Outcome,
    RunInfo,
    Table,
    TrackerLog,
)

logger = logging.getLogger(__name__)


@final
class NoTrackers:
    """Records nothing: the trackers of every rank except rank 0."""

    def log(self, values: Mapping[str, float]) -> None:
        """Do nothing, on this rank."""

    def log_images(self, images: Mapping[str, Image]) -> None:
        """Do nothing, on this rank."""

    def log_tables(self, tables: Mapping[str, Table]) -> None:
        """Do nothing, on this rank."""

    def log_text(self, texts: Mapping[str, str]) -> None:
        """Do nothing, on this rank."""

    def log_artifact(self, path: Path, *, name: str, kind: str) -> None:
        """Do nothing, on this rank."""

    def handle(self, name: str) -> Any | None:
        """None: the libraries are open on rank 0 only."""
        return None

    def flush(self) -> None:
        """Do nothing, on this rank."""

    def close(self, outcome: Outcome) -> None:
        """Do nothing, on this rank."""


@final
class OpenTrackers:
    """The trackers of rank 0.

    metrics.jsonl is the run's own record, so an error in writing it ends the run. A tracker's first error is logged
    with its traceback, later ones are only counted, and the run goes on: docs/decisions/009-trackers-may-fail.md.
    """

    def __init__(
        self, metrics: MetricsFile, opened: Mapping[str, TrackerLog], *, now: Callable[[], tuple[int, float]]
    ) -> None:
        """Combine what is open already.

        Args:
            metrics: metrics.jsonl.
            opened: the trackers, by name.
            now: the current step, and the seconds of training so far.
        """
        self._metrics = metrics
        self._now = now
        self._trackers = [_SafeTracker(name, tracker) for name, tracker in opened.items()]
        self._images = [(one, one.log) for one in self._trackers if isinstance(one.log, LogsImages)]
        self._tables = [(one, one.log) for one in self._trackers if isinstance(one.log, LogsTables)]
        self._texts = [(one, one.log) for one in self._trackers if isinstance(one.log, LogsText)]
        self._artifacts = [(one, one.log) for one in self._trackers if isinstance(one.log, LogsArtifacts)]
        self._unsupported: set[str] = set()

    def log(self, values: Mapping[str, float]) -> None:
        """Record numbers in metrics.jsonl and in every tracker."""
        step, time_s = self._now()
        values = {"time_s": time_s, **values}
        self._metrics.log(values, step=step)
        for one in self._trackers:
            one.call(one.log.log, values, step=step)

    def log_images(self, images: Mapping[str, Image]) -> None:
        """Record images in every tracker that supports them."""
        self._expect(self._images, "an image", images)
        for one, log in self._images:
            one.call(log.log_images, images, step=self._now()[0])

    def log_tables(self, tables: Mapping[str, Table]) -> None:
        """Record tables in every tracker that supports them."""
        self._expect(self._tables, "a table", tables)
        for one, log in self._tables:
            one.call(log.log_tables, tables, step=self._now()[0])

    def log_text(self, texts: Mapping[str, str]) -> None:
        """Record text in every tracker that supports it."""
        self._expect(self._texts, "text", texts)
        for one, log in self._texts:
            one.call(log.log_text, texts, step=self._now()[0])

    def log_artifact(self, path: Path, *, name: str, kind: str) -> None:
        """Store a file in every tracker that supports artifacts."""
        self._expect(self._artifacts, "an artifact", [name])
        for one, log in self._artifacts:
            one.call(log.log_artifact, path, name=name, kind=kind, step=self._now()[0])

    def handle(self, name: str) -> Any | None:
        """The library's own object behind a tracker.

        Raises:
            HookError: there is no tracker of that name, or it has no such object.
        """
        opened = {one.name: one.log for one in self._trackers}
        if name not in opened:
            available = ", ".join(opened) or "none"
            raise HookError(f"the run has no tracker {name!r}; it has: {available}. Add it: tracker=[{name}]")
        log = opened[name]
        if not isinstance(log, HasHandle):
            raise HookError(
                f"tracker={name} does not expose an object of its library. Use the methods of run.trackers."
            )
        return log.handle

    def flush(self) -> None:
        """Wait until metrics.jsonl is on the disk.

        Raises:
            DiskError: the file system reported an error.
        """
        self._metrics.flush()

    def close(self, outcome: Outcome) -> None:
        """Close all trackers even if some fail, then metrics.jsonl."""
        for one in self._trackers:
            one.call(one.log.close, outcome)
            one.report()
        self._metrics.close()

    def _expect(self, supporting: list[Any], what: str, names: Mapping[str, Any] | list[str]) -> None:
        """Warn once per kind if no tracker supports it: nothing is dropped silently."""
        if not supporting and what not in self._unsupported:
            self._unsupported.add(what)
            logger.warning("%s is logged (%s), but no tracker of this run supports it", what, ", ".join(names))


@final
class _SafeTracker:
    """A tracker whose errors are logged and counted, but do not end the run."""

    def __init__(self, name: str, log: TrackerLog) -> None:
        self.name = name
        self.log = log
        self._errors = 0

    def call(self, method: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        try:
            method(*args, **kwargs)
        except Exception:  # no error of a tracker's library may end a run
            self._errors += 1
            if self._errors == 1:
                rule = "tracker=%s failed; training continues, and its further errors are only counted"
                logger.warning(rule, self.name, exc_info=True)

    def report(self) -> None:
        """Log the number of errors, if there were more than the first."""
        if self._errors > 1:
            logger.warning("tracker=%s failed %d times in total", self.name, self._errors)


def open_trackers(
    spec: RunSpec,
    run_dir: RunDir,
    *,
    step: int,
    now: Callable[[], tuple[int, float]],
) -> OpenTrackers:
    """Open metrics.jsonl and every tracker of the spec. For rank 0.

    Args:
        spec: the run.
        run_dir: its directory.
        step: steps completed before this attempt.
        now: the current step, and the seconds of training so far.

    Raises:
        RunnerError: a tracker cannot work as it is configured. Those that were open already are closed as failed.
    """
    run = RunInfo(run_dir=run_dir.path, run_id=run_dir.read_id(), name=spec.name, config=spec.config, step=step)
    opened: dict[str, TrackerLog] = {}
    with ExitStack() as on_error:
        metrics = open_metrics_file(run_dir.metrics, step=step)
        on_error.callback(metrics.close)
        for name, tracker in spec.tracker.items():
            opened[name] = tracker.open(run)
            on_error.callback(_SafeTracker(name, opened[name]).call, opened[name].close, Outcome.FAILED)
        on_error.pop_all()
    return OpenTrackers(metrics, opened, now=now)
