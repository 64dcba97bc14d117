"""The steps of `./flowerbed test`, of which some run beside one another."""

from __future__ import annotations

import pytest

from dev import test as steps
from scripts.core import Failure


def test_what_runs_beside_is_shown_after_the_tests_and_its_failure_counts(
    capfd: pytest.CaptureFixture[str],
) -> None:
    session = steps.Session(to_stderr=True)
    session.begin("types", ["json.tool", "/nowhere.json"])
    session.pytest("tests", ["--version"])
    session.end_begun()
    said = capfd.readouterr().err
    places = [said.index(text) for text in ("== tests", "pytest 9", "== types", "/nowhere.json")]
    assert places == sorted(places), said
    assert [(step["step"], bool(step["exit_code"])) for step in session.steps] == [
        ("tests", False),
        ("types", True),
    ]
    with pytest.raises(Failure, match="Failed: types"):
        session.end_if_failed()
