"""Verbs in copies of a process, as the slow tests use them, do the same as in new interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from scripts.core import ROOT
from tests.forked_verbs import ForkedVerbs


@pytest.fixture(scope="module")
def verbs() -> Iterator[ForkedVerbs]:
    made = ForkedVerbs(ROOT)
    yield made
    made.close()


@pytest.mark.parametrize(
    "words",
    [("--version",), ("nonsense",), ("submit", "nowhere", "--format", "json")],
    ids=lambda words: words[0],
)
def test_a_copy_says_and_returns_what_a_new_interpreter_does(
    verbs: ForkedVerbs, words: tuple[str, ...]
) -> None:
    command = [sys.executable, "-P", "-m", "scripts", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    new = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    copied = verbs.run(words, 60)
    assert (copied.returncode, copied.stdout, copied.stderr) == (new.returncode, new.stdout, new.stderr)


def test_a_copy_that_takes_too_long_is_given_up(verbs: ForkedVerbs) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        verbs.run(["--version"], 0)
    assert verbs.run(["--version"], 60).returncode == 0


def test_another_environment_needs_another_server(
    verbs: ForkedVerbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verbs.fits({})
    monkeypatch.setenv("FLOWERBED_BIND", "0.0.0.0")
    assert not verbs.fits({})
