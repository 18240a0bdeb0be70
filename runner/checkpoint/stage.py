"""What of a state is copied before training continues, and what during the next forward."""

from collections.abc import Collection, Sequence
from typing import final

from torch import Tensor

from runner.checkpoint.plan import RankPlan
from runner.checkpoint.snapshot import Copy, Snapshot
from runner.checkpoint.staging import Staging
from runner.checkpoint.writer import Piece


@final
class Stage:
    """Copies one state after another into the same memory.

    A forward changes buffers, and parameters only where the user's code does so behind autograd's back. The first copy
    finds out which: it is complete before training continues, and compared with the live tensors after the forward.
    """

    def __init__(self) -> None:
        self.snapshot = Snapshot([])
        self._staging = Staging()
        self._compared = False
        self._changing: set[str] = set()

    def reserve(self, pieces: Sequence[Piece]) -> None:
        """Allocate memory for a copy of such pieces, in the background."""
        self._staging.reserve(pieces)

    def copy(self, planned: RankPlan, *, at_once: Collection[str]) -> list[Tensor]:
        """Start to copy every item of a plan. The one before must be finished, and nobody need it any more.

        Args:
            at_once: names of tensors that are copied before this returns.

        Returns:
            Where the copies are, complete once `snapshot` says so.
        """
        rooms = self._staging.rooms(planned.pieces)
        pending: list[Copy] = []
        others: list[Copy] = []
        for number, (piece, room) in enumerate(zip(planned.pieces, rooms, strict=True)):
            now = piece.name in at_once or piece.name in self._changing or planned.is_swapped(number)
            one = Copy(piece.name, planned.tensor(number).detach(), room)
            if now or not self._compared:
                one.make()
            if not now:
                (pending if self._compared else others).append(one)
        self.snapshot = Snapshot(pending, complete=others)
        return rooms

    def finish(self, *, after_forward: bool) -> None:
        """Wait until the copy is complete, before anything but a forward changes the state."""
        self._changing |= self.snapshot.finish(compare=after_forward)
        self._compared |= after_forward
