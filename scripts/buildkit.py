"""Read BuildKit's plain progress: find the step that has begun, and why a build failed."""

from __future__ import annotations

import re

from scripts import core, progress

STEP = re.compile(r"#\d+ \[(?:(?P<stage>[\w-]+) +)?(?P<number>\d+)/(?P<of>\d+)\] (?P<what>.*)")
"""A line that begins or continues a step."""
OPTIONS = re.compile(r"--[a-z]+=\S+ +")
"""A step's options, which are long and say less than the command after them."""
NEXT, SHELL = re.compile(r"\s*(?:;|&&)\s*"), re.compile(r"set -|(if|then|for|do) |fi$")
"""The separators of a script's commands, and commands that say nothing alone."""


class Steps:
    """Show the steps of a build as they begin: on a bar, or as a line for each that is not cached."""

    def __init__(self, bar: progress.Bar) -> None:
        """Create the reader."""
        self._bar = bar
        self._stages: dict[str, tuple[int, int]] = {}
        self._begun: dict[str, str] = {}
        self._shown: set[str] = set()
        self._done = self._total = 0

    def tell(self, line: str) -> None:
        """Process the next line."""
        key, *said = line.split() or [""]
        if step := STEP.match(line):
            self._stages[step["stage"] or ""] = int(step["number"]), int(step["of"])
            done, total = map(sum, zip(*self._stages.values(), strict=True))
            # Stages appear one by one and take turns. Never go back below what was shown.
            self._done, self._total = max(done, self._done), max(total, self._total)
            self._begun[key] = short(step["what"])
            if progress.at_terminal():
                self._bar.at(self._done, self._begun[key], self._total)
        elif key in self._begun and not line.startswith(f"{key} sha256:"):
            what = self._begun.pop(key)
            is_work = said != ["CACHED"] and not what.startswith("FROM ")
            if is_work and key not in self._shown and not progress.at_terminal():
                self._shown.add(key)
                core.say(f"  {what}")


def short(what: str) -> str:
    """Return a step without its options, and of a script only the first command."""
    words = OPTIONS.sub("", what).split()
    commands = [part for part in NEXT.split(" ".join(words[1:])) if not SHELL.match(part)]
    return " ".join([*words[:1], *commands[:1]])


def failure(said: str) -> str:
    """Return the end of a failed build's output: the failed step, its output, and the result."""
    found = re.search(r"^(#\d+) ERROR:? (.*)$", said, re.MULTILINE)
    if not found:
        return said
    lines = [line for line in said.splitlines() if line.startswith(f"{found[1]} ")]
    steps = [step["what"] for step in map(STEP.match, lines) if step]
    # The text after the seconds since its start.
    printed = [line[1] for line in (re.match(r"#\d+ \d+\.\d+ (.*)", line) for line in lines) if line]
    # BuildKit reports a failed command as the whole script once more, with its exit code.
    code = re.search(r"exit code: \d+$", found[2])
    return "\n".join([*map(short, steps[:1]), *printed, code[0] if code else found[2]])
