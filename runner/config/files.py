"""Files of the user's that a declaration names: read once, by the launching process, and frozen with the rest.

A part says so by the type of a field, `JsonFile | None`. Its YAML gives a path, relative to the user's working
directory; the frozen spec holds {path, content}, so that neither a worker nor a later `resume` needs the file.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

from runner.errors import Fault

__all__ = ["JsonFile", "ReadIn", "read_in"]


@final
@dataclass(frozen=True, kw_only=True)
class JsonFile:
    """A JSON file that a part is told of by its path."""

    path: str
    """As the user wrote it."""
    content: Mapping[str, Any] | None = None
    """What stood in it when the spec was composed; None = it was not read yet."""

    @property
    def held(self) -> Mapping[str, Any]:
        """What stood in it."""
        assert self.content is not None, f"{self.path} was not read when the spec was composed"
        return self.content

    def frozen(self) -> dict[str, Any]:
        """As it stands in a spec file."""
        return {"path": self.path, "content": self.content}

    def read(self) -> "JsonFile":
        """With its content.

        Raises:
            ValueError: it is not there, is no JSON object, or says a key twice.
        """
        try:
            text = Path(self.path).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror}. Give the path of a JSON file.") from None
        except UnicodeDecodeError:
            raise ValueError(f"{self.path} is not JSON: it is not text. Give the path of a JSON file.") from None
        twice: list[str] = []
        try:
            content = json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, twice))
        except ValueError as error:
            raise ValueError(f"{self.path} is not JSON: {error}.") from None
        if not isinstance(content, dict):
            raise ValueError(f"{self.path} holds a {type(content).__name__}; it must hold a JSON object, {{…}}.")
        if twice:
            raise ValueError(f"{self.path} says twice: {', '.join(twice)}. Leave each once in its section.")
        return dataclasses.replace(self, content=content)


class ReadIn(NamedTuple):
    """A part after its files were read."""

    part: Any
    fields: dict[str, Any]
    """What is to be frozen in place of the fields that named files."""
    faults: list[Fault]


def read_in(part: Any, *, key: str) -> ReadIn:
    """Read the files that a part's fields name and that were not read before.

    Args:
        key: the part's own, for the faults.
    """
    read: dict[str, JsonFile] = {}
    faults: list[Fault] = []
    for name, value in vars(part).items():
        if isinstance(value, JsonFile) and value.content is None:
            try:
                read[name] = value.read()
            except ValueError as wrong:
                faults.append(Fault(key=f"{key}.{name}", message=str(wrong)))
                read[name] = dataclasses.replace(value, content={})  # so that all else can be judged
    if not read:
        return ReadIn(part, {}, [])
    return ReadIn(dataclasses.replace(part, **read), {name: one.frozen() for name, one in read.items()}, faults)


def _once(pairs: list[tuple[str, Any]], twice: list[str]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice += [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return dict(pairs)
