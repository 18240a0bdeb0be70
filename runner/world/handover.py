"""Secrets on their way from the launcher to the ranks on its machine, which no file of a run holds.

The launcher keeps them in memory that has a descriptor but no name, and tells the ranks where that is. Whoever may read
the launcher's memory can read it: the same account. It is gone when the launcher ends, however that ends.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from runner.config.secret import Secret

__all__ = ["VARIABLE", "hand_over", "receive"]

VARIABLE = "RUNNER_SECRETS_FROM"
"""Where they are: a path, as MASTER_ADDR is where ranks meet. It says nothing about the run."""


@contextmanager
def hand_over(secrets: Mapping[str, Secret]) -> Iterator[dict[str, str | None]]:
    """Environment variables for the ranks that are started in the block, by which `receive` finds the secrets."""
    if not secrets:
        yield {VARIABLE: None}
        return
    content = json.dumps({key: [one.value, one.source] for key, one in secrets.items()})
    if sys.platform == "linux":
        with os.fdopen(os.memfd_create("runner-secrets"), "w") as memory:
            memory.write(content)
            memory.flush()
            yield {VARIABLE: f"/proc/{os.getpid()}/fd/{memory.fileno()}"}
    else:  # a file that only this account can read, and that goes at the end
        with tempfile.NamedTemporaryFile("w", prefix="runner-") as file:
            file.write(content)
            file.flush()
            yield {VARIABLE: file.name}


def receive(environ: Mapping[str, str]) -> dict[str, Secret]:
    """What the launcher hands over, by dotted key; nothing where there is no launcher on this machine."""
    path = environ.get(VARIABLE)
    if path is None:
        return {}
    return {
        key: Secret(value=value, source=source) for key, (value, source) in json.loads(Path(path).read_text()).items()
    }
