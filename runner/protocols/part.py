"""What every option of every group can do."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch.nn import Module

    from runner.config.run_spec import RunSpec
    from runner.errors import Fault


class Part(Protocol):
    """What every option of every group can do."""

    def check(self, spec: "RunSpec") -> Iterable["Fault"]:
        """What is wrong with this part beside the others. Touches no device, starts no process."""
        ...


@runtime_checkable
class ChecksModel(Protocol):
    """An option with rules about the model itself: classes of modules or names of parameters that it must have."""

    def model_checks(self, spec: "RunSpec") -> Iterable["Callable[[Module], Iterable[Fault]]"]:
        """The rules that hold under this spec; none = the model need not be built.

        Each is called before launch, with the model on the meta device: modules, names and shapes are there, values are
        not. A model that cannot be built without values is not checked, so whoever uses it must check again.
        """
        ...
