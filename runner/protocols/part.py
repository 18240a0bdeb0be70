"""What every option of every group can do."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec
    from runner.errors import Fault


class Part(Protocol):
    """What every option of every group can do."""

    def check(self, spec: "RunSpec") -> Iterable["Fault"]:
        """What is wrong with this part beside the others. Touches no device, starts no process."""
        ...
