"""What the pages name exists: the tests of docs/security.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()

TEST = re.compile(r"`((?:attacks|faults|integration|unit)/test_\w+\.py)(?:::(\w+))?`")
NAMED = sorted(set(TEST.findall(PAGE)))

ROW = re.compile(r"^\| .* \|$", re.MULTILINE)


def test_the_page_names_tests() -> None:
    assert len(NAMED) > 30
    others = re.findall(r"`(?!tests/)(?:[\w/]*/)?test_\w+\.py", TEST.sub("", PAGE))
    assert not others, "a test in another form than file::name"


@pytest.mark.parametrize(("file", "name"), NAMED, ids=["::".join(found) for found in NAMED])
def test_each_test_of_the_security_page_is_there(file: str, name: str) -> None:
    path = ROOT / "tests" / file
    assert path.is_file()
    assert not name or re.search(rf"^(async )?def {name}\(", path.read_text(), re.MULTILINE)


def test_every_attack_names_a_test() -> None:
    """Each row of a table that has a column for it."""
    for table in re.findall(r"^\| attack[^\n]*\| test \|\n\|[-|]+\|\n((?:\|[^\n]*\n)+)", PAGE, re.MULTILINE):
        for row in table.splitlines():
            assert TEST.search(row.rsplit("|", 2)[1]), row
