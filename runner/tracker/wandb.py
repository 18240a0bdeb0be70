"""Weights & Biases, through its own library, which is imported when the tracker is opened and not before.

Its files are in <run>/wandb. The library reads the login by itself (`wandb login`, WANDB_API_KEY): no key passes
through the runner, and none is written into the run's directory.
"""

import html
import importlib.util
import logging
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, final

from runner.config.run_spec import RunSpec
from runner.errors import Fault, RunnerError
from runner.protocols import Image, Outcome, RunInfo, Table

logger = logging.getLogger(__name__)

REFUSED = re.compile(r"returned error 4\d\d")  # wandb-core's words for a client error that a retry does not mend


class Mode(Enum):
    """Where the records go."""

    online = "online"
    """To the server, and to disk until they are there."""
    offline = "offline"
    """To disk; `wandb sync` uploads them."""
    disabled = "disabled"
    """Nowhere."""


@final
@dataclass(frozen=True, kw_only=True)
class WandB:
    """One W&B run for all attempts of a run: its id is the run's, and each attempt resumes it."""

    project: str | None = None
    """W&B project; None = the run's name."""
    entity: str | None = None
    """User or team that owns the project; None = the default one of the login."""
    group: str | None = None
    """Groups runs that belong together."""
    job_type: str | None = None
    """What kind of run it is."""
    run_name: str | None = None
    """How the run is shown; None = the name of its directory."""
    tags: list[str] = field(default_factory=list)
    """Labels to filter by."""
    notes: str | None = None
    """A longer description."""
    mode: Mode = Mode.online
    """Where the records go."""
    save_code: bool = False
    """Upload the main script and the uncommitted changes of its git repository."""
    system_metrics: bool = True
    """Record the use of the machine."""
    base_url: str | None = None
    """The server; None = as the login says."""
    init_timeout_s: float = 30.0
    """Seconds to wait for the server at the start; after that the attempt is recorded offline."""
    finish_timeout_s: float = 300.0
    """Seconds to wait for uploads at the end; what is left then stays on disk."""

    def __post_init__(self) -> None:
        for name, value in (("init_timeout_s", self.init_timeout_s), ("finish_timeout_s", self.finish_timeout_s)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be a finite number of seconds above 0.")
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url={self.base_url} must start with http:// or https://.")

    def check(self, spec: RunSpec) -> Iterable[Fault]:
        """Requires the library."""
        if importlib.util.find_spec("wandb") is None:
            rule = "the library is not installed: pip install wandb. Or leave it out: tracker=[]"
            yield Fault(key="tracker.wandb", message=rule)

    def open(self, run: RunInfo) -> "WandBLog":
        """Begin or resume the W&B run.

        If the server cannot be reached in time, the attempt is recorded offline, and a warning says so.

        Raises:
            RunnerError: wandb is not installed, nobody is logged in, or the server refuses what it is asked for.
        """
        wandb = _import_wandb()
        try:
            opened = self._begin(wandb, run)
        except wandb.errors.Error as error:
            _end_service(wandb)
            raise RunnerError(f"tracker=[wandb]: {error} Or record offline: tracker.wandb.mode=offline") from error
        _announce(opened)
        return WandBLog(wandb, opened)

    def _begin(self, wandb: Any, run: RunInfo) -> Any:
        """The W&B run; an offline one if the server does not answer."""
        try:
            return self._init(wandb, run, mode=self.mode)
        except wandb.errors.CommError as error:
            _end_service(wandb)
            if isinstance(error, wandb.errors.AuthenticationError) or REFUSED.search(str(error)):
                raise RunnerError(
                    f"tracker=[wandb]: the server refused the run: {error}. Check the login (`wandb login`), "
                    "tracker.wandb.entity and tracker.wandb.project, or record offline: tracker.wandb.mode=offline"
                ) from error
            rule = "tracker=wandb: the server did not answer within %g s, so this attempt is recorded offline: %s"
            logger.warning(rule, self.init_timeout_s, error)
        return self._init(wandb, run, mode=Mode.offline)

    def _init(self, wandb: Any, run: RunInfo, *, mode: Mode) -> Any:
        settings = {
            "base_url": self.base_url,
            "console": "off",  # the logs of all ranks are in the run's directory
            "disable_code": not self.save_code,
            "finish_timeout": self.finish_timeout_s,
            "init_timeout": self.init_timeout_s,
            "quiet": True,  # no summary at the end; warnings and errors are still shown
            "x_disable_stats": not self.system_metrics,
        }
        return wandb.init(
            project=self.project or run.name,
            entity=self.entity,
            group=self.group,
            job_type=self.job_type,
            name=self.run_name or run.run_dir.resolve().name,
            tags=self.tags or None,
            notes=self.notes,
            id=run.run_id,
            resume="allow",
            mode=mode.value,
            dir=str(run.run_dir),
            config=dict(run.config),
            save_code=self.save_code,
            reinit="create_new",
            settings=wandb.Settings(**{key: value for key, value in settings.items() if value is not None}),
        )


@final
class WandBLog:
    """An open W&B run. Our step is W&B's step, so what is logged at one step is one row of its history."""

    def __init__(self, wandb: Any, run: Any) -> None:
        self._wandb = wandb
        self.handle = run
        # Online, an attempt that resumes from a checkpoint repeats steps that W&B has already; it would refuse each.
        self._first_step = run.starting_step

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Record scalars."""
        if step >= self._first_step:
            self.handle.log(dict(values), step=step)

    def log_images(self, images: Mapping[str, Image], *, step: int) -> None:
        """Record images."""
        make = self._wandb.Image
        self.log({name: make(image.pixels, caption=image.caption or None) for name, image in images.items()}, step=step)

    def log_tables(self, tables: Mapping[str, Table], *, step: int) -> None:
        """Record tables."""
        make = self._wandb.Table
        self.log(
            {
                name: make(columns=list(table.columns), data=[list(row) for row in table.rows])
                for name, table in tables.items()
            },
            step=step,
        )

    def log_text(self, texts: Mapping[str, str], *, step: int) -> None:
        """Record text, shown as it is."""
        make = self._wandb.Html
        self.log(
            {name: make(f"<pre>{html.escape(text)}</pre>", inject=False) for name, text in texts.items()}, step=step
        )

    def log_artifact(self, path: Path, *, name: str, kind: str, step: int) -> None:
        """Record a file or directory as a version of the artifact `name`."""
        artifact = self._wandb.Artifact(name=name, type=kind, metadata={"step": step})
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        self.handle.log_artifact(artifact)

    def close(self, outcome: Outcome) -> None:
        """Finish the run; W&B shows it as finished, failed or preempted."""
        try:
            if outcome is Outcome.PREEMPTED:
                self.handle.mark_preempting()  # with an exit code other than 0 it is shown as preempted
            self.handle.finish(exit_code=0 if outcome is Outcome.DONE else 1)
        finally:
            self._wandb.teardown()  # ends its service, before this process ends without running exit handlers


def _end_service(wandb: Any) -> None:
    """End wandb's own process, which has the run's id. What goes wrong there must not hide why no run began."""
    with suppress(SystemExit, OSError):  # wandb would end this process with the exit code of its own
        wandb.teardown()


def _announce(opened: Any) -> None:
    if opened.disabled:
        return
    if opened.offline:
        logger.info("wandb records into %s; upload it: wandb sync %s", opened.sync_dir, opened.sync_dir)
    else:
        logger.info("wandb: %s", opened.url)


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise RunnerError(
            f"tracker=[wandb]: the library is not installed ({error}). "
            "Install it: pip install wandb, or leave it out: tracker=[]"
        ) from error
    return wandb
