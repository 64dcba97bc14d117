"""A Flower App Bundle (FAB): the one file that an app travels in, identified by its hash.

Flower builds the same FAB from the same files, byte for byte, and identifies it by its SHA-256 (flwr 1.34 to
1.43 `cli/build.py`). A job carries an app in this form, so nothing in it can be imported in place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.common import app as apps
from bridge.common.app import FAB_LIMIT, LEFT_OUT, BadApp, check_code
from bridge.common.bundle import NAME, NO_ZIP, UNPACKED_LIMIT, files, imports, opened
from bridge.common.text import one_line

__all__ = ["NAME", "NO_ZIP", "UNPACKED_LIMIT", "build", "files", "imports", "read", "sha256"]

PYPROJECT_LIMIT = 256 * 1024
"""Bytes of an app's pyproject.toml. FLARE's server reads that of every job. A longer one of nested lists
would take its memory and its time."""


TEXT_LIMIT = 200
"""Characters of an app's name and version that are kept."""


def build(app: Path) -> bytes:
    """Return the app in this folder as a FAB.

    Raises:
        BadApp: Flower cannot build it.
    """
    # Imported here, since FLARE's long-lived processes look at FABs and build none.
    from flwr.cli.build import build_fab_from_disk

    try:
        content: bytes = build_fab_from_disk(app)
    except Exception as error:
        raise BadApp(f"the app cannot be built: {error}") from error
    if wrong := [name for name, found in files(content).items() if found == LEFT_OUT]:
        raise BadApp(
            f"the app cannot be built: this Flower bundles {', '.join(wrong)}, which Flowerbed did not "
            "send, because Flower usually leaves it out. Remove patterns that match it from fab-include and "
            "fab-exclude."
        )
    return content


def check(config: Mapping[str, Any]) -> None:
    """Check that Flower accepts an app's pyproject.toml: name, configuration, format. Files are not looked
    at, as `build` does.

    Raises:
        BadApp: Flower does not, with Flower's words.
    """
    from flwr.cli.utils import validate_project_name
    from flwr.common.config import validate_config

    try:
        validate_project_name(str(config["project"]["name"]).strip(), "The Flower App [project].name")
        sound, errors, _ = validate_config(dict(config), check_module=False)
    except ValueError as error:
        raise BadApp(f"the app cannot be built: {error}") from None
    if not sound:
        lines = "".join(f"\n- {line}" for line in errors)
        raise BadApp(f"the app cannot be built: Invalid Flower App configuration:{lines}")


def sha256(content: bytes) -> str:
    """Return the hash that Flower, and a site's `allowed_apps`, identify a FAB by."""
    return hashlib.sha256(content).hexdigest()


def bundled(app: Path) -> bytes:
    """Return the FAB of an app whose modules are where it says: of a folder, or of a file that is one.

    Raises:
        BadApp: Flower cannot build it, or it is none.
    """
    if app.is_file():
        content = app.read_bytes()
        if len(content) > FAB_LIMIT:
            raise BadApp(f"{NAME} has {len(content)} bytes: expected at most {FAB_LIMIT}")
        check_code(read(content), files(content))
        return content
    content = build(app)
    check_code(apps.read_app(app), files(content), f"{app}/")
    return content


def config(app: Path) -> dict[str, Any]:
    """Return the pyproject.toml of an app in a folder, or in a file that is a FAB.

    Raises:
        BadApp: as `app.read_app` does.
    """
    return read(app.read_bytes()) if app.is_file() else apps.read_app(app)


def identity(content: bytes) -> dict[str, str]:
    """Return by what Flower shows the app in a FAB: `id` (publisher/name), `version`, and its `hash`.

    Raises:
        BadApp: it is none.
    """
    found = read(content)
    publisher, project = found["tool"]["flwr"]["app"]["publisher"], found["project"]
    texts = {"id": f"{publisher.strip()}/{project['name'].strip()}", "version": project["version"].strip()}
    return {key: one_line(text, TEXT_LIMIT) for key, text in texts.items()} | {"hash": sha256(content)}


def read(content: bytes) -> dict[str, Any]:
    """Return the pyproject.toml of the app in a FAB as a dict. Raises `BadApp` as `app.read_app` does."""
    with opened(content) as archive:
        try:
            entry = archive.getinfo("pyproject.toml")
        except KeyError:
            raise BadApp(f"{NAME} has no pyproject.toml") from None
        if entry.file_size > PYPROJECT_LIMIT:
            raise BadApp(f"{NAME}: pyproject.toml has more than {PYPROJECT_LIMIT} bytes")
        return apps.parse(archive.open(entry).read(PYPROJECT_LIMIT))
