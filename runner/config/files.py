"""Files that a declaration refers to: read once, by the launching process, and frozen with everything else.

A part has a field of the type `JsonFile | None`. Its YAML gives a path, relative to the working directory; the frozen
spec holds {path, content}, so that neither a worker nor a later `resume` needs the file.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

__all__ = ["JsonFile"]


@final
@dataclass(frozen=True, kw_only=True)
class JsonFile:
    """A JSON file, given by its path."""

    path: str
    """As the user wrote it."""
    content: Mapping[str, Any] | None = None
    """The parsed file at the time the spec was composed; None = not read yet."""

    @property
    def parsed(self) -> Mapping[str, Any]:
        """The parsed file, once it has been read."""
        assert self.content is not None, f"{self.path} was not read when the spec was composed"
        return self.content

    def frozen(self) -> dict[str, Any]:
        """The value that a spec file holds."""
        return {"path": self.path, "content": self.content}

    def read(self) -> "JsonFile":
        """Read the file and return a copy with its content.

        Raises:
            ValueError: the file is missing, is not a JSON object, or has a duplicate key.
        """
        try:
            text = Path(self.path).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror}. Give the path of a JSON file.") from None
        except UnicodeDecodeError:
            raise ValueError(f"{self.path} is not JSON: it is not text. Give the path of a JSON file.") from None
        duplicates: list[str] = []
        try:
            content = json.loads(text, object_pairs_hook=lambda pairs: _record_duplicates(pairs, duplicates))
        except ValueError as error:
            raise ValueError(f"{self.path} is not JSON: {error}.") from None
        if not isinstance(content, dict):
            raise ValueError(f"{self.path} holds a {type(content).__name__}; it must hold a JSON object, {{…}}.")
        if duplicates:
            raise ValueError(f"{self.path} has duplicate keys: {', '.join(duplicates)}. Keep one of each.")
        return dataclasses.replace(self, content=content)


def _record_duplicates(pairs: list[tuple[str, Any]], duplicates: list[str]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    duplicates += [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return dict(pairs)
