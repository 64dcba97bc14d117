"""The code blocks of the tutorial and of the how-to pages, run as they stand there (`tests/pages.py`)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.core import ROOT
from tests import pages
from tests.federation import PROJECT, Federation

TUTORIAL = [
    ROOT / "docs" / "tutorial" / f"{name}.md"
    for name in ("README", "write-an-app", "run-it", "add-a-site", "next")
]
"""In its order: each page goes on where the one before it ended."""
HOW_TO = [
    page
    for page in pages.pages()
    if page not in TUTORIAL and {"run", "file"} & {block.sort for block in pages.blocks(page)}
]
"""Those with something that no other test runs."""

pytestmark = pytest.mark.grows


@pytest.fixture(scope="module")
def runner(federation: Federation) -> Iterator[pages.Runner]:
    """Runs pages in the shared federation, and removes the folders that they made."""
    made = [federation.root / name for name in ("energy", "my-app")]
    shutil.copytree(ROOT / "tests/apps/numpy-add", federation.root / "my-app")
    project = federation.root / "my-app" / "pyproject.toml"
    project.write_text(project.read_text().replace('"numpy-add"', '"my-app"'))
    yield pages.Runner(federation.root, PROJECT)
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_tutorial(runner: pages.Runner, federation: Federation) -> None:
    print(pages.table())
    for page in TUTORIAL:
        runner.run(page)
    assert federation.sites == ["site-1", "site-2", "site-3"]


@pytest.mark.parametrize("page", HOW_TO, ids=[page.stem for page in HOW_TO])
def test_a_how_to_page(runner: pages.Runner, page: Path) -> None:
    runner.run(page)
