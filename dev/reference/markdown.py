"""Tables and words in Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

CODE = re.compile(r"(`[^`]*`)|(?<![\w`/-])(--format json|--[a-z][a-z-]*|\./flowerbed(?: [a-z-]+)?)(?![\w`])")
"""What is code already, or what has to become it."""


def rows(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    text = "".join("|" + "|".join(f" {cell} " for cell in line) + "|\n" for line in (head, *lines))
    first, rest = text.split("\n", 1)
    return f"{first}\n|{'---|' * len(head)}\n{rest}"


def marked(text: str) -> str:
    """Return a text for terminals with its options and verbs as code."""
    return CODE.sub(lambda found: found[1] or f"`{found[2]}`", text)


def cell(text: str) -> str:
    """Return a text that fits into a table's cell."""
    return " ".join(text.replace("|", r"\|").split())


def value(default: object) -> str:
    """Return a default for users."""
    if default is None:
        return "none"
    if isinstance(default, float):
        return f"{default:g}"
    return json.dumps(default) if isinstance(default, bool | int) else f"`{json.dumps(default)}`"


def code(lines: Sequence[str]) -> str:
    """Return a block of code."""
    return "```\n" + "\n".join(lines) + "\n```\n"
