"""A payload file that an earlier checkpoint has already is linked to instead of written again.

A hard link is the file itself, under a second name: each checkpoint stays complete, and the file exists until the last
checkpoint with it is deleted, in whatever order.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from runner.checkpoint.save import Earlier
from runner.checkpoint.writer import Payload, Piece, hash_payload
from runner.errors import CheckpointError
from runner.storage.files import size_of

logger = logging.getLogger(__name__)


def link_payload(
    directory: Path, name: str, pieces: Sequence[Piece], tensors: Iterable[Tensor], earlier: Earlier
) -> Payload | None:
    """Link to the file of this name in an earlier checkpoint if its hash is that of these tensors.

    Args:
        pieces: as for `write_payload`.
        tensors: the contents of the pieces, each hashed.

    Returns:
        What `write_payload` would return. None, with nothing changed, if there is no such file, it differs, or the file
        system refused.
    """
    expected = earlier.files.get(name)
    if expected is None:
        return None
    found = hash_payload(name, pieces, tensors)
    if found.files != {name: expected}:
        return None
    source = earlier.directory / name
    try:
        if size_of(source) != expected.bytes:
            raise CheckpointError(f"{source} does not have {expected.bytes} bytes.")
        os.link(source, directory / name)
    except (OSError, CheckpointError) as error:
        logger.info("%s is written again, since it cannot be linked to: %s", name, error)
        return None
    return found
