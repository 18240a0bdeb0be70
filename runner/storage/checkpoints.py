"""Find, verify and read the committed checkpoints of a run. Nothing else reads them back into a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

from runner.errors import CheckpointError
from runner.protocols import State, StoredTensor, World
from runner.storage.format import METADATA, STATE, Manifest, TensorMetadata, decode_metadata, decode_state
from runner.storage.history import newest, suggest_older, verify
from runner.storage.memory import DTYPES
from runner.storage.names import from_names, to_names
from runner.storage.rank0 import on_rank_0

if TYPE_CHECKING:
    from torch import Tensor


@final
class Checkpoints:
    """The committed checkpoints in one directory."""

    def __init__(self, directory: Path, world: World) -> None:
        self._directory = directory
        self._world = world

    def latest(self) -> Path | None:
        """The newest checkpoint, or None if there is none. Collective.

        It may be called while a save is under way in the background, whose checkpoint it finds once that is committed.

        Raises:
            CheckpointError: the newest checkpoint is corrupted. Names the file, and an older checkpoint that is intact.
        """
        return on_rank_0(self._world, lambda: newest(self._directory), path=self._directory)

    def open(self, path: Path) -> "SavedCheckpoint":
        """Open a checkpoint for reading. Every rank reads the same JSON files, so every rank finds the same faults.

        Raises:
            CheckpointError: the checkpoint is corrupted (names the file, and an older checkpoint that is intact), or
                holds a tensor that this version of runner does not know.
        """
        try:
            manifest = verify(path)
            metadata = decode_metadata(path, manifest.files[METADATA])
        except CheckpointError as error:
            raise CheckpointError(f"{error} {suggest_older(path)}") from error
        try:
            stored = from_names({name: StoredTensor(one.shape, DTYPES[one.dtype]) for name, one in metadata.items()})
        except ValueError as error:
            rule = "Resume with the version of runner that wrote it: see provenance.json."
            raise CheckpointError(f"{path / METADATA}: {error} {rule}") from error
        return SavedCheckpoint(path, stored, world=self._world, manifest=manifest, metadata=metadata)


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
        try:
            read_tensors(self._world, self.path, tensors, metadata=self._metadata, files=self._manifest.files)
            values = decode_state(self.path, self._manifest.files[STATE])["values"]
        except CheckpointError as error:
            raise CheckpointError(f"{error} {suggest_older(self.path)}") from error
        state.values.clear()
        state.values.update(values)
