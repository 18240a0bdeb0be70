"""The listeners of a run, sorted once by the events that they listen to."""

import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, final

from runner.config.hooks import WORLD
from runner.config.signatures import asks_for
from runner.errors import HookError
from runner.protocols import (
    AfterEval,
    AfterRun,
    AfterSave,
    AfterStep,
    AroundEval,
    AroundStep,
    BeforeRun,
    Callback,
    HoldsTensors,
    Outcome,
    Run,
    Stateful,
    Trainable,
)
from runner.world.hook_ranks import HookRanks

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
R = TypeVar("R")

PROTOCOLS = (BeforeRun, AfterRun, AfterStep, AroundStep, AroundEval, AfterEval, AfterSave, Stateful, HoldsTensors)
MOMENTS = ("before_run", "after_run", "after_step", "around_step", "around_eval", "after_eval", "after_save")


def build_listeners(callbacks: Mapping[str, Callback], ranks: HookRanks) -> "Listeners":
    """Build the listener of each callback.

    Args:
        ranks: given to those methods of an event that have a parameter `world`.

    Raises:
        HookError: one implements none of the protocols, or has a method that would never be called.
    """
    built = {name: callback.build() for name, callback in callbacks.items()}
    for name, listener in built.items():
        _check(name, listener)
    return Listeners(built, ranks)


def _check(name: str, listener: object) -> None:
    kind = type(listener).__name__
    for method in dir(listener):
        if method.startswith(("before_", "after_", "around_")) and method not in MOMENTS:
            nearest = difflib.get_close_matches(method, MOMENTS, n=1, cutoff=0.0)[0]
            raise HookError(
                f"callback.{name}: {kind} has a method {method}, which nothing calls. Did you mean {nearest}? The "
                f"events are {', '.join(MOMENTS)}. Start the names of your own methods differently."
            )
    if not isinstance(listener, PROTOCOLS):
        raise HookError(
            f"callback.{name}: {kind} listens to nothing. Implement at least one of {', '.join(MOMENTS)}, or "
            "state_dict and load_state_dict, or tensors: see runner/protocols/callback.py."
        )


class _End(NamedTuple):
    """What is called at the end of an attempt."""

    listener: str
    """The name of its class."""
    after_run: Callable[[Run, Outcome], None]


@final
class Listeners:
    """What the engine calls at each event of a run; each tuple contains only the methods for that event."""

    def __init__(self, named: Mapping[str, object], ranks: HookRanks) -> None:
        all_listeners = tuple(named.values())
        give = partial(_with_ranks, ranks)
        self._starts = tuple(
            (
                give(one.before_run) if isinstance(one, BeforeRun) else None,
                _End(type(one).__name__, give(one.after_run)) if isinstance(one, AfterRun) else None,
            )
            for one in all_listeners
        )
        self._running: list[_End] = []
        self._last_saved: Path | None = None
        self.around_steps = tuple(give(one.around_step) for one in all_listeners if isinstance(one, AroundStep))
        self._around_eval = tuple(give(one.around_eval) for one in all_listeners if isinstance(one, AroundEval))
        self._after_eval = tuple(give(one.after_eval) for one in all_listeners if isinstance(one, AfterEval))
        self._after_save = tuple(give(one.after_save) for one in all_listeners if isinstance(one, AfterSave))
        self._stateful = {name: one for name, one in named.items() if isinstance(one, Stateful)}
        self._with_tensors = {name: one for name, one in named.items() if isinstance(one, HoldsTensors)}
        self.after_step = tuple(give(one.after_step) for one in all_listeners if isinstance(one, AfterStep))

    def start(self, run: Run, latest: Callable[[], Path | None]) -> None:
        """Call `before_run`, before the attempt's first step. Collective."""
        self._last_saved = latest() if self._after_save else None
        for before_run, end in self._starts:
            if before_run is not None:
                before_run(run)
            if end is not None:
                self._running.append(end)

    def around_step(self, run: Run) -> AbstractContextManager[None]:
        """A context for a step. Check `around_steps` first: even a null context costs 0.3 us."""
        return _nested(around_step(run) for around_step in self.around_steps)

    def around_eval(self, run: Run) -> AbstractContextManager[None]:
        """A context for an evaluation."""
        return _nested(around_eval(run) for around_eval in self._around_eval)

    def evaluated(self, run: Run, metrics: Mapping[str, float]) -> str:
        """Call `after_eval`; returns the reasons for which the run should end, or an empty string."""
        verdicts = [after_eval(run, metrics) for after_eval in self._after_eval]
        return "; ".join(verdict for verdict in verdicts if verdict)

    def look_for_save(self, run: Run, latest: Callable[[], Path | None]) -> None:
        """Call `after_save` if a checkpoint was committed since the last call. Collective if any listener needs it."""
        if not self._after_save:
            return
        checkpoint = latest()
        if checkpoint is not None and checkpoint != self._last_saved:
            self._last_saved = checkpoint
            for after_save in self._after_save:
                after_save(run, checkpoint)

    def end(self, run: Run, outcome: Outcome) -> None:
        """Call `after_run`, after an attempt that did not fail."""
        while self._running:
            self._running.pop().after_run(run, outcome)

    def fail(self, run: Run) -> None:
        """Call `after_run` after a failed attempt, if `end` has not done so. Errors of listeners are only logged."""
        while self._running:
            end = self._running.pop()
            try:
                end.after_run(run, Outcome.FAILED)
            except Exception:  # the error that ended the run is the one to report
                logger.warning("%s failed after the run had failed", end.listener, exc_info=True)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The state of each callback, which JSON can represent."""
        return {name: one.state_dict() for name, one in self._stateful.items()}

    def load_state_dict(self, state_dict: Mapping[str, dict[str, Any]]) -> None:
        """Load the state of each callback. One without saved state starts fresh; state of unknown ones is ignored."""
        for name, one in self._stateful.items():
            if name in state_dict:
                one.load_state_dict(state_dict[name])

    def tensors(self, trainable: Trainable) -> dict[str, dict[str, "Tensor"]]:
        """The live tensors of callbacks, by callback and name."""
        return {name: one.tensors(trainable) for name, one in self._with_tensors.items()}


def _with_ranks(ranks: HookRanks, method: Callable[..., R]) -> Callable[..., R]:
    """A listener's method, with the ranks if it asks for them."""
    return partial(method, world=ranks.all) if asks_for(method, WORLD) else method


@contextmanager
def _nested(managers: Iterable[AbstractContextManager[None]]) -> Iterator[None]:
    """Several context managers as one; the first is the outermost."""
    with ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager)
        yield
