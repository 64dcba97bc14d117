"""The root `.env`, which Compose reads by itself: each writer touches only its own keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def read(path: Path) -> dict[str, str]:
    """Return the file's keys and values; empty when there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def write(path: Path, values: Mapping[str, str]) -> None:
    """Set keys in the file, keeping every other line as it is; the file is replaced in one step."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.partition("=")[0].strip() not in values]
    text = "".join(f"{line}\n" for line in [*kept, *(f"{key}={value}" for key, value in values.items())])
    if path.exists() and path.read_text() == text:
        return
    draft = path.with_name(path.name + ".new")
    draft.write_text(text)
    draft.replace(path)
