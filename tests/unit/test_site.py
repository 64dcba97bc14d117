"""The documentation as a site: MkDocs builds it without a warning about a link, an anchor or a lost page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.core import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    process = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 0, process.stderr
    return folder


def test_every_page_is_in_the_site_and_in_its_search(site: Path) -> None:
    found = {entry["location"].partition("#")[0] for entry in search_index(site)}
    for page in (ROOT / "docs").rglob("*.md"):
        place = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        place = place.removesuffix("README").removesuffix("/")
        assert (site / place / "index.html").is_file()
        assert f"{place}/" in found
    home = (site / "index.html").read_text()
    assert (ROOT / "README.md").read_text().splitlines()[0].removeprefix("# ") in home
    assert "" in found


def test_links_at_the_root_of_the_checkout_lead_to_pages_of_the_site(site: Path) -> None:
    links = re.findall(r'href="([^"#:]+)', (site / "index.html").read_text())
    assert "architecture/" in links and "contributing/" in links
    for page in site.rglob("*.html"):
        targets = re.findall(r'href="([^"]+\.md)(?:#[^"]*)?"', page.read_text())
        assert not targets, page.relative_to(site)


def test_no_page_asks_another_host_for_anything(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link[^>]* href="([^"]+)"', page.read_text()
        )
        others = [address for pair in loaded for address in pair if re.match(r"[a-z]+:|//", address)]
        assert not others, page.relative_to(site)


def search_index(site: Path) -> list[dict[str, str]]:
    """What its search finds."""
    index: list[dict[str, str]] = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    return index
