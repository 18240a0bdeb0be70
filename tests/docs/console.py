"""```console blocks of a page: `$ ` begins a command, `> ` continues it, and what follows is what it prints.

`...` stands for any text within a line, and on a line of its own for any lines, as doctest's ELLIPSIS does. A command
must succeed, unless the next one is `echo $?`.
"""

import re
from dataclasses import dataclass

STATUS = "echo $?"


@dataclass(frozen=True)
class Command:
    """A command of a page and what it is said to print."""

    text: str
    expected: str

    def printed(self, output: str) -> bool:
        """Whether this is what it is said to print; blanks at the ends of lines do not count."""
        return re.fullmatch(_pattern(self.expected), _trimmed(output)) is not None


def commands(block: str) -> list[Command]:
    """The commands of a block, in their order."""
    found: list[tuple[list[str], list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif line.startswith("> ") and found and not found[-1][1]:
            found[-1][0].append(line[2:])
        else:
            assert found, f"a console block begins with a command, not with {line!r}"
            found[-1][1].append(line)
    return [Command("\n".join(text), "\n".join(expected)) for text, expected in found]


def script(block: list[Command], *, number: int) -> str:
    """Bash that runs the commands of a block; what they print goes to files in $PRINTED, from `number` on."""
    lines = []
    for at, command in enumerate(block):
        followed_by_status = at + 1 < len(block) and block[at + 1].text == STATUS
        end = "" if followed_by_status else " || exit"
        lines.append(f'{{ {command.text}\n}} > "$PRINTED/{number + at}" 2>&1{end}')
    return "\n".join(lines)


def _trimmed(text: str) -> str:
    return "".join(line.rstrip() + "\n" for line in text.strip("\n").splitlines())


def _pattern(expected: str) -> str:
    return "".join(
        "(?:.*\n)*?" if line.strip() == "..." else ".*?".join(map(re.escape, line.split("..."))) + "\n"
        for line in _trimmed(expected).splitlines()
    )
