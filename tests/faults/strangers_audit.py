"""What the interpreter itself says that it is about to do: an oracle that no code of the runner can get around."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
    "ctypes.dlopen",
    "shutil.rmtree",
    "webbrowser.open",
)


@final
class Audit:
    """Records forbidden events, and imports of modules whose name begins so, while it watches."""

    def __init__(self, *, planted: str) -> None:
        self.seen: list[str] = []
        self._planted = planted
        self._watching = False
        sys.addaudithook(self._hear)  # there is no way to remove one

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event in FORBIDDEN or (event == "import" and str(args[0]).startswith(self._planted)):
            self.seen.append(f"{event}{args}")

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        """The events of the block, as they come."""
        self.seen.clear()
        self._watching = True
        try:
            yield self.seen
        finally:
            self._watching = False
