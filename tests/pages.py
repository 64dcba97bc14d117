"""Code blocks of the tutorial and of the how-to pages, and how they are run.

`python -m tests.pages` lists the pages with the number of blocks of each sort.

A fenced block is one of these:
- `console`: commands after `$ `, below each what it prints. A line `...` stands for any lines. A line that
  ends in ` ...` stands for all that begin so. Ids, times, dates and sizes may differ.
- Any language with `title="FILE"`: the file's content. Of `project.yml` it is a part, which is merged.
- `text`: something to look at.
- A block below `<!-- not run: REASON -->`, or below `<!-- run by FILE -->`, which names a test.
`<!-- blocks run by FILE -->` at the top of a page speaks for all of its blocks.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dev import scratch_federation
from scripts.core import ROOT

FOLDERS = ("docs/tutorial", "docs/how-to")

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?(?P<rest>.*)$")
MARK = re.compile(r"^ *<!-- (?P<sort>not run|run by):? (?P<text>.+) -->$")
PAGE_MARK = re.compile(r"^<!-- blocks run by (?P<text>.+) -->$", re.MULTILINE)

COMMAND_TIMEOUT = 300.0
"""Seconds for one command."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    run_by: str = ""
    """The tests that run it, if others do."""
    not_run: str = ""
    """Why nothing can run it here."""

    @property
    def place(self) -> str:
        """Its page and line, for users."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def sort(self) -> str:
        """How it is treated."""
        if self.not_run:
            return "not run"
        if self.run_by:
            return "run by another test"
        if self.title:
            return "file"
        return {"console": "run", "text": "text"}.get(self.language, "unknown")


def pages() -> list[Path]:
    """The pages with code that is run."""
    return sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    whole = PAGE_MARK.search(text)
    lines, number = text.splitlines(), 0
    mark: re.Match[str] | None = None
    while number < len(lines):
        line = lines[number]
        number += 1
        fence = FENCE.match(line)
        if fence is None:
            mark = MARK.match(line) or (mark if not line.strip() else None)
            continue
        assert not fence["rest"], f"{page.name}:{number}: unknown words in {line!r}"
        first, indent = number, len(fence["indent"])
        while lines[number].strip() != "```":
            number += 1
        content = "".join(f"{inside[indent:]}\n" for inside in lines[first:number])
        number += 1
        run_by = mark["text"] if mark and mark["sort"] == "run by" else whole["text"] if whole else ""
        not_run = mark["text"] if mark and mark["sort"] == "not run" else ""
        yield Block(page, first, fence["language"], fence["title"] or "", content, run_by, not_run)
        mark = None


@dataclass(frozen=True)
class Command:
    """One command of a console block, and the lines that the page shows below it."""

    words: str
    shown: list[str]


def commands(block: Block) -> list[Command]:
    """A console block's commands, in order; a backslash at a line's end goes on with the next line."""
    found: list[Command] = []
    open_ended = False
    for line in block.text.splitlines():
        if open_ended:
            found[-1] = Command(f"{found[-1].words}\n{line.removeprefix('> ')}", [])
        elif line.startswith("$ "):
            found.append(Command(line[2:], []))
        else:
            assert found, f"{block.place}: output before the first command"
            found[-1].shown.append(line)
            continue
        open_ended = line.endswith("\\")
    return found


PATTERNS = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "ID"),
    (re.compile(r"\b(?=[a-f]*\d)[0-9a-f]{8,64}\b"), "ID"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\b"), "DATE"),
    (re.compile(r"\b\d+:\d\d:\d\d\b"), "TIME"),
    (re.compile(r"\b\d+(\.\d+)? (s|days|B|KB|MB|GB)\b"), r"N \2"),
    (re.compile(r"\bprod_\d\d\b"), "prod_NN"),
    (re.compile(r"\s+"), " "),
)
"""What differs from run to run, and what stands for it."""


def plain(line: str, project: str = "flowerbed") -> str:
    """A line without what differs from run to run, and with the project's own name."""
    line = line.replace(project, "flowerbed")
    for pattern, instead in PATTERNS:
        line = pattern.sub(instead, line)
    return line.strip()


def missing(shown: list[str], printed: str, project: str = "flowerbed") -> list[str]:
    """The lines that a page shows, but a command did not print. Replies of sites come in any order."""
    there = Counter(plain(line, project) for line in printed.splitlines())
    lacking = []
    for line in shown:
        if not line.strip() or line.strip() == "...":
            continue
        if line.endswith(" ..."):
            begin = plain(line.removesuffix(" ..."))
            found = next((candidate for candidate in there if candidate.startswith(begin)), None)
        else:
            found = plain(line)
        if found is None or not there[found]:
            lacking.append(line)
        else:
            there[found] -= 1
    return lacking


class Runner:
    """Runs pages in the folder of a federation, one after the other."""

    def __init__(self, root: Path, project: str) -> None:
        self.root, self.project = root, project
        self.job = "JOB_ID"
        self.counts: Counter[str] = Counter()

    def run(self, page: Path) -> None:
        """Run what a page asks for."""
        for block in blocks(page):
            self.counts[block.sort] += 1
            if block.sort == "file":
                self._write(block)
            elif block.sort == "run":
                for command in commands(block):
                    self._command(block, command)

    def _write(self, block: Block) -> None:
        file = self.root / block.title
        if block.title == "project.yml":
            scratch_federation.edit(file, lambda project: merge(project, yaml.safe_load(block.text)))
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text)

    def _command(self, block: Block, command: Command) -> None:
        words = command.words.replace("JOB_ID", self.job)
        # The checkout's launcher would make an environment first: it is the one that runs the tests.
        words = words.replace("./flowerbed ", f"{sys.executable} -P -m scripts ")
        process = subprocess.run(
            ["bash", "-c", words],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
        said = process.stdout
        assert process.returncode == 0, f"{block.place}: $ {command.words}\n{said[-3000:]}"
        lacking = missing(command.shown, said, self.project)
        assert not lacking, f"{block.place}: $ {command.words}\ndid not print {lacking} but:\n{said[-3000:]}"
        if submitted := re.search(r"\bjob ([0-9a-f]{8}-[0-9a-f-]{27})", said):
            self.job = submitted[1]


def merge(project: scratch_federation.Project, part: Any) -> None:
    """Put a part of project.yml into it: participants by name, or keys at the top."""
    if isinstance(part, dict):
        project.update(part)
        return
    for entry in part:
        known = [one for one in project["participants"] if one["name"] == entry["name"]]
        if known:
            known[0].update(entry)
        else:
            project["participants"].append(entry)


def table() -> str:
    """How many blocks of each sort the pages have."""
    sorts = {page: Counter(block.sort for block in blocks(page)) for page in pages()}
    rows = [f"{page.relative_to(ROOT)!s:40} " + told(counts) for page, counts in sorts.items()]
    return "\n".join([*rows, f"{'all':40} " + told(sum(sorts.values(), Counter()))])


def told(counts: Counter[str]) -> str:
    """Numbers of blocks, for users."""
    return ", ".join(f"{number} {sort}" for sort, number in sorted(counts.items())) or "no blocks"


if __name__ == "__main__":
    print(table())
