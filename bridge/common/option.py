"""Describe one option of a job, for all code that shows or checks it. `job_options.py` has the options."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VALUE_SHOWN = 40
"""Characters of a value that is out of bounds."""

JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
"""The form of a job's name."""

_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Sequence: "a list of strings",
    Mapping: "a table",
}


def _is_a(value: Any, kind: Any) -> bool:
    if kind is Sequence:
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and all(isinstance(item, str) for item in value)
        )
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if kind is float else kind)


@dataclass(frozen=True)
class Option:
    """One option, for all code that shows or checks it."""

    name: str
    type: Any
    """`bool`, `int`, `float`, `str`, `Sequence` (of strings) or `Mapping`."""
    default: Any
    help: str
    """One line without a full stop, for `--help` and the reference."""
    users: frozenset[str]
    more: str = ""
    """Text for the reference only: Markdown, after the help."""
    flag: str = ""
    """The flag of `flowerbed submit`, or "" if it has none, or asks for it in another way."""
    flag_help: str = ""
    """The help of that flag, if it says the opposite of the option."""
    metavar: str = ""
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    submit_default: Any = None
    """The default of `flowerbed submit`, if it differs from `default`."""
    submit_default_text: str = ""
    """The same in words, if `submit` computes it."""
    recipe: bool = False
    """True if `FlowerRecipe` takes it under this name, beside the arguments of FLARE's own recipe."""

    @property
    def bounds(self) -> str:
        """Return the values that are allowed, for users, or "" for all of the type."""
        if self.choices:
            return ", ".join(self.choices)
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        return "" if self.at_least is None else f"at least {self.at_least:g}"

    @property
    def is_switch(self) -> bool:
        """Return whether its flag takes no value and sets the opposite of the default."""
        return self.type is bool

    @property
    def help_text(self) -> str:
        """Return the help of `--help`, with bounds and default."""
        default = self.submit_default_text or self.submit_default or self.default
        facts = [self.bounds] if self.bounds and not self.choices else []
        if not self.is_switch and default is not None:
            shown = f"{default:g}" if isinstance(default, float) else str(default)
            facts += [f"default: {shown}"] if shown else []
        text = self.flag_help or self.help
        return f"{text} ({', '.join(facts)})" if facts else text

    def problem(self, value: Any) -> str:
        """Return the problem of a value, beginning with the value, or ""."""
        if value is None and self.default is None:
            return ""
        if not _is_a(value, self.type):
            return f"{value!r}: expected {_NAMES[self.type]}"
        if (
            self.type is Sequence
            and (twice := next((v for v in value if value.count(v) > 1), None)) is not None
        ):
            return f"{','.join(value)}: {twice} is named twice"
        if self.name == "name" and value and not JOB_NAME.fullmatch(value):
            return f"{value!r}: expected letters, digits, '.', '_' and '-', with a letter or digit first"
        if self.choices:
            return "" if value in self.choices else f"{value!r}: expected {self.bounds}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{value!r}: expected a finite number"
        low = self.at_least is not None and value < self.at_least
        if low or (self.at_most is not None and value > self.at_most):
            shown = f"{value:g}" if isinstance(value, float) else f"{value!r}"[:VALUE_SHOWN]
            return f"{shown}: expected {self.bounds}{f' {self.unit}' if self.unit else ''}"
        return ""
