"""Write what every rank holds into a file of its own, as torch's planner divides it.

Importing torch.distributed.checkpoint takes half a second, so this file is imported only when something is saved.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import final

from torch import Tensor

from runner.checkpoint.plan import PlanCache, RankPlan, describe
from runner.checkpoint.save import Written
from runner.checkpoint.staging import Staging
from runner.checkpoint.writer import write_payload
from runner.protocols import World
from runner.storage.rank0 import write_error


@final
class RankFiles:
    """Writes one state after another; keeps the plan and the memory for copies in between."""

    def __init__(self) -> None:
        self._plan = PlanCache()
        self._staging = Staging()

    def write(self, world: World, path: Path, tensors: Mapping[str, Tensor]) -> Written:
        """Write what every rank holds into a directory. Collective.

        Raises:
            CheckpointError: a rank could not write, or holds something that cannot be stored.
        """
        planned = self._plan.plan(world, tensors, path)
        return _write(world, path, planned, planned.tensors())

    def prepare(self, world: World, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Make the plan and allocate memory for a copy, so that `stage` only has to copy. Collective.

        Raises:
            CheckpointError: a rank holds something that cannot be stored.
        """
        self._staging.reserve(self._plan.plan(world, tensors, path).pieces)

    def stage(self, world: World, path: Path, tensors: Mapping[str, Tensor]) -> Callable[[World, Path], Written]:
        """Copy what every rank is to write to host memory. Collective.

        Returns:
            A function as `write`, which writes the copies; collective in the world that it is given. To be called
            before the next `stage`.

        Raises:
            CheckpointError: a rank holds something that cannot be stored.
        """
        planned = self._plan.plan(world, tensors, path)
        copies = self._staging.copy(planned.pieces, planned.tensors())
        planned = planned._replace(state={})
        return lambda world, partial: _write(world, partial, planned, copies)


def _write(world: World, path: Path, planned: RankPlan, tensors: Iterable[Tensor]) -> Written:
    share, failure = None, None
    name = f"rank_{world.rank}.safetensors"
    try:
        share = write_payload(path, name, planned.pieces, tensors)
    except OSError as error:
        failure = write_error(error, path / name)
        failure.__cause__ = error
    of_ranks = world.gather_objects((share, failure))
    for _, failure in of_ranks:
        if failure is not None:
            raise failure
    shares = [share for share, _ in of_ranks]
    chunks = [chunk for share in shares for chunk in share.chunks]
    files = {name: file for share in shares for name, file in share.files.items()}
    return describe(planned.whole, chunks) if world.is_main else {}, files
