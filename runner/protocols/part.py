"""The protocols that options of every group implement."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch.nn import Module

    from runner.config.run_spec import RunSpec
    from runner.errors import Fault


class Part(Protocol):
    """The protocols that options of every group implement."""

    def check(self, spec: "RunSpec") -> Iterable["Fault"]:
        """Yield the faults of this part in combination with the rest of the spec. Uses no device and no process."""
        ...


@runtime_checkable
class ChecksModel(Protocol):
    """An option with rules about the model itself: classes of modules or names of parameters that it must have."""

    def model_checks(self, spec: "RunSpec") -> Iterable["Callable[[Module], Iterable[Fault]]"]:
        """The checks to run under this spec; none = the model need not be built.

        Each is called before launch with the model on the meta device, which has modules, names and shapes but no
        values. A model that cannot be built there is not checked, so the code that uses it must check again.
        """
        ...
