"""Write what every rank holds into a file of its own, as torch's planner divides it.

Importing torch.distributed.checkpoint takes half a second, so this file is imported only when something is saved.
"""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import final

from torch import Tensor

from runner.checkpoint.linking import link_payload
from runner.checkpoint.plan import PlanCache, RankPlan, describe
from runner.checkpoint.save import Earlier, Written
from runner.checkpoint.stage import Stage
from runner.checkpoint.writer import Payload, write_payload
from runner.protocols import State, World
from runner.storage.names import names_in_files, to_names
from runner.storage.rank0 import write_error

Write = Callable[[World, Path, Earlier], Written]
"""Writes what every rank holds into a directory. Collective; raises a CheckpointError if a rank could not."""


@final
class RankFiles:
    """Writes one state after another; keeps the plan and the memory for copies in between."""

    def __init__(self, *, link_frozen: bool) -> None:
        self._link_frozen = link_frozen
        self._plan = PlanCache()
        self._stage = Stage()

    def live(self, world: World, path: Path, state: State[Tensor]) -> Write:
        """Plan to write a state, which must not change before it is written. Collective.

        Raises:
            CheckpointError: a rank holds something that cannot be stored.
        """
        planned = self._plan.plan(world, to_names(state), path)
        return self._write(planned, planned.tensor, state)

    def prepare(self, world: World, path: Path, state: State[Tensor]) -> None:
        """Make the plan and allocate memory for a copy, so that `stage` only has to copy. Collective.

        Raises:
            CheckpointError: a rank holds something that cannot be stored.
        """
        self._stage.reserve(self._plan.plan(world, to_names(state), path).pieces)

    def stage(self, world: World, path: Path, state: State[Tensor]) -> Write:
        """Start to copy what every rank is to write to host memory; `finish_copy` finishes it. Collective.

        Returns:
            Writes the copies. To be called before the next `stage`.

        Raises:
            CheckpointError: a rank holds something that cannot be stored.
        """
        planned = self._plan.plan(world, to_names(state), path)
        copies = self._stage.copy(planned, at_once=names_in_files(state, state.buffers))
        return self._write(planned._replace(state={}), copies.__getitem__, state)

    def finish_copy(self, *, after_forward: bool) -> None:
        """As `Checkpointer.finish_copy`, after `stage`."""
        self._stage.finish(after_forward=after_forward)

    def torn(self) -> Sequence[str]:
        """Wait for `finish_copy` in another thread; which copies of this rank cannot be used, by name."""
        return self._stage.snapshot.torn()

    def _write(self, planned: RankPlan, contents: Callable[[int], Tensor], state: State[Tensor]) -> Write:
        frozen = names_in_files(state, state.frozen)

        def write(world: World, path: Path, earlier: Earlier) -> Written:
            earlier = earlier if self._link_frozen else Earlier(path, {})
            return _write(world, path, planned, contents, frozen=frozen, earlier=earlier)

        return write


def _write(
    world: World,
    path: Path,
    planned: RankPlan,
    contents: Callable[[int], Tensor],
    *,
    frozen: Collection[str],
    earlier: Earlier,
) -> Written:
    share, failure = None, None
    try:
        share = _write_share(path, f"rank_{world.rank}", planned, contents, frozen=frozen, earlier=earlier)
    except OSError as error:
        failure = write_error(error, path / f"rank_{world.rank}.safetensors")
        failure.__cause__ = error
    of_ranks = world.gather_objects((share, failure))
    for _, failure in of_ranks:
        if failure is not None:
            raise failure
    shares = [share for share, _ in of_ranks]
    chunks = [chunk for share in shares for chunk in share.chunks]
    files = {name: file for share in shares for name, file in share.files.items()}
    return describe(planned.whole, chunks) if world.is_main else {}, files


def _write_share(
    path: Path,
    prefix: str,
    planned: RankPlan,
    contents: Callable[[int], Tensor],
    *,
    frozen: Collection[str],
    earlier: Earlier,
) -> Payload:
    """Write what this rank holds: what is trained into one file, frozen parameters into another, or a link to it."""
    pieces = planned.pieces

    def write(name: str, numbers: Sequence[int]) -> Payload:
        mine = [pieces[number] for number in numbers]
        linked = link_payload(path, name, mine, map(contents, numbers), earlier)
        return linked or write_payload(path, name, mine, map(contents, numbers))

    fixed = [number for number, piece in enumerate(pieces) if piece.name in frozen]
    rest = [number for number, piece in enumerate(pieces) if piece.name not in frozen]
    with ThreadPoolExecutor(1, thread_name_prefix="frozen") as pool:  # hashes while the other file is written
        of_frozen = pool.submit(write, f"{prefix}.frozen.safetensors", fixed)
        files, chunks = write(f"{prefix}.safetensors", rest)
    more_files, more_chunks = of_frozen.result()
    return Payload({**files, **more_files}, [*chunks, *more_chunks])
