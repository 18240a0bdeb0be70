"""Checks of the model and its compiler that are possible before launch.

A model that cannot be built on the meta device is checked by the workers, which raise the same faults.
"""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar, final

from runner.config.of_blocks import Compiled, Recompute
from runner.config.run_spec import RunSpec
from runner.config.unknown import as_far_as_known
from runner.errors import Fault
from runner.model.meta_model import MetaBuildError, build_meta_model
from runner.protocols import ChecksModel
from runner.world.fork import can_fork

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = ["model_faults", "model_is_asked_for", "plan_of"]

T = TypeVar("T")


@final
class _MetaModel:
    """The model of a spec on the meta device, built on first use."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._built: dict[bool, Module | None] = {}

    def check(self, check: "Callable[[Module], Iterable[Fault]]") -> list[Fault]:
        """Run a check; no faults if the model cannot be built on the meta device."""
        model = self.build()
        faults = [] if model is None else list(check(model))
        if not faults:
            return []
        # The precision may replace layers by layers of other classes, which a recipe may name.
        converted = self.build(converted=True)
        return faults if converted is None else list(check(converted))

    def build(self, *, converted: bool = False) -> "Module | None":
        """The model, converted by the precision if asked; None if it cannot be built."""
        if converted not in self._built:
            try:
                self._built[converted] = build_meta_model(self._spec, converted=converted)
            except MetaBuildError:
                self._built[converted] = None
        return self._built[converted]


Check = Callable[[_MetaModel], Iterable[Fault]]


def model_faults(spec: RunSpec) -> list[Fault]:
    """Check, for `config.read.read`, what the compiler, the blocks and the parts require of the model.

    The hook is called in a fork of this process where that is safe, so that its side effects, such as registering names
    or starting threads, do not reach the run. Without such requirements it is not called.
    What they require, one of several models must have.
    """
    if spec.models:
        first, *others = (model_faults(spec.of_model(name)) for name in spec.models)
        return [fault for fault in first if all(fault.key in {one.key for one in found} for found in others)]
    checks = _checks(spec)
    if not checks:
        return []
    meta_model = _MetaModel(spec)
    return _in_fork(lambda: [fault for check in checks for fault in check(meta_model)], default=[])


def plan_of(spec: RunSpec) -> list[str]:
    """What the precision does to the model's layers, one line each; calls the model hook as `model_faults` does."""
    if spec.models:
        plans = {name: plan_of(spec.of_model(name)) for name in spec.models}
        return [f"{name}: {line}" for name, lines in plans.items() for line in lines]

    def plan() -> list[str]:
        try:
            return list(spec.precision.plan(lambda: build_meta_model(spec)))
        except MetaBuildError as error:
            return [f"layers: the model cannot be built without values ({error}); the run's log will say which"]

    return _in_fork(plan, default=["layers: the model hook ended the process; the run's log will say which"])


def model_is_asked_for(spec: RunSpec) -> bool:
    """Whether `model_faults` would call the model hook. Calls nothing itself."""
    return bool(_checks(spec))


def _checks(spec: RunSpec) -> list[Check]:
    gather = (_compiler_checks, _block_checks, _part_checks)
    return [check for found in gather for check in as_far_as_known(partial(found, spec))]


def _compiler_checks(spec: RunSpec) -> Iterator[Check]:
    if spec.compile.what is Compiled.NONE:
        return

    def check(meta_model: _MetaModel) -> list[Fault]:
        from runner.model.compiling import compiler_faults

        faults = list(compiler_faults(spec.compile))
        if faults and meta_model.build() is not None:  # the hook may register a backend
            faults = list(compiler_faults(spec.compile))
        return faults

    yield check


def _block_checks(spec: RunSpec) -> Iterator[Check]:
    if spec.activation_checkpointing.what is Recompute.NONE and spec.compile.what is not Compiled.BLOCKS:
        return
    classes = spec.blocks.classes

    def check(meta_model: _MetaModel) -> list[Fault]:
        from runner.model.blocks import block_faults

        return meta_model.check(partial(block_faults, classes=classes, key="blocks.classes"))

    yield check


def _part_checks(spec: RunSpec) -> Iterator[Check]:
    single = (spec.strategy, spec.precision, spec.optimizer, spec.schedule, spec.checkpoint)
    for part in (*single, *spec.tracker.values(), *spec.callback.values()):
        if isinstance(part, ChecksModel):
            for rule in part.model_checks(spec):
                yield lambda meta_model, rule=rule: meta_model.check(rule)  # type: ignore[misc]


def _in_fork(find: Callable[[], list[T]], *, default: list[T]) -> list[T]:
    """Call `find` in a fork; `default` if the fork dies. Where forking is not safe, call it here."""
    if not can_fork():
        return find()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def send() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        sender.send(find())

    sys.stdout.flush()
    sys.stderr.flush()
    process = context.Process(target=send)
    process.start()
    sender.close()
    try:
        found: list[T] = receiver.recv()
        process.join()
    except EOFError:  # it died: the workers will raise the faults
        return default
    finally:
        process.kill()
    return found
