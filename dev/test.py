"""Install what the tests need and run them all: style, types, quick tests, then the slow ones.

  ./flowerbed test                  everything
  ./flowerbed test --quick          what needs no engine
  ./flowerbed test --faults         and all of tests/faults, not only the pick
  ./flowerbed test -k relay         only tests whose names say so, no style and types
  ./flowerbed test -- -x --lf       words for pytest after --
The slow tests come last, if all before them passed, in two workers. They start an engine where none runs,
and build and run separate federations: one that runs from this checkout is left alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Annotated, Any

import typer

from scripts import base_image, core, engine, wheelhouse
from scripts.json_object import JsonObject

REQUIREMENTS = core.ROOT / "requirements" / "test.txt"
INSTALLED = Path(sys.prefix) / "installed-test.txt"
"""A copy of the requirements that are installed."""
INSTALL_TIMEOUT = 1200.0
"""Seconds to download and install them (150 MB)."""
TYPED = ("src", "scripts", "provisioning", "bridge", "images", "dev", "tests")

QUICK_TIMEOUT, SLOW_TIMEOUT = 120, 600
"""Seconds for one test before it counts as hanging."""
QUICK, SLOW = "not containers and not processes", "(containers or processes)"
"""Tests by pytest's markers: those that need an engine, and those that start processes for minutes."""
QUICK_FOLDERS = ("unit",)
SLOW_FOLDERS = ("attacks", "faults", "hosts", "integration", "kinds", "processes", "versions")
"""Folders below `tests` with one kind of tests. The other kind's step would import them in each worker."""
IN_PARTS = ("-n", "2", "--dist", "loadscope", "--no-loadscope-reorder")
"""Options that divide the slow tests among two workers (`tests/conftest.py`)."""
END_WITHIN = 120.0
"""Seconds to end a federation that a test has left. It takes 10."""
NO_TESTS = 5
"""pytest's exit code when it found no tests."""


JSON = JsonObject(
    {
        "steps": "a list: style, types, quick tests, slow tests",
        "steps[].step": "its name",
        "steps[].exit_code": "of the tool that it ran",
        "steps[].seconds": "how long it took",
    }
)


def run(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="-- WORD...", help="Words for pytest, after --.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the slow tests.")] = False,
    faults: Annotated[
        bool,
        typer.Option("--faults", help="Run all tests of faults, not only a pick: about 20 minutes more."),
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            "-k", metavar="WORDS", help="Only tests that match, as pytest's -k. No style, no types."
        ),
    ] = None,
) -> dict[str, Any]:
    """Run what is asked for. Fails if any of it does."""
    install()
    session = Session(to_stderr=core.as_json)
    if not only:
        session.step("ruff check", ["ruff", "check", "."])
        session.step("ruff format", ["ruff", "format", "--check", "."])
        # A Flower app, even a test's, looks as its author would write it.
        session.begin("mypy", ["mypy", "--exclude", "^tests/apps/", *TYPED])
    chosen = [*(["-k", only] if only else []), *(words or ())]
    session.pytest(
        "quick tests", ["-m", QUICK, *without(SLOW_FOLDERS), f"--timeout={QUICK_TIMEOUT}", *chosen]
    )
    session.end_begun()
    session.end_if_failed()
    if not quick:
        # Get what the tests' own checkout shares with this one. It makes the rest.
        engine.ensure()
        base_image.ensure()
        wheelhouse.RUNTIME.fill(engine.ask().architecture)
        which = SLOW if faults else f"{SLOW} and (pick or not faults)"
        try:
            words_of_slow = [*without(QUICK_FOLDERS), *IN_PARTS, "-v", f"--timeout={SLOW_TIMEOUT}"]
            session.pytest("slow tests", ["-m", which, *words_of_slow, *chosen])
        finally:
            end_federations()
    session.end_if_failed()
    if not session.tests_ran:
        raise core.Failure("No test ran: none matches.", steps=session.steps)
    core.say("All passed.")
    return {"steps": session.steps}


def without(folders: Sequence[str]) -> list[str]:
    """Return pytest's options to leave out folders below `tests`."""
    return [f"--ignore=tests/{folder}" for folder in folders]


def install() -> None:
    """Install the tests' requirements into the environment, once."""
    if INSTALLED.is_file() and INSTALLED.read_bytes() == REQUIREMENTS.read_bytes():
        return
    core.say("installing what the tests need: once, about a minute")
    command = [*core.pip("install"), "--require-hashes", "--requirement", str(REQUIREMENTS)]
    core.must(core.run(command, timeout=INSTALL_TIMEOUT), "Installing requirements/test.txt")
    shutil.copyfile(REQUIREMENTS, INSTALLED)


def end_federations() -> None:
    """End federations of workers that were ended, as by Ctrl-C. Run from /, where Compose finds no file."""
    federations = os.environ.get("FLOWERBED_TEST_PROJECT", "flowerbedtest")
    compose, root = engine.compose(), Path("/")
    listing = [*compose, "ls", "--all", "--quiet", "--filter", f"name=^{federations}"]
    for name in core.run(listing, cwd=root, timeout=END_WITHIN).stdout.decode().split():
        down = ["--project-name", name, "down", "--volumes", "--remove-orphans"]
        core.run([*compose, *down], cwd=root, timeout=END_WITHIN)


class Session:
    """The steps of one run, and their results."""

    def __init__(self, *, to_stderr: bool) -> None:
        # With --format json, stdout is for the one object.
        self.output = sys.stderr if to_stderr else sys.stdout
        # Tests start hundreds of verbs and Flower processes. Without bytecode each compiles all its imports.
        self.env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self.steps: list[dict[str, Any]] = []
        self.tests_ran = False
        self.beside = ThreadPoolExecutor()
        self.begun: dict[str, Future[tuple[subprocess.CompletedProcess[str], float]]] = {}

    def step(self, name: str, words: list[str]) -> int:
        """Run a tool of the environment, show its output, and return its exit code."""
        core.say(f"\n== {name}")
        self.output.flush()
        return self._done(name, *self._run(words, stdout=self.output))

    def begin(self, name: str, words: list[str]) -> None:
        """Run a tool beside the next step. `end_begun` shows its output."""
        self.begun[name] = self.beside.submit(self._run, words, stdout=PIPE, stderr=STDOUT)

    def end_begun(self) -> None:
        """Wait for the tools beside the steps, and show the output of each."""
        for name, begun in self.begun.items():
            core.say(f"\n== {name}")
            process, seconds = begun.result()
            self.output.write(process.stdout)
            self.output.flush()
            self._done(name, process, seconds)
        self.begun.clear()

    def _run(self, words: list[str], **outputs: Any) -> tuple[subprocess.CompletedProcess[str], float]:
        """Return the finished process, and the seconds that it took."""
        start = time.monotonic()
        command = [sys.executable, "-m", *words]
        process = subprocess.run(
            command, cwd=core.ROOT, env=self.env, stdin=subprocess.DEVNULL, text=True, check=False, **outputs
        )
        return process, time.monotonic() - start

    def _done(self, name: str, process: subprocess.CompletedProcess[str], seconds: float) -> int:
        code = process.returncode
        self.steps.append({"step": name, "exit_code": code, "seconds": round(seconds, 1)})
        return code

    def pytest(self, name: str, words: list[str]) -> None:
        """Run tests. It is no failure of this step if none matches."""
        code = self.step(name, ["pytest", *words])
        self.tests_ran = self.tests_ran or code == 0
        if code == NO_TESTS:
            self.steps[-1]["exit_code"] = 0

    def end_if_failed(self) -> None:
        """Raise `core.Failure` if a step has failed."""
        failed = [step["step"] for step in self.steps if step["exit_code"]]
        if failed:
            raise core.Failure(f"Failed: {', '.join(failed)}.", steps=self.steps)
