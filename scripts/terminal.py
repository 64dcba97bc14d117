"""Print answers for users: tables on stdout, in colour at a terminal, plain and at full width in a pipe.

With `--format json` stdout belongs to the object, and tables go to stderr. No text of a site or an app is
read as markup or acts on the terminal: every cell passes `bridge.common.text`. Only functions that show
something import Rich.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from bridge.common.text import one_line
from scripts import core

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

CELL_LIMIT = 300
"""Characters of a cell. `--format json` has all of it."""
WATCH_EVERY = 2.0
"""Seconds between two looks of `--watch`: no event reports a change."""
PIPE_WIDTH = 100_000
"""Columns where there is no terminal: nothing is folded or cut."""

STYLES = {
    "green": ("FINISHED:COMPLETED", "healthy", "ok"),
    "red": ("FINISHED", "unhealthy", "fail", "absent", "exited", "dead"),
    "yellow": ("SUBMITTED", "APPROVED", "warn", "starting", "created", "restarting", "paused"),
    "cyan": ("RUNNING", "DISPATCHED"),
}
"""The colour of a cell that begins with one of these words. The first match counts."""

Seen = tuple[Any, Sequence["RenderableType"]]
"""A look of `--watch`: the facts (in a pipe, it is shown only if they changed), and the tables to show."""


def console(*, err: bool = False) -> Console:
    """Return Rich's console for stdout, or for stderr where stdout is not for users."""
    from rich.console import Console

    file: TextIO = sys.stderr if err or core.as_json else sys.stdout
    found = Console(file=file, highlight=False, markup=False, emoji=False)
    if not found.is_terminal:
        found = Console(file=file, highlight=False, markup=False, emoji=False, width=PIPE_WIDTH)
    return found


def cell(value: object, style: str | None = None) -> Text:
    """Return a value as one line of text, which neither Rich nor a terminal interprets."""
    from rich.text import Text

    text = one_line(core.as_called(str(value)), CELL_LIMIT)
    found = next((colour for colour, words in STYLES.items() if text.startswith(words)), "")
    return Text(text, style=found if style is None else style)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], fold: Sequence[str] = ()) -> Table:
    """Return a table without lines.

    Args:
        head: the columns' names.
        fold: columns with cells that may take several lines at a narrow terminal.
    """
    from rich.table import Table

    found = Table(box=None, pad_edge=False, header_style="bold")
    for name in head:
        found.add_column(name, no_wrap=name not in fold, overflow="fold" if name in fold else "ellipsis")
    for row in rows:
        # A name in the colour of a status would mislead.
        found.add_row(
            *(cell(v, "" if name in ("NAME", "WHY") else None) for name, v in zip(head, row, strict=True))
        )
    return found


def show(*parts: RenderableType) -> None:
    """Print the parts, one below the other."""
    if not parts:
        return
    out = console()
    if out.is_terminal:
        out.print(*parts, sep="\n")
    else:
        out.file.write(plain(*parts))
        out.file.flush()


def plain(*parts: RenderableType) -> str:
    """Return the parts as text, without colour and without padding at a line's end."""
    out = console()
    with out.capture() as captured:
        out.print(*parts, sep="\n")
    return "".join(line.rstrip() + "\n" for line in captured.get().splitlines())


def watch(look: Callable[[], Seen]) -> NoReturn:
    """Show each result of `look` until Ctrl-C: in place at a terminal, elsewhere again when it has
    changed."""
    from rich.console import Group
    from rich.live import Live

    out, before = console(), object()
    if out.is_terminal:
        # The first look may print something too, such as the identity in use.
        with Live(Group(*look()[1]), console=out, auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_EVERY)
                live.update(Group(*look()[1]), refresh=True)
    while True:
        now, parts = look()
        if now != before:
            show(*parts)
            before = now
        time.sleep(WATCH_EVERY)
