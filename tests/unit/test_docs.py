"""Names and links in the documentation lead to tests, files and pages that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SECURITY = [DOCS / "security.md", *sorted((DOCS / "security").glob("*.md"))]
SECURITY_TEXT = "\n".join(page.read_text() for page in SECURITY)

TEST = re.compile(r"`((?:attacks|faults|hosts|integration|processes|unit)/test_\w+\.py)(?:::(\w+))?`")
NAMED = sorted(set(TEST.findall(SECURITY_TEXT)))

ATTACKS = re.compile(r"^\| attack[^\n]*\| test \|\n\|[-|]+\|\n((?:\|[^\n]*\n)+)", re.MULTILINE)
ROWS = [row for table in ATTACKS.findall(SECURITY_TEXT) for row in table.splitlines()]


def test_the_security_pages_name_tests() -> None:
    assert len(NAMED) > 150
    others = re.findall(r"`(?!tests/)(?:[\w/]*/)?test_\w+\.py", TEST.sub("", SECURITY_TEXT))
    assert not others, "a test in another form than file::name"


@pytest.mark.parametrize(("file", "name"), NAMED, ids=["::".join(found) for found in NAMED])
def test_each_test_of_the_security_pages_is_there(file: str, name: str) -> None:
    path = ROOT / "tests" / file
    assert path.is_file()
    assert not name or re.search(rf"^(async )?def {name}\(", path.read_text(), re.MULTILINE)


def test_every_attack_names_its_defense_and_a_test() -> None:
    """Every row of an attack table names existing code, or the part of FLARE, and a test."""
    assert len(ROWS) >= 165, "a row is lost, or its table has another header"
    for row in ROWS:
        _attack, _outcome, where, test = row.strip("| ").split(" | ")
        assert TEST.search(test), row
        assert "FLARE" in where or "`" in where, row
        assert all((ROOT / path).exists() for path in re.findall(r"`([^`]+)`", where)), row


def test_every_table_with_tests_is_a_table_of_attacks() -> None:
    """Every row that ends with a test is in a table whose header the other tests know."""
    lines = [line for line in SECURITY_TEXT.splitlines() if re.search(r"\| `\w+/test_[^|]*\|$", line)]
    assert sorted(lines) == sorted(ROWS)


def test_the_security_page_leads_to_every_page_about_security() -> None:
    linked = {
        (page.parent / target).resolve()
        for page in (DOCS / "security.md", DOCS / "security" / "not-defended.md")
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
    }
    assert not [page.name for page in SECURITY[1:] if page.resolve() not in linked]


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(DOCS.rglob("*.md")),
]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        if not other.exists() or (anchor and other.suffix == ".md" and anchor not in anchors(other)):
            wrong.append(target)
    assert not wrong


def test_files_that_pages_name_exist() -> None:
    named = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(
            r"`((?:bridge|scripts|provisioning|dev|tests|images)/[\w/]+\.py)", page.read_text()
        )
    }
    assert not sorted(pair for pair in named if not (ROOT / pair[1]).is_file())
    walks = (ROOT / "docs" / "architecture" / "what-does-a-request-pass.md").read_text()
    files = re.findall(r"`((?:site|server|relay|job)/\w+\.py)", walks)
    assert len(files) > 8 and all((ROOT / "bridge" / name).is_file() for name in files)


PROSE = [page for page in (*PAGES, ROOT / "CHANGELOG.md") if not re.match(r"\d{4}-", page.name)]
"""All pages but dated ones, which stay as they were."""


def prose(page: Path) -> str:
    """The text of a page without code, headings, pictures and addresses."""
    text = re.sub(r"<!--.*?-->|^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(    .*|#+ .*|!\[.*)$", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "code", text))


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_sentences_are_short_and_have_no_semicolons(page: Path) -> None:
    text = prose(page)
    assert not re.findall(".*;.*", text)
    paragraphs = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
    sentences = re.split(r"(?<=[.!?:])\s|\n\s*\n|\n(?=\s*[-*]|\s*\d+\. )", paragraphs)
    counts = [len(sentence.split()) for sentence in sentences if sentence.strip()]
    assert sum(counts) <= 16 * len(counts), "the mean of words a sentence"
