"""Tables of a job's options, from their one definition (`bridge/common/job_options.py`)."""

from __future__ import annotations

import inspect

from bridge.common import job_options
from bridge.common.option import Option
from dev.reference.markdown import rows, value

HEADS = {"server": "argument of `FlowerController`", "site": "argument of `FlowerExecutor`"}


def options(name: str) -> str:
    """Return the table of one place: `server`, `site` or `recipe`."""
    chosen = job_options.of_recipe() if name == "recipe" else job_options.options(name)
    lines = [(f"`{option.name}`", value(option.default), _meaning(option)) for option in chosen]
    return rows((HEADS.get(name, "argument"), "default", "meaning"), lines)


def recipe(name: str) -> str:
    """Return the table of the arguments of FLARE's own recipe, and what they mean in Flowerbed's."""
    from bridge.flare.recipe import NO_EFFECT, FlowerRecipe  # Here, since it imports FLARE.

    ours = {option.name for option in job_options.of_recipe()}
    meanings = {one: f"no effect: {why}" for one, (_, why) in NO_EFFECT.items()}
    meanings |= _arguments(inspect.getdoc(FlowerRecipe) or "")
    lines = [
        (f"`{parameter.name}`", value(_number(parameter.default)), meanings[parameter.name])
        for parameter in inspect.signature(FlowerRecipe).parameters.values()
        if parameter.name not in ours
    ]
    return rows(("argument", "default", "meaning here"), lines)


def with_more(option: Option, text: str) -> str:
    """Return a text with what only the reference says."""
    return f"{text}. {option.more}" if option.more else text


def _meaning(option: Option) -> str:
    return with_more(option, f"{option.help} ({option.bounds})" if option.bounds else option.help)


def _number(default: object) -> object:
    return int(default) if isinstance(default, float) and default.is_integer() else default


def _arguments(docstring: str) -> dict[str, str]:
    """The `Args:` of a docstring."""
    found: dict[str, str] = {}
    name = ""
    for line in docstring.partition("Args:\n")[2].splitlines():
        if line.startswith("    ") and not line.startswith("     "):
            name, _, text = line.strip().partition(": ")
            found[name] = text
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found
