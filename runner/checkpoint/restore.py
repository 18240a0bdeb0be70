"""Committed checkpoints of a run, found, verified and read."""

from collections.abc import Mapping
from pathlib import Path
from typing import final

from runner.checkpoint.format import METADATA, STATE, Described, Manifest, decode_metadata, decode_state
from runner.checkpoint.history import newest, verify, way_out
from runner.checkpoint.rank0 import on_rank_0
from runner.errors import CheckpointError
from runner.protocols import State, StoredTensor, World


@final
class Committed:
    """What has been committed under one directory. All methods are collective."""

    def __init__(self, checkpoints: Path, world: World) -> None:
        self._checkpoints = checkpoints
        self._world = world

    def latest(self) -> Path | None:
        """The newest, or None.

        Raises:
            CheckpointError: it is corrupted; names the file and the next older commit.
        """
        return on_rank_0(self._world, lambda: newest(self._checkpoints), path=self._checkpoints)

    def stored(self, path: Path) -> Mapping[str, StoredTensor]:
        """Shape and type of the tensors held, by name.

        Raises:
            CheckpointError: the checkpoint is corrupted.
        """
        from runner.checkpoint.memory import DTYPES

        return {name: StoredTensor(shape=one.shape, dtype=DTYPES[one.dtype]) for name, one in _open(path)[1].items()}

    def load(self, path: Path, state: State) -> None:
        """Fill the state's tensors in place and replace its values.

        Raises:
            CheckpointError: the checkpoint lacks some of the tensors, or has them otherwise (all are named); or it is
                corrupted (the file is named, and the next older commit), and the tensors may then be filled in part.
        """
        from runner.checkpoint.transfer import misfits, read_tensors

        manifest, described = _open(path)
        of_ranks = self._world.gather_objects(list(misfits(state.tensors, described)))
        if wrong := sorted({fault for faults in of_ranks for fault in faults}):
            raise CheckpointError(f"{path} is not a checkpoint of this model: {'; '.join(wrong)}.")
        try:
            read_tensors(self._world, path, state.tensors, described=described, files=manifest.files)
            values = decode_state(path, manifest.files[STATE])["values"]
        except CheckpointError as error:
            raise CheckpointError(f"{error} {way_out(path)}") from error
        state.values.clear()
        state.values.update(values)


def _open(path: Path) -> tuple[Manifest, dict[str, Described]]:
    """All ranks read the same files, so that all of them find the same faults."""
    try:
        manifest = verify(path)
        return manifest, decode_metadata(path, manifest.files[METADATA])
    except CheckpointError as error:
        raise CheckpointError(f"{error} {way_out(path)}") from error
