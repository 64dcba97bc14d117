"""Hooks for MkDocs: put the pages at the root of the checkout into the site, and lead links there.

GitHub and the site show the same files. On GitHub a link may lead anywhere in the checkout. The site has only
pages, so a link to source code leads to `repo_url` if mkdocs.yml has one, and is plain text if not.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    # Not security.md, which is a page already.
    "SECURITY.md": "reporting.md",
}
"""Pages at the root of the checkout, and their names in the site."""

LINK = re.compile(r"(\[[^\]\[]*(?:\[[^\]]*\][^\]\[]*)*\])\(([^)\s]+)\)")
OTHER_HOST = re.compile(r"[a-z]+:")


def on_config(config: MkDocsConfig) -> None:
    """Expand each `FOLDER/*` in the navigation."""
    config.nav = expand(config.nav, Path(config.docs_dir))


def expand(entry: Any, docs: Path) -> Any:
    """Replace each `FOLDER/*` by the pages of that folder, in the order in which its index lists them.

    The index is the folder's README.md, or the page beside the folder that has its name.
    """
    if isinstance(entry, dict):
        return {title: expand(below, docs) for title, below in entry.items()}
    if isinstance(entry, list):
        return [page for below in entry for page in as_list(expand(below, docs))]
    if not entry.endswith("/*"):
        return entry
    folder = docs / entry.removesuffix("/*")
    index = next(page for page in (folder / "README.md", folder.with_suffix(".md")) if page.is_file())
    listed = re.findall(rf"(?m)^[-|] .*?\]\((?:{folder.name}/)?([\w-]+\.md)", index.read_text())
    # Pages that begin with a date hold history.
    others = sorted(page.name for page in folder.glob("*.md"))
    names = dict.fromkeys(name for name in [*listed, *others] if not name[0].isdigit())
    pages = dict.fromkeys([index, *(folder / name for name in names if (folder / name).is_file())])
    return [page.relative_to(docs).as_posix() for page in pages]


def as_list(found: Any) -> list[Any]:
    """Pages of a folder, or one entry."""
    return found if isinstance(found, list) else [found]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages."""
    for source, place in ROOT_PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead each relative link of a page to its place in the site."""
    place = page.file.src_uri
    if place == "index.md":
        # It is alone in its part of the navigation.
        page.meta["hide"] = ["navigation"]
    source = next((ROOT / name for name, site in ROOT_PAGES.items() if site == place), None)
    source = source or Path(config.docs_dir) / place

    def lead(found: re.Match[str]) -> str:
        text, target = found.groups()
        path, hash_sign, anchor = target.partition("#")
        if not path or OTHER_HOST.match(target):
            return found.group()
        there = in_site(Path(os.path.normpath(source.parent / path)), Path(config.docs_dir))
        if isinstance(there, str):
            relative = os.path.relpath(there, os.path.dirname(place))  # noqa: PTH120
            return f"{text}({relative}{hash_sign}{anchor})"
        if not config.repo_url:
            return text[1:-1]
        return f"{text}({config.repo_url.rstrip('/')}/blob/main/{there.relative_to(ROOT)})"

    return LINK.sub(lead, markdown)


def in_site(path: Path, docs: Path) -> str | Path:
    """The place in the site of a file of the checkout, or its path if the site lacks it."""
    if path.is_relative_to(docs):
        return path.relative_to(docs).as_posix()
    if path.parent == ROOT and path.name in ROOT_PAGES:
        return ROOT_PAGES[path.name]
    return path
