"""Count which of the apps in Flower's own repository get an environment here, and write the table into
`docs/reference/apps.md`.

  python -m dev.flower_apps FOLDER    a clean checkout of github.com/flwrlabs/flower

uv resolves each app, and installs nothing: about two seconds an app. If the indexes have only torch's CUDA
build for an app, it is resolved as in `build --gpu`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts import app as apps
from scripts import core, engine, environments, resolution, source_builds
from scripts.locks import Resolved

PAGE = core.ROOT / "docs" / "reference" / "apps.md"
PLACE = re.compile(r"(<!-- Flower's apps -->\n).*?(<!-- end of Flower's apps -->)", re.DOTALL)

FOLDERS = ("examples", "baselines", "framework/e2e")
"""Folders of Flower's apps."""

NEEDS_CUDA = "would get the CUDA build"
"""The error of `resolution.resolve` when there is no CPU build of torch."""

LONGEST = 260
"""Characters of an app's error."""


@dataclass(frozen=True)
class Found:
    """The result for one app."""

    path: str
    resolved: Resolved | None = None
    stopped: str = ""
    """The reason why it was not resolved."""


def find(checkout: Path) -> list[Path]:
    """Return the folders of all apps with a ServerApp."""
    files = (file for folder in FOLDERS for file in (checkout / folder).rglob("pyproject.toml"))
    return sorted(file.parent for file in files if _has_server_app(file))


def resolve(folder: Path, checkout: Path) -> Found:
    """Resolve one app."""
    path = folder.relative_to(checkout).as_posix()
    source_builds.forget()
    try:
        app = apps.read(folder)
        try:
            return Found(path, resolution.resolve(app, sizes=True))
        except core.UsageError as error:
            if NEEDS_CUDA not in str(error):
                raise
            return Found(path, resolution.resolve(app, gpu=True, sizes=True))
    except core.UsageError as error:
        return Found(path, stopped=_first_line(str(error), folder))


def table(every: Sequence[Found]) -> str:
    """Return the part of the page with the table."""
    made = [(found, found.resolved) for found in every if found.resolved is not None]
    on_gpu = [found for found, resolved in made if resolved.gpu]
    lines = [
        f"Of {len(every)} apps with a ServerApp, {len(made)} resolve unedited. {len(on_gpu)} of them pin a "
        "torch that the indexes asked had",
        "only as CUDA build. For these the table shows that of `build --gpu`. Their CPU build comes from "
        "PyTorch's own index.",
        "",
        "| app | flwr | torch | packages | to fetch | without a wheel |",
        "|---|---|---|---|---|---|",
        *(_row(found.path, resolved) for found, resolved in made),
        "",
        "| app that does not resolve | what stops it |",
        "|---|---|",
        *(f"| `{found.path}` | {found.stopped} |" for found in every if found.resolved is None),
    ]
    return "".join(f"{line}\n" for line in lines)


def filled(page: str, every: Sequence[Found]) -> str:
    """Return the page with this table."""
    return PLACE.sub(lambda place: place[1] + table(every) + place[2], page)


def main(words: Sequence[str]) -> None:
    """Resolve all apps, and write the table into this checkout's page."""
    if len(words) != 1 or not (folders := find(Path(words[0]).resolve())):
        raise SystemExit(f"{__doc__}\nExpected such a checkout, found {' '.join(words) or 'nothing'}.")
    engine.ensure()
    environments.prepare()
    every = []
    for folder in folders:
        every.append(found := resolve(folder, Path(words[0]).resolve()))
        made = found.resolved
        core.say(f"  {found.path}: {found.stopped or (made and f'flwr {made.flwr}, {len(made.packages)}')}")
    PAGE.write_text(filled(PAGE.read_text(), every))
    core.say(table(every))


def _has_server_app(file: Path) -> bool:
    try:
        flower = tomllib.loads(file.read_text())["tool"]["flwr"]["app"]
        return "serverapp" in flower["components"]
    except (KeyError, ValueError, TypeError, OSError):
        return False


def _row(path: str, resolved: Resolved) -> str:
    versions = {package.name: package.version for package in resolved.packages}
    torch = versions.get("torch", "-") + (" CUDA" if resolved.gpu else "")
    built = ", ".join(package.name for package in resolved.packages if not package.is_wheel) or "-"
    cells = [f"`{path}`", resolved.flwr, torch, len(resolved.packages), core.in_words(resolved.size), built]
    return "".join(f"| {cell} " for cell in cells) + "|"


def _first_line(said: str, folder: Path) -> str:
    """Return the essence of an error: uv's line, if it is uv's."""
    _, _, of_uv = said.partition("uv says:\n")
    words = " ".join((of_uv or said).replace(f"{folder}/", "").replace("|", "\\|").split())
    words = words.removeprefix("error: No solution found when resolving dependencies cause: ")
    return words if len(words) <= LONGEST else f"{words[:LONGEST].rsplit(' ', 1)[0]} ..."


if __name__ == "__main__":
    main(sys.argv[1:])
