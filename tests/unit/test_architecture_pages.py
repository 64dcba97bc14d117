"""The pages of `docs/architecture`: one question each, in the same form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "architecture"
OVERVIEW = FOLDER / "README.md"
QUESTIONS = sorted(set(FOLDER.glob("*.md")) - {OVERVIEW})
each = pytest.mark.parametrize("page", QUESTIONS, ids=lambda page: page.stem)


@each
def test_a_page_is_called_by_its_question(page: Path) -> None:
    title = page.read_text().partition("\n")[0]
    assert re.fullmatch(r"# (How|What|Where|Which|Who|Why) .*\?", title)
    assert page.stem.partition("-")[0] == title.split()[1].lower()


@each
def test_a_page_has_a_size_and_a_picture_or_code(page: Path) -> None:
    text = page.read_text()
    assert 300 <= len(text.split()) <= 650
    assert "![" in text or "```" in text or re.search(r"\n\n    \S", text)


@each
def test_a_page_ends_with_where_to_go(page: Path) -> None:
    last = " ".join(page.read_text().rstrip().rpartition("\n\n")[2].split())
    assert last.startswith("See also:") and last.endswith("[all questions](README.md).")


def test_the_overview_names_each_page_by_its_title() -> None:
    listed = dict(re.findall(r"^- \[(.*)\]\((.*)\)$", OVERVIEW.read_text(), re.MULTILINE))
    titles = {page.read_text().partition("\n")[0][2:]: page.name for page in QUESTIONS}
    assert listed == titles


def test_the_overview_says_where_each_file_of_the_bridge_runs() -> None:
    bridge = FOLDER.parents[1] / "bridge"
    named = set(re.findall(r"`([a-z_]+(?:/|\.py))", OVERVIEW.read_text()))
    there = {f"{path.name}/" for path in [*bridge.iterdir(), *(bridge / "flare").iterdir()] if path.is_dir()}
    there |= {path.name for path in (bridge / "flare").glob("[a-z]*.py")}
    assert not there - named - {"__pycache__/"}


@each
def test_prose_has_no_semicolon(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    assert ";" not in prose
