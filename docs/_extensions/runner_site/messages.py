"""The messages of errors, read in the source: those that stand there as one text, with … for each value."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import runner
from runner import errors
from runner.errors import Fault, RunnerError, SpecError
from runner_site.markdown import prose

__all__ = ["messages"]

DEPTH = 1
VALUE = "…"
SHORTEST = 24
"""Letters that a message must have of its own, so that somebody can search for it."""
KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, RunnerError)}


def messages() -> Mapping[str, list[str]]:
    """The messages of each class, as Markdown. Those of faults are of SpecError, which carries them."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(Path(runner.__file__).parent.rglob("*.py")):
        for name, text in _messages_in(ast.parse(path.read_bytes())):
            if sum(map(str.isalpha, text)) >= SHORTEST:
                found[SpecError.__name__ if name == Fault.__name__ else name].add(prose(text, depth=DEPTH))
    return {name: sorted(texts, key=lambda text: text.lstrip(f"{VALUE}\\`. ").lower()) for name, texts in found.items()}


def _messages_in(module: ast.Module) -> Iterator[tuple[str, str]]:
    """The class and the message of each error that a module makes."""
    constants = _assigned(module.body, {})
    for function in ast.walk(module):
        if isinstance(function, ast.FunctionDef):
            texts = constants | _assigned(list(ast.walk(function)), constants)
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                    message = _argument(call, call.func.id)
                    text = None if message is None else _text(message, texts)
                    if text:
                        yield call.func.id, text


def _argument(call: ast.Call, name: str) -> ast.expr | None:
    """The message that a class is called with."""
    if name == Fault.__name__:
        return next((keyword.value for keyword in call.keywords if keyword.arg == "message"), None)
    return call.args[0] if name in KINDS - {SpecError.__name__} and call.args else None


def _assigned(nodes: list[ast.stmt] | list[ast.AST], outer: dict[str, str]) -> dict[str, str]:
    """Names that are assigned one text, and once."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name, text = node.targets[0].id, _text(node.value, outer | found)
            if text is not None and name not in seen:
                found[name] = text
            elif name in found:
                del found[name]
            seen.add(name)
    return found


def _text(node: ast.expr, texts: Mapping[str, str]) -> str | None:
    """The text of an expression, with … for what is not known; None if it is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name):
        return texts.get(node.id)
    if isinstance(node, ast.JoinedStr):
        return "".join(_piece(value, texts) for value in node.values)
    return None


def _piece(node: ast.expr, texts: Mapping[str, str]) -> str:
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    return _text(inner, texts) or VALUE
