"""Put the clock into a copy of an app, which changes only where its ServerApp is found."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dev.benchmarks import clock

ENTRY, CLOCK = "bench_entry", "bench_clock"
"""The modules that are added to the app's own."""

SERVERAPP = re.compile(r'^serverapp = "([\w.]+):(\w+)"$', re.MULTILINE)


@dataclass(frozen=True)
class Rounds:
    """Starts of a run's rounds, and the end of the last one: Unix time in seconds."""

    begins: list[float]
    end: float

    @property
    def each(self) -> list[float]:
        """Seconds of each round."""
        ends = [*self.begins[1:], self.end]
        return [end - begin for begin, end in zip(self.begins, ends, strict=True)]

    @property
    def whole(self) -> float:
        """Seconds from the first round's start to the last one's end."""
        return self.end - self.begins[0]


class NoRounds(Exception):
    """The clock has not seen a whole run. The text says what is missing."""


def timed_copy(app: Path, folder: Path) -> Path:
    """Copy a Flower app to `folder`, with the clock in it, and return `folder`."""
    shutil.copytree(app, folder, ignore=shutil.ignore_patterns("__pycache__"))
    project = folder / "pyproject.toml"
    text = project.read_text()
    found = SERVERAPP.search(text)
    if found is None:
        raise ValueError(f'{app}/pyproject.toml: expected a line serverapp = "module:attribute", found none')
    project.write_text(text.replace(found[0], f'serverapp = "{ENTRY}:app"'))
    shutil.copyfile(clock.__file__, folder / f"{CLOCK}.py")
    (folder / f"{ENTRY}.py").write_text(
        f'"""The ServerApp of the app itself, with a clock."""\n\nfrom {CLOCK} import start\n'
        f"from {found[1]} import {found[2]} as original\n\nstart()\n"
        # Flower looks for an assignment before it runs anything.
        "app = original\n"
    )
    return folder


def read_rounds(folder: Path, rounds: int) -> Rounds:
    """Find the clock's file anywhere below `folder`.

    Raises:
        NoRounds: not all of `rounds` began, or the last one did not end.
    """
    files = sorted(folder.rglob(clock.FILE))
    if len(files) != 1:
        raise NoRounds(f"expected one {clock.FILE} below {folder}, found {len(files)}: no round began")
    entries = [json.loads(line) for line in files[0].read_text().splitlines()]
    begins = [float(entry["t"]) for entry in entries if entry["round"] is not None]
    ends = [float(entry["t"]) for entry in entries if entry["round"] is None]
    if len(begins) != rounds or not ends:
        how = "the last one ended" if ends else "the last one did not end"
        raise NoRounds(f"expected {rounds} rounds, found {len(begins)}, and {how}")
    return Rounds(begins, ends[0])
