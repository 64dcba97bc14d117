"""Hooks for MkDocs: put the pages at the root of the checkout into the site, and lead links there.

GitHub and the site show the same files. On GitHub a link may lead anywhere in the checkout. The site has only
pages, so a link to source code leads to `repo_url` if mkdocs.yml has one, and is plain text if not.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

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
    """Expand `FOLDER/*` in the navigation: all pages of the folder, in the order of its README."""
    docs = Path(config.docs_dir)
    for part in config.nav or ():
        for title, entries in part.items():
            if isinstance(entries, list):
                part[title] = [page for entry in entries for page in expand(entry, docs)]


def expand(entry: str | dict[str, str], docs: Path) -> list[str | dict[str, str]]:
    """Pages of a folder if the entry names one, else the entry."""
    if not isinstance(entry, str) or not entry.endswith("/*"):
        return [entry]
    folder = docs / entry.removesuffix("/*")
    listed = re.findall(r"(?m)^[-|] .*?\]\(([\w-]+\.md)", (folder / "README.md").read_text())
    pages = dict.fromkeys(["README.md", *listed, *sorted(path.name for path in folder.glob("*.md"))])
    names = [name for name in pages if (folder / name).is_file()]
    return [f"{folder.relative_to(docs)}/{name}" for name in names]


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
