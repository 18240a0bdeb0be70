"""State to and from a directory, under torch's planners. Importing torch.distributed.checkpoint takes half a second, so
that this file is imported by who saves or loads, when it does.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import final

from torch import Tensor

from runner.checkpoint.plan import LastPlan, Planned, describe
from runner.checkpoint.save import Written
from runner.checkpoint.staging import Staging
from runner.checkpoint.writer import write_payload
from runner.protocols import World
from runner.storage.rank0 import refusal


@final
class Transfer:
    """Writes one state after another, and keeps what they share: who writes what, and memory for copies."""

    def __init__(self) -> None:
        self._plan = LastPlan()
        self._staging = Staging()

    def write(self, world: World, path: Path, tensors: Mapping[str, Tensor]) -> Written:
        """Write every rank's share into a directory. Collective.

        Raises:
            CheckpointError: a rank could not write its share, or has something that cannot be stored.
        """
        planned = self._plan.plan(world, tensors, path)
        return _write(world, path, planned, planned.tensors())

    def prepare(self, world: World, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Agree on who writes what and claim memory for a copy, beside the run: `stage` then only copies. Collective.

        Raises:
            CheckpointError: a rank has something that cannot be stored.
        """
        self._staging.reserve(self._plan.plan(world, tensors, path).pieces)

    def stage(self, world: World, path: Path, tensors: Mapping[str, Tensor]) -> Callable[[World, Path], Written]:
        """Copy every rank's share to its host. Collective.

        Returns:
            As `write`, from the copies: collective in the world that it is given. To be called before the next `stage`.

        Raises:
            CheckpointError: a rank has something that cannot be stored.
        """
        planned = self._plan.plan(world, tensors, path)
        copies = self._staging.copy(planned.pieces, planned.tensors())
        planned = planned._replace(state={})
        return lambda world, partial: _write(world, partial, planned, copies)


def _write(world: World, path: Path, planned: Planned, tensors: Iterable[Tensor]) -> Written:
    share, failure = None, None
    try:
        share = write_payload(path, f"rank_{world.rank}.safetensors", planned.pieces, tensors)
    except OSError as error:
        failure = refusal(error, path)
        failure.__cause__ = error
    of_ranks = world.gather_objects((share, failure))
    for _, failure in of_ranks:
        if failure is not None:
            raise failure
    shares = [share for share, _ in of_ranks]
    chunks = [chunk for share in shares for chunk in share.chunks]
    files = {name: file for share in shares for name, file in share.files.items()}
    return describe(planned.whole, chunks) if world.is_main else {}, files
