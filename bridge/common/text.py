"""Make text from a site or an app safe to print: terminal codes are shown, not executed.

An escape sequence can write a clipboard. A carriage return or a cursor's move can hide a line and put another
there. A bidirectional mark can turn a word around. So all text for a terminal goes through `shown`, and text
for one line, such as a metric's name, through `one_line`.
"""

from __future__ import annotations

import re

_ACTING = re.compile(
    # Control characters except tab and line feed. Format characters, among them the bidirectional marks. The
    # separators of lines and paragraphs. Halves of surrogate pairs. A test compares it with Unicode.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f\ud800-\udfff]"
)


def shown(text: str) -> str:
    r"""Return `text` with terminal controls as codes, such as `\x1b`. Lines stay lines."""
    return _ACTING.sub(_code, text)


def one_line(text: str, limit: int) -> str:
    """Return the same in one line of at most `limit` characters."""
    # Cut before and after, because a code is longer than its character.
    line = shown(text[:limit]).replace("\n", "\\n").replace("\t", "\\t")
    return line if len(text) <= limit and len(line) <= limit else line[: limit - 1] + "…"


def bare_error(text: str) -> str:
    """Return an error as Python says it. Flower's SuperNode writes an exception as `<class
    '...'>:<'...'>`."""
    return re.sub(r"^<class '(?:\w+\.)*(\w+)'>:<'(.*)'>$", r"\1: \2", text, flags=re.DOTALL)


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
    return (
        f"\\x{number:02x}"
        if number < 0x100
        else f"\\u{number:04x}"
        if number < 0x10000
        else f"\\U{number:08x}"
    )
