"""Run `flowerbed VERB`: find the verb's module in this package or in `dev`, call it, report its result.

A verb is a module with a docstring (its help, with the summary in the first line) and a function `run`. Typer
reads the verb's arguments from the function's parameters. `run` returns the object that `--format json`
prints, and fails by raising `core.Failure` or `core.UsageError`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import click
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from provisioning import places
from scripts import core
from scripts.core import Failure, UsageError, say

PANELS = {
    "Begin": ("init", "quickstart", "doctor"),
    "Jobs": ("submit", "jobs", "wait", "logs", "abort", "results", "remove", "hash", "apps"),
    "Federation": (
        "provision",
        "build",
        "data",
        "up",
        "renew",
        "status",
        "down",
        "kit",
        "flwr-config",
        "flwr-api",
    ),
    "Sites": ("site add", "site approve", "site list", "site remove", "ca export", "ca restore"),
    "Developers": ("compare", "bench", "test"),
}
"""The verbs, in the order of `--help`. A verb of two words is a module in a package."""

if not places.IS_CHECKOUT:
    del PANELS["Developers"]

VERBS = {
    name: f"{'dev' if panel == 'Developers' else 'scripts'}.{name.replace('-', '_').replace(' ', '.')}"
    for panel, names in PANELS.items()
    for name in names
}
"""The module of each verb."""

GROUPS = tuple(dict.fromkeys(name.partition(" ")[0] for name in VERBS if " " in name))
"""The first words of verbs that have two."""

ANYWHERE = ("init", "flwr-api")
"""Verbs that need no federation in the working directory."""

WRITE_NOTHING = ("init", "doctor", "jobs", "wait", "logs", "abort", "remove", "hash", "status", "site list")
"""Verbs that leave no file in the federation's folder, so there is nothing to give to its owner."""

MEANT = {"stop": "abort", "cancel": "abort", "run": "submit", "ls": "jobs", "list": "jobs"}
MEANT |= {"rm": "remove", "delete": "remove", "help": "--help"}
"""Other tools' names for the verbs."""

SETTINGS = {"help_option_names": ["-h", "--help"]}
FORMAT = "--format"
INTERRUPTED = 130
"""The exit code after Ctrl-C. Typer returns it in place of the verb's object."""


class Verbs(TyperGroup):
    """The verbs. Each module is imported on use: importing them all takes as long as most verbs run."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "suggest_commands": False})  # Click does, once is enough.
        for panel, names in PANELS.items():
            for name in names:
                self.commands[name] = TyperCommand(name, help=summary(name), rich_help_panel=panel)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb and import it."""
        if args and args[0] in MEANT:
            raise click.UsageError(f"No such command '{args[0]}'. Did you mean '{MEANT[args[0]]}'?", ctx)
        if args[0] in GROUPS and {"-h", "--help"} & set(args[1:2]):
            return args[0], _group(args[0]), args[1:]
        name, command, rest = super().resolve_command(ctx, _joined(args))
        return name, verb(name) if name and command else command, rest


def _group(first: str) -> TyperGroup:
    """Return the help of all verbs that begin with a word."""
    verbs: dict[str, click.Command] = {
        name.partition(" ")[2]: TyperCommand(name, help=summary(name))
        for name in VERBS
        if name.startswith(f"{first} ")
    }
    text = f"The verbs of {first}. For help with one: {core.as_called(f'./flowerbed {first} VERB --help')}"
    return TyperGroup(
        name=first,
        commands=verbs,
        help=text,
        subcommand_metavar="VERB [ARGS]...",
        rich_markup_mode="rich",
        context_settings=SETTINGS,
    )


def _joined(words: list[str]) -> list[str]:
    """Return the words of a command line with the verb as one word."""
    two = " ".join(words[:2])
    if two in VERBS:
        return [two, *words[2:]]
    if more := [name for name in VERBS if words and name.startswith(f"{words[0]} ")]:
        raise click.UsageError(f"Expected one of: {', '.join(more)}.")
    return words


def summary(name: str) -> str:
    """Return the first line of a verb's docstring, read without importing the verb."""
    path = core.SOURCE / VERBS[name].replace(".", "/")
    with path.with_suffix(".py").open() as file:
        return core.as_called(file.readline().strip().strip('"'))


def verb(name: str) -> click.Command:
    """Return the command of a verb."""
    module = importlib.import_module(VERBS[name])
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=SETTINGS)
    app.command(name, help=_help(module.__doc__ or ""))(module.run)
    command = typer.main.get_command(app)
    text = "With json, the last line of stdout is one JSON object, and all else goes to stderr."
    choice = click.Choice(["text", "json"])
    # `main` looks for the option before anything is parsed.
    option = TyperOption(
        param_decls=[FORMAT], type=choice, default="text", show_default=True, help=text, expose_value=False
    )
    command.params.append(option)
    return command


def _help(docstring: str) -> str:
    """Return a docstring as Rich shows it: prose as wide as the terminal, examples unchanged."""
    lines = [""]
    for line in inspect.cleandoc(core.as_called(docstring)).replace("[", r"\[").splitlines():
        if line.startswith(" "):
            lines.append(f"[cyan]{line}[/cyan]")
        elif line and lines[-1] and not lines[-1].startswith("[cyan]"):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return "\n".join(lines).strip()


def _version(wanted: bool) -> None:
    if wanted:
        print(f"flowerbed {core.version()}")
        raise typer.Exit


app = typer.Typer(cls=Verbs, name="flowerbed", rich_markup_mode="rich", context_settings=SETTINGS)


@app.callback(
    epilog=core.as_called(
        "New here? Run ./flowerbed quickstart: it goes from nothing to a trained model. "
        "For help with a verb: ./flowerbed VERB --help"
    ),
    subcommand_metavar="VERB [ARGS]...",
)
def flowerbed(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Runs Flower apps, unchanged, on NVIDIA FLARE, across sites, in containers."""


def _acting_as() -> dict[str, str]:
    """Return name and role of the identity in use, if the verb asks the federation at all."""
    console = sys.modules.get("scripts.console")
    return {} if console is None else console.acting_as


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    # Nobody else may write what a verb makes: kits, .env, results. The user's umask decides the rest.
    os.umask(os.umask(0o022) | 0o022)
    if not words or (len(words) == 1 and words[0] in GROUPS):
        main([*words, "--help"])
        return UsageError.exit_code
    core.as_json = _wants_json(words)
    _acting_as().clear()
    name = next((name for name in (" ".join(words[:2]), words[0]) if name in VERBS), "")
    who = f"flowerbed {name}".strip()
    outcome: dict[str, Any] | int
    code = 0
    try:
        _need_federation(words)
        outcome = typer.main.get_command(app).main(words, "flowerbed", standalone_mode=False)
        if outcome == INTERRUPTED:
            raise KeyboardInterrupt
    except Failure as failure:
        say(f"{who}: {failure}")
        outcome, code = {"error": str(failure), **failure.facts}, failure.exit_code
    except click.ClickException as error:
        text = f"{error.format_message()}{_extra_argument(words, error)}\n  Help: ./{who} --help"
        say(f"{who}: {text}")
        outcome, code = {"error": text}, UsageError.exit_code
    except OSError as error:
        text = core.explain_os_error(error)
        say(f"{who}: {text}")
        outcome, code = {"error": text}, 1
    except (KeyboardInterrupt, click.Abort):
        say(f"{who}: interrupted")
        outcome, code = {"error": "interrupted"}, INTERRUPTED
    except Exception as error:
        # A mistake of ours. Its traceback helps to find it, and one object still ends `--format json`.
        traceback.print_exc()
        text = f"unexpected error: {type(error).__name__}: {error}"
        say(f"{who}: {text}\n  Please report it, with the lines above.")
        outcome, code = {"error": text}, 1
    if isinstance(outcome, dict):
        if identity := _acting_as():
            outcome = {**outcome, "as": dict(identity)}
        if "error" in outcome:
            outcome = {**outcome, "error": core.as_called(str(outcome["error"]))}
        if core.as_json:
            print(json.dumps(outcome), flush=True)
    if places.IS_THERE and words[0] not in WRITE_NOTHING and name not in WRITE_NOTHING:
        core.give_back()
    return code


def _need_federation(words: Sequence[str]) -> None:
    """Refuse a verb of an installed program outside of any federation. Help and completion work anywhere."""
    known = words[0] in VERBS or " ".join(words[:2]) in VERBS
    if places.IS_THERE or not known or words[0] in ANYWHERE or {"--help", "-h"} & set(words):
        return
    raise UsageError(
        places.UNSAFE
        or f"There is no federation in {core.ROOT} or above: expected project.yml and compose.yaml that "
        "./flowerbed init has written. Go to its folder, or lay one out: ./flowerbed init DIR"
    )


def _extra_argument(words: Sequence[str], error: click.ClickException) -> str:
    """Return the verb's message for an argument that it does not take."""
    name = next((name for name in (" ".join(words[:2]), *words[:1]) if name in VERBS), "")
    module = sys.modules.get(VERBS.get(name, ""))
    is_it = "unexpected extra argument" in error.format_message()
    more = getattr(module, "EXTRA_ARGUMENT", "") if is_it else ""
    return f" {more}" if more else ""


def _wants_json(words: Sequence[str]) -> bool:
    """Return whether `--format json` is among the words, even if the others are wrong."""
    ours = list(words[: words.index("--")] if "--" in words else words)
    pairs = zip(ours, [*ours[1:], ""], strict=False)
    return any(word == f"{FORMAT}=json" or (word, value) == (FORMAT, "json") for word, value in pairs)


if __name__ == "__main__":
    sys.exit(main())
