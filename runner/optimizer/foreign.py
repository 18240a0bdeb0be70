"""Any optimizer class with torch's interface, named by `_target_`: it takes parameter groups and keyword arguments."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

from runner.config.imports import locate
from runner.config.parts import TARGET
from runner.config.signatures import binding_errors
from runner.errors import Fault
from runner.optimizer.groups import check_patterns, group_checks, parameter_groups
from runner.optimizer.scale import ScaleLR, check_scale, scaled

if TYPE_CHECKING:
    import torch
    from torch.nn import Module, Parameter

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class ForeignOptimizer:
    """Adapter for an optimizer class that is not one of the runner's parts."""

    target: str
    """Dotted path of a torch.optim.Optimizer subclass: torch.optim.RMSprop."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the constructor."""
    positional: ClassVar[int | None] = 1
    """How many positional arguments the constructor gets besides."""
    no_decay: list[str] = field(default_factory=list)
    """Regular expressions; a parameter whose name contains a match gets weight_decay=0."""
    groups: list[dict[str, Any]] = field(default_factory=list)
    """Parameters with their own lr or decay: {match: pattern, lr_factor: 0.1, weight_decay: 0.0}; first match wins."""
    scale_lr: ScaleLR = ScaleLR.NONE
    """How lr scales with batch.items. Not needed for other hardware, which leaves batch.items unchanged."""
    base_items: int | None = None
    """The batch.items that `lr` was tuned for; needed if `scale_lr` is not none."""

    def __post_init__(self) -> None:
        check_patterns(self.no_decay, self.groups)
        check_scale(self.scale_lr, self.base_items)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Requires that the constructor accepts the arguments, by building the optimizer over a single scalar."""
        import torch

        try:
            optimizer = self._probe()
        except ValueError as error:
            yield Fault(key="optimizer", message=f"{self.target} rejects {dict(self.arguments)}: {error}")
            return
        if not isinstance(optimizer, torch.optim.Optimizer):
            kind = type(optimizer).__name__
            rule = f"{self.target} makes a {kind}, but an optimizer must be a subclass of torch.optim.Optimizer."
            yield Fault(key=f"optimizer.{TARGET}", message=rule)
            return
        if list(binding_errors(optimizer.step, "step", positional=0, named=())):
            rule = (
                f"{self.target}.step needs an argument, but a step is one forward and backward. Use another optimizer."
            )
            yield Fault(key=f"optimizer.{TARGET}", message=rule)
        yield from self._default_faults(optimizer.defaults)

    def _default_faults(self, defaults: Mapping[str, Any]) -> Iterator[Fault]:
        sets_decay = bool(self.no_decay) or any("weight_decay" in group for group in self.groups)
        if sets_decay and "weight_decay" not in defaults:
            rule = f"{self.target} has no weight_decay. Remove no_decay and weight_decay from the groups."
            yield Fault(key="optimizer", message=rule)
        if not isinstance(defaults.get("lr"), int | float):
            found = f"{defaults['lr']!r} as its lr" if "lr" in defaults else "no lr"
            rule = (
                f"{self.target} has {found}, but the schedule multiplies a number. Set optimizer.lr, and turn off what"
            )
            yield Fault(key="optimizer.lr", message=f"{rule} would choose it instead (relative_step of Adafactor).")

    def model_checks(self, spec: "RunSpec") -> "Iterable[Callable[[Module], Iterable[Fault]]]":
        """Each group must take a parameter."""
        return group_checks(self.groups)

    def build(self, named_parameters: "Iterable[tuple[str, Parameter]]", *, items: int) -> "torch.optim.Optimizer":
        """Builds the optimizer over the parameters that require a gradient."""
        arguments, lr = dict(self.arguments), self._over_a_scalar().defaults.get("lr")
        if lr is not None and self.scale_lr is not ScaleLR.NONE:
            arguments["lr"] = lr = scaled(lr, self.scale_lr, base_items=self.base_items, items=items)
        groups = parameter_groups(named_parameters, lr=lr, no_decay=self.no_decay, groups=self.groups)
        return self._instantiate(groups, arguments)

    def _probe(self) -> object:
        """What the constructor makes of a single scalar.

        Raises:
            ValueError: it raises.
        """
        try:
            return self._over_a_scalar()
        except Exception as error:  # another library's class may raise anything
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def _over_a_scalar(self) -> "torch.optim.Optimizer":
        """The optimizer over a single scalar, to learn its defaults."""
        import torch

        return self._instantiate([torch.nn.Parameter(torch.zeros(1))], self.arguments)

    def _instantiate(self, parameters: list[Any], arguments: Mapping[str, Any]) -> "torch.optim.Optimizer":
        optimizer: torch.optim.Optimizer = locate(self.target)(parameters, **arguments)
        return optimizer
