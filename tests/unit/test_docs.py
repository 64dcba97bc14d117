"""The tests that docs/security.md names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()

TEST = re.compile(r"`((?:attacks|faults|integration|processes|unit)/test_\w+\.py)(?:::(\w+))?`")
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
    """This concerns each row of a table that has a column for tests."""
    for table in re.findall(r"^\| attack[^\n]*\| test \|\n\|[-|]+\|\n((?:\|[^\n]*\n)+)", PAGE, re.MULTILINE):
        for row in table.splitlines():
            assert TEST.search(row.rsplit("|", 2)[1]), row


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


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
