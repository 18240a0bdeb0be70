"""Any metric of torchmetrics, or a function over all predictions, fed with the loss hook's outputs.

    metric:
      auroc: {_target_: torchmetrics.classification.BinaryAUROC, inputs: {preds: score, target: label}}
      median_error: {_target_: user_hooks.houses.median_error}        # def median_error(predicted, price): …

A class is a metric of torchmetrics: its `update` is fed with each micro-batch. A function is called once, with the
outputs of all items of the evaluation set in the order of the dataset.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

from runner.config import hooks
from runner.config.imports import locate
from runner.config.models import Hook
from runner.config.parts import TARGET
from runner.config.signatures import binding_errors
from runner.errors import Fault
from runner.metric.feeds import feed_faults, feeds_of
from runner.metric.in_recipe import INSTALL, key_of
from runner.protocols import Meter

if TYPE_CHECKING:
    from torchmetrics import Metric

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class ForeignMetric:
    """Adapter for a metric of torchmetrics, or a function, which is not one of the runner's parts."""

    target: str
    """Dotted path of a class that derives from torchmetrics.Metric, or of a function."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the constructor, or of the function."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """The loss hook's output that each parameter of `update`, or of the function, is fed with; others that it needs are
    fed with the output of their own name."""
    positional: ClassVar[int | None] = None
    """None: `check` says what the target can be called with, once the outputs that it is fed with are known."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Requires a metric of torchmetrics that takes the arguments, or a function that takes them and the inputs."""
        key = key_of(self, spec)
        found = locate(self.target)
        return self._metric_faults(found, key) if inspect.isclass(found) else self._function_faults(found, key)

    def build(self, *, name: str, on_device: bool) -> Meter:
        """A meter without updates."""
        found = locate(self.target)
        if inspect.isclass(found):
            from runner.metric.torch_metric import open_meter

            metric = self._instantiate()
            return open_meter(metric, name, feeds_of(metric.update, self.inputs))
        from runner.metric.over_all_items import AllItemsMeter

        feeds = feeds_of(found, self.inputs, given=self.arguments)
        return AllItemsMeter(functools.partial(found, **self._built_arguments()), name, feeds)

    def _metric_faults(self, found: type, key: str) -> Iterator[Fault]:
        try:
            from torchmetrics import Metric
        except ModuleNotFoundError:
            rule = f"{self.target} is a class, which must derive from torchmetrics.Metric: {INSTALL}"
            yield Fault(key=f"{key}.{TARGET}", message=rule)
            return
        if not issubclass(found, Metric):
            rule = f"{self.target} is neither a part of the runner, nor a torchmetrics.Metric, nor a function."
            yield Fault(key=f"{key}.{TARGET}", message=f"{rule} Name a function of your own that returns the number.")
            return
        try:
            metric = self._instantiate()
        except Exception as error:  # noqa: BLE001  another library's class may raise anything
            rule = f"{self.target} rejects {dict(self.arguments)}: {type(error).__name__}: {error}"
            yield Fault(key=key, message=rule)
            return
        yield from feed_faults(metric.update, f"{self.target}.update", self.inputs, key=key)

    def _function_faults(self, found: Callable[..., Any], key: str) -> Iterator[Fault]:
        wrong = list(feed_faults(found, self.target, self.inputs, key=key))
        yield from wrong
        feeds = feeds_of(found, self.inputs, given=self.arguments)
        named = [name for name in (*self.arguments, *feeds) if f"{key}.inputs.{name}" not in {one.key for one in wrong}]
        for name, message in binding_errors(found, self.target, positional=0, named=named):
            yield Fault(key=f"{key}.{name or TARGET}", message=message)
        for name in self.inputs.keys() & self.arguments.keys():
            rule = f"{self.target} gets {name!r} from the loss hook's outputs: a recipe must not give it, too."
            yield Fault(key=f"{key}.{name}", message=f"{rule} Delete it: ~{key}.{name}")

    def _instantiate(self) -> "Metric":
        metric: Metric = locate(self.target)(**self._built_arguments())
        return metric

    def _built_arguments(self) -> dict[str, Any]:
        """The arguments, in which a mapping with a `_target_` is built, as a hook's are."""
        return hooks.arguments_of(Hook(target=self.target, arguments=self.arguments))
