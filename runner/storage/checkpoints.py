"""Find, verify and read the committed checkpoints of a run. Nothing else reads them back into a run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from runner.errors import CheckpointError
from runner.protocols import State, StoredTensor, World
from runner.storage.decode import decode_metadata, decode_state
from runner.storage.format import METADATA, STATE, Manifest, TensorMetadata
from runner.storage.history import History, with_way_out
from runner.storage.integrity import verify_sizes
from runner.storage.memory import DTYPES
from runner.storage.names import from_names, to_names
from runner.storage.rank0 import on_rank_0

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@final
class Checkpoints:
    """The committed checkpoints in one directory."""

    def __init__(self, directory: Path, world: World) -> None:
        self._history = History(directory)
        self._world = world

    def latest(self) -> Path | None:
        """The newest checkpoint, or None if there is none. Collective.

        It may be called while a save is under way in the background, whose checkpoint it finds once that is committed.

        Raises:
            CheckpointError: the newest checkpoint is corrupted. Names the file, and an older checkpoint that is intact.
        """
        return on_rank_0(self._world, self._history.newest, path=self._history.checkpoints)

    def open(self, path: Path) -> "SavedCheckpoint":
        """Open a checkpoint for reading. Collective.

        Raises:
            CheckpointError: the checkpoint is corrupted (names the file, and an older checkpoint that is intact), or
                holds a tensor that this version of runner does not know.
        """

        def read() -> tuple[Manifest, dict[str, TensorMetadata]]:
            manifest = verify_sizes(path)
            return manifest, decode_metadata(path, manifest)

        manifest, metadata = _on_every_rank(self._world, path, read)
        try:
            stored = from_names({name: StoredTensor(one.shape, DTYPES[one.dtype]) for name, one in metadata.items()})
        except ValueError as error:
            rule = "Resume with the version of runner that wrote it: see provenance.json."
            raise CheckpointError(f"{path / METADATA}: {error} {rule}") from error
        return SavedCheckpoint(path, stored, world=self._world, manifest=manifest, metadata=metadata)


def _on_every_rank(world: World, path: Path, action: Callable[[], T]) -> T:
    """Read something of a checkpoint. If one rank cannot, all raise its error, with what rank 0 advises. Collective."""
    done, failure = None, None
    try:
        done = action()
    except CheckpointError as error:
        failure = error
    failures = [one for one in world.gather_objects(failure) if one is not None]
    if failures:
        raise on_rank_0(world, lambda: with_way_out(path, failures[0]), path=path) from failure
    return done  # type: ignore[return-value]  # the action returned


@final
class SavedCheckpoint:
    """A committed checkpoint, open for reading."""

    def __init__(
        self,
        path: Path,
        stored: State[StoredTensor],
        *,
        world: World,
        manifest: Manifest,
        metadata: Mapping[str, TensorMetadata],
    ) -> None:
        self.path = path
        self.stored = stored
        """Shape and dtype of every tensor; no values."""
        self._world = world
        self._manifest = manifest
        self._metadata = metadata

    def read(self, state: "State[Tensor]") -> None:
        """Fill the tensors of this state in place and replace its values. Collective.

        Raises:
            CheckpointError: tensors are missing in the checkpoint, or have another shape or kind of dtype (names all of
                them; nothing was read); or the checkpoint is corrupted (names the file, and an older checkpoint that is
                intact; tensors may have been overwritten).
        """
        from runner.storage.read import mismatches, read_tensors

        tensors = to_names(state)
        of_ranks = self._world.gather_objects(list(mismatches(tensors, self._metadata)))
        if wrong := sorted({fault for faults in of_ranks for fault in faults}):
            raise CheckpointError(f"{self.path} is not a checkpoint of this model: {'; '.join(wrong)}.")

        def fill() -> dict[str, Any]:
            read_tensors(self._world, self.path, tensors, metadata=self._metadata, files=self._manifest.files)
            return decode_state(self.path, self._manifest.files[STATE])

        values = _on_every_rank(self._world, self.path, fill)
        state.values.clear()
        state.values.update(values)
