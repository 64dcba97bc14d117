"""Fill the tables of `docs/reference/` from the code, so that they cannot go stale.

  python -m dev.reference            write them
A page says where each table goes, by a comment before and after it. `tests/unit/test_reference.py` compares.
"""

from __future__ import annotations

import re
from pathlib import Path

from dev.reference import job, project, settings, verbs

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/reference/*.md"))

PLACE = re.compile(r"(<!-- (\w+): ([\w -]+?) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
"""Where something of a kind goes: `<!-- verb: submit -->`, and after it `<!-- end of verb -->`."""

KINDS = {
    "verb": verbs.section,
    "json": verbs.json_of,
    "options": job.options,
    "recipe": job.recipe,
    "keys": project.keys,
    "settings": settings.table,
    "container": settings.container,
}
"""What fills each kind of place, given the name that stands there."""


def filled(page: str) -> str:
    """Return a page with its tables as they should be."""
    return PLACE.sub(lambda place: place[1] + KINDS[place[2]](place[3]) + place[4], page)


def places(kind: str) -> list[str]:
    """Return the names for which some page has a place, in the pages' order."""
    texts = ((ROOT / page).read_text() for page in PAGES)
    return [place[3] for text in texts for place in PLACE.finditer(text) if place[2] == kind]


def write() -> None:
    """Write the tables into the pages of this checkout."""
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text()))
