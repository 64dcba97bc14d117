"""Text from sites on its way to a terminal, lines in logs, events that are read back."""

from __future__ import annotations

import json
import logging
import sys
import unicodedata
from pathlib import Path

import pytest

from bridge.common import events
from bridge.common.log_limit import LogLimit
from bridge.common.text import one_line, shown


def test_whatever_a_terminal_acts_on_is_shown_as_its_code() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        kind = unicodedata.category(character)
        if kind in ("Cc", "Cf", "Zl", "Zp", "Cs") and character not in "\n\t":
            assert shown(character) != character, hex(number)
        elif kind != "Cn":  # Another Unicode may have one there.
            assert shown(character) == character, hex(number)


def test_text_is_shown() -> None:
    assert shown("a\x1b[2K\rb\n\tc \u202eé\U000e0041") == "a\\x1b[2K\\x0db\n\tc \\u202eé\\U000e0041"
    assert shown("") == "" and shown("Genauigkeit → 0,9") == "Genauigkeit → 0,9"


def test_one_line_is_one_and_short() -> None:
    assert one_line("a\nb\tc", 20) == "a\\nb\\tc"
    assert one_line("\x1b" * 100, 10) == "\\x1b\\x1b\\…"
    assert [len(one_line("x" * n, 10)) for n in (9, 10, 11, 10**6)] == [9, 10, 10, 10]


def test_a_site_causes_so_many_lines(caplog: pytest.LogCaptureFixture) -> None:
    told = LogLimit(most=3)
    for site in ("a", "b"):
        for number in range(10):
            told.warn(logging.getLogger("x"), site, "%s: %d", site, number)
    said = [record.getMessage() for record in caplog.records]
    last = " (line 3 of this kind from this site, further ones are not logged)"
    assert said == [f"{site}: {n}{last if n == 2 else ''}" for site in "ab" for n in range(3)]
    assert told.counts == {"a": 10, "b": 10}


ROUND = {"event": "round", "round": 1, "of": None, "t": 1.5}
REPLY = {"event": "reply", "round": 1, "site": "s", "kind": "train", "num_examples": 3, "metrics": {"a": 1}}
REPLY |= {"error": "", "t": 2.5}
END = {"event": "run ended", "reason": "", "t": 3.5}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[1]",
        "null",
        '"round"',
        json.dumps(END)[:-4],
        "\x00\x00\x00",
        "[" * 100_000,
        json.dumps({**ROUND, "round": "1"}),
        json.dumps({**ROUND, "round": 10**400}) if sys.get_int_max_str_digits() == 0 else "9" * 5000,
        json.dumps({**ROUND, "t": "now"}),
        json.dumps({"event": "round", "round": 1}),
        json.dumps({**REPLY, "site": None}),
        json.dumps({**REPLY, "kind": ["train"]}),
        json.dumps({**REPLY, "metrics": {"a": "x"}}),
        json.dumps({**REPLY, "metrics": [1]}),
        json.dumps({**REPLY, "num_examples": "many"}),
        json.dumps({"event": "tracked", "points": 3}),
        json.dumps({"event": "run ended", "reason": 3}),
        json.dumps({"event": 3}),
        json.dumps({**REPLY, "error": "e" * events.LINE_LIMIT}),
    ],
    ids=lambda line: line[:40],
)
def test_a_malformed_event_loses_only_its_line(line: str, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    good = [ROUND, REPLY, END]
    file.write_text("\n".join([json.dumps(ROUND), line, json.dumps(REPLY), json.dumps(END), line]))
    assert list(events.read(file)) == good


def test_bytes_that_are_neither_text_nor_a_file(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    assert list(events.read(file)) == []
    file.write_bytes(b"\xff\xfe\n" + json.dumps(END).encode() + b"\n\xc3")
    assert list(events.read(file)) == [END]
