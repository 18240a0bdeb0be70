"""The committed checkpoints of a run: found, verified and read. The one way to read a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

from runner.errors import CheckpointError
from runner.protocols import State, StoredTensor, World
from runner.storage.format import METADATA, STATE, Described, Manifest, decode_metadata, decode_state
from runner.storage.history import newest, verify, way_out
from runner.storage.names import from_names, to_names
from runner.storage.rank0 import on_rank_0

if TYPE_CHECKING:
    from torch import Tensor


@final
class Checkpoints:
    """What has been committed under one directory."""

    def __init__(self, directory: Path, world: World) -> None:
        self._directory = directory
        self._world = world

    def latest(self) -> Path | None:
        """The newest, or None. Collective.

        Raises:
            CheckpointError: it is corrupted; names the file and the next older commit.
        """
        return on_rank_0(self._world, lambda: newest(self._directory), path=self._directory)

    def open(self, path: Path) -> "SavedCheckpoint":
        """One of them, for reading. All ranks read the same files, so that all of them find the same faults.

        Raises:
            CheckpointError: it is corrupted; names the file and the next older commit.
        """
        try:
            manifest = verify(path)
            described = decode_metadata(path, manifest.files[METADATA])
        except CheckpointError as error:
            raise CheckpointError(f"{error} {way_out(path)}") from error
        return SavedCheckpoint(path, manifest, described, self._world)


@final
class SavedCheckpoint:
    """A committed checkpoint, open for reading."""

    def __init__(self, path: Path, manifest: Manifest, described: Mapping[str, Described], world: World) -> None:
        self.path = path
        self._manifest = manifest
        self._described = described
        self._world = world

    @property
    def stored(self) -> State[StoredTensor]:
        """Shape and type of the tensors held."""
        from runner.storage.memory import DTYPES

        found = {name: StoredTensor(one.shape, DTYPES[one.dtype]) for name, one in self._described.items()}
        return from_names(found)

    def read(self, state: "State[Tensor]") -> None:
        """Fill the state's tensors in place and replace its values. Collective.

        Raises:
            CheckpointError: the checkpoint lacks some of the tensors, or holds them with another shape or kind of type
                (all are named); or it is corrupted (the file is named, and the next older commit), and the tensors may
                then be filled in part.
        """
        from runner.storage.read import misfits, read_tensors

        tensors = to_names(state)
        of_ranks = self._world.gather_objects(list(misfits(tensors, self._described)))
        if wrong := sorted({fault for faults in of_ranks for fault in faults}):
            raise CheckpointError(f"{self.path} is not a checkpoint of this model: {'; '.join(wrong)}.")
        try:
            read_tensors(self._world, self.path, tensors, described=self._described, files=self._manifest.files)
            values = decode_state(self.path, self._manifest.files[STATE])["values"]
        except CheckpointError as error:
            raise CheckpointError(f"{error} {way_out(self.path)}") from error
        state.values.clear()
        state.values.update(values)
