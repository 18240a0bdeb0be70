"""The pages of options: one for each config group, and one of the sections that every recipe has.

Everything comes from what reads the values: the YAML files with their comments, and the dataclasses that they become.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from itertools import takewhile
from typing import Any

import yaml

from runner.composition.aliases import PREFIX as ALIASES
from runner.composition.explain import OF_THE_RUN, Known
from runner.composition.recipe import shipped_root
from runner.composition.yaml_file import Page, parse
from runner.config.fields import keys_of
from runner.config.imports import locate
from runner.config.read import GROUPS, HOOKS, MANY_GROUPS, SECTIONS
from runner.config.rules import range_of
from runner.schema.project import BASE, Option, read_project
from runner.schema.sections import FOREIGN_KEYS
from runner_site.markdown import code, fenced, prose, target

__all__ = ["KEY", "pages"]

DEPTH = 2
"""Folders between docs/ and these pages."""
KEY = "key-"
"""What the anchors of keys begin with."""
TRY_IT = "# Try it: "
NOT_PROSE = ("# @package", ALIASES, TRY_IT)


def pages() -> Iterator[tuple[str, str]]:
    """The name and the Markdown of each page."""
    conf = shipped_root() / "conf"
    with chdir(shipped_root()):
        groups = read_project().groups
    base = parse(conf / f"{BASE}.yaml")
    summaries = _summaries(base)
    yield "options/index", _index(groups, summaries)
    yield "options/sections", "\n\n".join(_sections(base))
    for group, options in groups.items():
        files = {option.name: parse(conf / group / f"{option.name}.yaml") for option in options}
        yield f"options/{group}", "\n\n".join(_group(group, options, files, summaries[group]))


def _index(groups: Mapping[str, Sequence[Option]], summaries: Mapping[str, tuple[str, str]]) -> str:
    rows = [
        f"{code(group)}\n: {_sentence(summaries[group][1])} {_links(group, options)}"
        for group, options in groups.items()
    ]
    names = "\n".join(["sections", *groups])
    return f"""# Options and keys

Made of the files under `conf/` and the classes that read them. `runner explain RECIPE KEY` says the same of a single
value, and where it comes from. [Sections](sections.md) has the keys of every recipe: `batch`, `run`, `eval`, …

{chr(10).join(f"{row}{chr(10)}" for row in rows)}
```{{toctree}}
:hidden:

{names}
```
"""


def _links(group: str, options: Sequence[Option]) -> str:
    return ", ".join(f"[{option.name}]({group}.md#{_anchor(group, option.name)})" for option in options)


def _summaries(base: Page) -> dict[str, tuple[str, str]]:
    """Of each group: its default option, and what it sets, as the comments of base.yaml have it."""
    found = {}
    for index, entry in enumerate(base.content["defaults"]):
        if isinstance(entry, Mapping):
            ((group, default),) = entry.items()
            found[group] = (_value(default), base.comment("defaults", index, group).partition(":")[0].partition(";")[0])
    return found


def _group(group: str, options: Sequence[Option], files: Mapping[str, Page], summary: tuple[str, str]) -> Iterator[str]:
    default, meaning = summary
    many = group in MANY_GROUPS
    yield f"# {group}"
    yield f"{_sentence(meaning)} Default: {code(f'{group}={default}')}."
    if many:
        listed = ",".join(option.name for option in options)
        yield f"Several at once: {code(f'{group}=[{listed}]')}. The keys of each are under its own name."
    documented: dict[str | None, Option] = {}
    for option in options:
        yield target(_anchor(group, option.name))
        yield f"## {option.name}"
        yield from _option(option, files[option.name], documented)
        documented.setdefault(option.target, option)
    adapter = GROUPS.get(group)
    if adapter is not None:
        yield from _foreign(group, locate(adapter))


def _option(option: Option, page: Page, documented: Mapping[str | None, Option]) -> Iterator[str]:
    header = list(takewhile(lambda line: line.startswith("#"), page.lines))
    yield prose(" ".join(line.lstrip("# ") for line in header if not line.startswith(NOT_PROSE)), depth=DEPTH)
    aliases = [line.removeprefix(ALIASES) for line in header if line.startswith(ALIASES)]
    if aliases:
        yield f"Known elsewhere as {prose(', '.join(aliases), depth=DEPTH)}."
    yield from (fenced(line.removeprefix(TRY_IT), "bash") for line in header if line.startswith(TRY_IT))
    assert option.part is not None, f"{option.group}/{option.name}"
    known = {key.name: Known.of(key) for key in keys_of(option.part)}
    values = dict(_flat({name: value for name, value in option.content.items() if name != "_target_"}, known))
    if not values:
        yield "It has no keys."
    same = documented.get(option.target)
    if same is None:
        for name, value in values.items():
            yield _key(f"{option.package}.{name}", value, known[name], page.comment(*name.split(".")), option.name)
        return
    yield f"It has the keys of [{same.name}](#{_anchor(option.group, same.name)}), with these defaults:"
    for name, value in values.items():
        anchor = _key_anchor(f"{same.package}.{name}", same.name)
        yield f"- [{code(f'{option.package}.{name}')}](#{anchor}) = {code(_value(value))}"


def _flat(content: Mapping[str, Any], known: Mapping[str, Known], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values by dotted key; a mapping that is a value of its own is not taken apart."""
    for name, value in content.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping) and key not in known:
            yield from _flat(value, known, f"{key}.")
        else:
            yield key, value


def _foreign(group: str, adapter: type[Any]) -> Iterator[str]:
    """What may stand beside the arguments of a class of another library."""
    yield target(_anchor(group, "_target_"))
    yield "## A class of another library"
    yield prose(" ".join((inspect.getdoc(adapter) or "").split()), depth=DEPTH)
    yield f"`{group}._target_` names the class. Its arguments are keys beside it."
    for key in keys_of(adapter):
        if key.name not in FOREIGN_KEYS:
            yield _key(f"{group}.{key.name}", _plain(key.default), Known.of(key), "", "_target_")


def _sections(base: Page) -> Iterator[str]:
    yield "# Sections"
    yield "The keys that every recipe has, whatever its options. `null` means off, unless the key says otherwise."
    yield "## name, version, models and phases"
    for name, known in OF_THE_RUN.items():
        yield _key(name, base.content[name], known, base.comment(name), "recipe")
    yield "## Hooks"
    yield "Your own functions: [writing hooks](../../hooks.md)."
    for name in HOOKS:
        known = Known(type="the dotted path of a function", meaning=_sentence(base.comment(name)))
        yield _key(f"{name}._target_", base.content[name]["_target_"], known, "", "recipe")
    for section, cls in SECTIONS.items():
        yield target(_anchor("section", section))
        yield f"## {section}"
        yield prose(_sentence(base.comment(section) or inspect.getdoc(cls) or ""), depth=DEPTH)
        for key in keys_of(cls):
            dotted = f"{section}.{key.name}"
            known = Known.of(key, rule=range_of(dotted))
            yield _key(dotted, base.content[section][key.name], known, base.comment(section, key.name), "recipe")


def _key(name: str, value: Any, known: Known, comment: str, option: str) -> str:
    """A definition: the key with its default, type and rule; then its meaning, and that of its choices."""
    kind = ", ".join(filter(None, [known.type, known.rule]))
    choices = [f"- {code(choice)}: {prose(text, depth=DEPTH)}" for choice, text in known.choices.items() if text]
    blocks = [prose(_sentence(known.meaning or comment), depth=DEPTH), "\n".join(choices)]
    body = "\n\n".join(filter(None, blocks)).replace("\n", "\n  ")
    return (
        f"{target(_key_anchor(name, option))}\n"
        f"{code(name)} = {code(_value(value))}{f' · {prose(kind, depth=DEPTH)}' if kind else ''}\n"
        f": {body}"
    )


def _anchor(group: str, name: str) -> str:
    return f"{group}-{name}".replace("_", "-").lower().replace("--", "-")


def _key_anchor(name: str, option: str) -> str:
    return f"{KEY}{option}-{name}".replace("_", "-").replace(".", "-").lower()


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return f"{_capital(text)}{'' if text.endswith(('.', '!', '?', '…')) else '.'}" if text else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _value(value: Any) -> str:
    """A value as YAML writes it, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
