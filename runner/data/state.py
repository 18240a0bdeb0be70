"""The state of a source, checked before it is loaded."""

from collections.abc import Mapping, Set
from typing import Any

from runner.errors import CheckpointError

__all__ = ["check_state"]


def check_state(state: Mapping[str, Any], keys: Set[str], *, of: str) -> None:
    """See that a state is that of a source.

    Args:
        keys: what its state has.
        of: what it reads: a stream.

    Raises:
        CheckpointError: it is another's.
    """
    if set(state) != keys:
        raise CheckpointError(
            f"the checkpoint holds the state of a source with {', '.join(sorted(state)) or 'nothing in it'}, but this "
            f"run reads {of}, whose state has {', '.join(sorted(keys))}. Resume with the data hook that the run began "
            "with, or start a new run."
        )
