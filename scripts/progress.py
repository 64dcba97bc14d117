"""Show the progress of long work: a bar on a terminal's stderr, lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bridge.common.text import one_line
from scripts import core

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LOOK_EVERY = 0.25
"""Seconds between two checks of a download's files: pip and apt report nothing."""
LINE_EVERY = 10.0
"""Seconds between two lines of bytes, where there is no bar."""
TEXT_LIMIT = 60
"""Characters beside a bar."""
LINE_LIMIT = 200


def at_terminal() -> bool:
    """Return whether a bar can be drawn."""
    return sys.stderr.isatty()


class Bar:
    """Show the progress of work while it runs, as a context.

    Args:
        title: the name of the work.
        total: the amount of work, if it is known.
        in_bytes: whether that is bytes.
    """

    def __init__(self, title: str, total: float | None = None, *, in_bytes: bool = False) -> None:
        self._title, self._total, self._in_bytes = title, total, in_bytes
        self._drawn: tuple[Progress, TaskID] | None = None
        self._told, self._said = time.monotonic(), ""

    def __enter__(self) -> Self:
        if at_terminal():
            drawn = _drawing(self._in_bytes)
            self._drawn = drawn, drawn.add_task(self._title, total=self._total, what="")
            drawn.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            self._drawn[0].stop()

    def at(self, done: float, what: str = "", total: float | None = None) -> None:
        """Set the progress. A text in `what` is a separate line where there is no bar."""
        self._total = total or self._total
        if self._total and done > self._total:
            self._total = None  # It was a guess.
        if self._drawn:
            drawn, task = self._drawn
            drawn.tasks[0].total = self._total  # `update` takes None for no change.
            drawn.update(task, completed=done, what=one_line(what, TEXT_LIMIT))
        elif what and what != self._said:
            self._said = what
            # A number says something only beside the amount of all work.
            number = f"{done:.0f} of {self._total:.0f}: " if self._total else ""
            core.say(f"  {number}{one_line(what, LINE_LIMIT)}")
        elif self._in_bytes and time.monotonic() - self._told > LINE_EVERY:
            self._told = time.monotonic()
            core.say(f"  {core.in_words(done)}{f' of {core.in_words(self._total)}' if self._total else ''}")


def _drawing(in_bytes: bool) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column

    far: list[Any] = [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn()]
    # No markup: the title may come from a tool or an app. It takes the rest of the line.
    title = TextColumn("  {task.description}", markup=False)
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    what = TextColumn("{task.fields[what]}", markup=False, table_column=rest)
    columns = [SpinnerColumn(), title, BarColumn(bar_width=20), *far, TimeElapsedColumn(), what]
    return Progress(*columns, console=Console(stderr=True, soft_wrap=True), transient=True, expand=True)


def of_files(
    command: Sequence[str | os.PathLike[str]],
    folder: Path,
    title: str,
    total: float | None = None,
    **options: Any,
) -> Any:
    """Run a command that fetches files into `folder` and show their bytes, otherwise like `core.run`."""
    with (
        tempfile.TemporaryDirectory(prefix="flowerbed-") as scratch,
        Bar(title, total, in_bytes=True) as bar,
        ThreadPoolExecutor(1) as pool,
    ):
        env = {**(options.pop("env", None) or {}), "TMPDIR": scratch}
        running = pool.submit(core.run, command, env=env, **options)
        while not wait([running], timeout=LOOK_EVERY).done:
            bar.at(_size(folder) + _size(Path(scratch)))
        return running.result()


def _size(folder: Path) -> int:
    size = 0
    # `os.walk` skips a folder that disappears meanwhile. `rglob` does not.
    for base, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += (Path(base) / name).stat().st_size
    return size


def follow(
    command: Sequence[str], tell: Callable[[str], None], *, timeout: float, env: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run a command at the root, and report each line of its outputs as it comes. Return its code and all
    output.

    Raises:
        core.Failure: it took longer than `timeout` seconds.
    """
    said: list[str] = []
    late = threading.Event()
    with subprocess.Popen(
        command,
        cwd=core.ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout, end)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                tell(line)
        except BaseException:
            process.terminate()
            raise
        finally:
            timer.cancel()
    if late.is_set():
        raise core.Failure(f"'{' '.join(command)}' did not end within {timeout:.0f} s.")
    return process.returncode, "".join(said)
