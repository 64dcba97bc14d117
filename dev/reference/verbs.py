"""The sections of the verbs, from the command line itself: docstrings, parameters, and `JSON`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator

import click

from bridge.common import job_options
from dev.reference.job import with_more
from dev.reference.markdown import cell, code, marked, rows
from scripts.__main__ import FORMAT, VERBS, verb
from scripts.answers import ON_ERROR, Answer, Keys


def section(name: str) -> str:
    """Return what the page says of a verb."""
    module, command = importlib.import_module(VERBS[name]), verb(name)
    parts = list(_prose(module.__doc__ or ""))
    parts.insert(1, code([_usage(name, command)]))
    if lines := list(_parameters(name, command)):
        parts.append(rows(("option", "meaning"), lines))
    return "\n".join([*parts, _json(module.JSON)])


def json_of(name: str) -> str:
    """Return the table of a verb's object alone. `error`: that of all verbs that fail."""
    if name == "error":
        return _keys(ON_ERROR)
    answer: Answer = importlib.import_module(VERBS[name]).JSON
    return _keys(answer.keys)


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
            text = with_more(more[param.name], text.rstrip("."))
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


def _json(answer: Answer) -> str:
    parts = [_titled("JSON:", answer.keys)]
    parts += [_titled(f"{case}:", keys) for case, keys in answer.others.items()]
    if answer.on_error:
        parts.append(_titled("Beside `error`:", answer.on_error))
    return "\n".join(part for part in parts if part)


def _titled(title: str, keys: Keys) -> str:
    return f"{title}\n\n{_keys(keys)}"


def _keys(keys: Keys) -> str:
    lines = [(f"`{path.replace('?', '')}`", cell(text)) for path, text in keys.items()]
    return rows(("key", "value"), lines)
