"""Define arguments and options that several verbs take, and read their values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import typer

from bridge.common.meta import LATEST
from scripts import core

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
"""Seconds of a duration's units."""


def duration(text: str) -> float:
    """Return the seconds of `90`, `90s`, `1.5m`, `2h` or `1d`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if not found:
        raise typer.BadParameter(f"'{text}': expected a time such as 90, 90s, 5m or 1h.")
    return float(found[1]) * UNITS[found[2]]


def count(text: str) -> int:
    """Return a whole number that is not negative."""
    if not text.isdecimal():
        raise typer.BadParameter(f"'{text}': expected a whole number, 0 or more.")
    return int(text)


def job_id(text: str) -> str:
    """Return the value of JOB. It also names a folder of results, so it must not lead out of it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        raise typer.BadParameter(f"'{text}' is not a job id (./flowerbed jobs lists them)")
    return text


def names(text: str, option: str, known: Sequence[str]) -> list[str]:
    """Return the names in `A,B`, if all of them are known.

    Raises:
        UsageError: there is no name, or an unknown one.
    """
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise core.UsageError(f"{option} {text!r}: expected names with commas between, such as {known[0]}.")
    if unknown := [name for name in found if name not in known]:
        raise core.UsageError(f"{option}: unknown name {', '.join(unknown)}. There are: {', '.join(known)}.")
    return found


As = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="NAME",
        help="Act as this admin of project.yml: the part of the address before the @, or all of it "
        "(default: the project_admin).",
    ),
]

Job = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        parser=job_id,
        help=f"The job's id or its beginning, Flower's run id, or '{LATEST}'.",
    ),
]

Timeout = Annotated[
    float | None,
    typer.Option(
        metavar="TIME",
        parser=duration,
        help="Stop waiting after this time, such as 90s, 5m or 1h. The job goes on, and the exit code is 1.",
    ),
]

Watch = Annotated[
    bool,
    typer.Option(
        "--watch",
        help="Keep showing it until Ctrl-C: in place at a terminal, in a pipe whenever it changes. Not with "
        "--format json.",
    ),
]


def check_watch() -> None:
    """Refuse `--watch` with `--format json`, which promises one object.

    Raises:
        UsageError: both are given.
    """
    if core.as_json:
        raise core.UsageError(
            "--watch cannot be combined with --format json: that never ends with an object."
        )
