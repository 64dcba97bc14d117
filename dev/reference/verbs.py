"""The sections of the verbs, from the command line itself: docstrings, parameters, and `JSON`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator

import click

from bridge.common import job_options, summary
from dev.reference.job import with_more
from dev.reference.markdown import cell, code, marked, rows
from scripts import app_builds
from scripts.__main__ import FORMAT, VERBS, verb
from scripts.json_object import ON_ERROR, JsonObject, Keys, below

LIKE = {
    "summary.json": ("[`summary.json`](job.md#results)", summary.KEYS),
    "build": ("[`build --app`](#build)", below("environments[]", app_builds.ENVIRONMENT)),
}
"""Where the page tells of keys that several verbs have."""


def section(name: str) -> str:
    """Return what the page says of a verb."""
    module, command = importlib.import_module(VERBS[name]), verb(name)
    summary_line, *parts = _prose(module.__doc__ or "")
    usage = code([_usage(name, command)])
    if parts and parts[0].startswith("```"):
        usage = usage.removesuffix("```\n") + parts.pop(0).replace("```", "", 1)
    parts = [summary_line, usage, *parts]
    if lines := list(_parameters(name, command)):
        parts.append(rows(("option", "meaning"), lines))
    return "\n".join([*parts, _json(module.JSON)])


def json_of(name: str) -> str:
    """Return the table of an object that is not one verb's: `error` or `summary`."""
    return _keys({"error": ON_ERROR, "summary": summary.KEYS}[name])


def _prose(docstring: str) -> Iterator[str]:
    """The paragraphs of a docstring, and its examples as code."""
    lines: list[str] = []
    examples: list[str] = []
    for line in [*inspect.cleandoc(docstring).splitlines(), ""]:
        if examples and not line.startswith(" "):
            yield code([example[2:] for example in examples])
            examples = []
        if line.startswith(" "):
            examples.append(line)
        if lines and (not line or line.startswith(" ")):
            yield marked(" ".join(lines)) + "\n"
            lines = []
        if line and not line.startswith(" "):
            lines.append(line)


def _usage(name: str, command: click.Command) -> str:
    words = ["./flowerbed", name]
    for param in command.params:
        if isinstance(param, click.Argument):
            word = param.metavar or "|".join(getattr(param.type, "choices", ())) or param.human_readable_name
            words.append(word if param.required else f"[{word}]")
    return " ".join([*words, *(["[OPTIONS]"] if len(command.params) > 1 else [])])


def _parameters(name: str, command: click.Command) -> Iterator[tuple[str, str]]:
    """Its arguments and options. `--format` is every verb's."""
    more = {option.name: option for option in job_options.of_submit()} if name == "submit" else {}
    for param in command.params:
        if FORMAT in param.opts:
            continue
        text = marked(str(getattr(param, "help", "")))
        if param.name in more:
            text = with_more(more[param.name], text.rstrip(".")) + "."
        elif not isinstance(param, click.Argument) and (default := _default(param)):
            text = f"{text} Default: `{default}`."
        yield cell(_called(param)), cell(text)


def _called(param: click.Parameter) -> str:
    names = [f"`{name}`" for name in sorted(param.opts, key=len, reverse=True)]
    choices = "|".join(str(choice) for choice in getattr(param.type, "choices", ()))
    word = param.metavar or choices
    if isinstance(param, click.Argument):
        return f"`{word or param.human_readable_name}`"
    if word and not getattr(param, "is_flag", False):
        names[0] = f"{names[0][:-1]} {word}`"
    return ", ".join(names)


def _default(param: click.Parameter) -> str:
    shown = getattr(param, "show_default", None)
    if isinstance(shown, str):
        return shown
    return "" if param.default is None or param.default is False else str(param.default)


def _json(answer: JsonObject) -> str:
    parts = [_titled("JSON", answer.keys, answer.like.get("", ""))]
    parts += [
        _titled(f"JSON {case[0].lower()}{case[1:]}", keys, answer.like.get(case, ""))
        for case, keys in answer.others.items()
    ]
    if answer.on_error:
        parts.append(_titled("JSON beside `error`", answer.on_error))
    return "\n".join(parts)


def _titled(title: str, keys: Keys, like: str = "") -> str:
    where, known = LIKE.get(like, ("", {}))
    same = [path for path in keys if path in known]
    names = ", ".join(f"`{path}`" for path in same if "." not in path)
    rest = {path: text for path, text in keys.items() if path not in known}
    if not same:
        return f"{title}:\n\n{_keys(rest)}"
    told = f"{names}, as in {where}" if names else f"the keys of {where}"
    return f"{title}: {told}" + (f". Also:\n\n{_keys(rest)}" if rest else ".\n")


def _keys(keys: Keys) -> str:
    lines = [(f"`{path.replace('?', '')}`", cell(text)) for path, text in keys.items()]
    return rows(("key", "value"), lines)
