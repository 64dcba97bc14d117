"""Tables of settings (`scripts/settings.py`), and of what a container is (`compose/`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from dev.reference.markdown import rows
from scripts import settings
from scripts.settings import Setting

COMPOSE = Path(__file__).resolve().parents[2] / "compose"


def table(name: str) -> str:
    """Return one table: `yours`, `written` or `environment`."""
    if name == "written":
        lines = [(f"`{one.name}`", one.by_default, one.meaning) for one in settings.WRITTEN]
        return rows(("key", "written by", "meaning"), lines)
    chosen = settings.YOURS if name == "yours" else settings.ENVIRONMENT
    lines = [(_names(one.name), _default(one), one.meaning) for one in chosen]
    return rows(("key" if name == "yours" else "variable", "default", "meaning"), lines)


def _names(text: str) -> str:
    return ", ".join(name if name == "..." else f"`{name}`" for name in text.split(", "))


def _default(setting: Setting) -> str:
    return setting.by_default or (f"`{setting.default}`" if setting.default else "")


def container(_: str) -> str:
    """Return the table of what a container is, as the files in `compose/` say."""
    all_of, relay, console = _service("container", "container"), _service("relay"), _service("console")
    others = [_service(name) for name in ("server", "site")]
    (limit,) = {one["pids_limit"] for one in (*others, relay, console)}
    (memory,) = {one["mem_limit"] for one in (relay, console)}
    assert all(one["memswap_limit"] == one["mem_limit"] for one in (*others, relay, console))
    (restart,) = {one["restart"] for one in (*others, relay)}
    assert all_of["read_only"] and all_of["cap_drop"] == ["ALL"] and all_of["init"]
    assert all_of["security_opt"] == ["no-new-privileges:true"] and "restart" not in console
    (tmp,) = all_of["tmpfs"]
    log = all_of["logging"]["options"]
    return rows(
        ("what", "how it is set"),
        [
            (
                "user",
                f"{all_of['user'].partition(':')[0]}, not root. No capabilities, and no way to gain any",
            ),
            (
                "root file system",
                f"read-only. Writable are the volume at `/workspace` and {_size(tmp)} at `/tmp`",
            ),
            ("process 1", f"an init. `docker stop` ends a container within {all_of['stop_grace_period']}"),
            ("processes and threads", str(limit)),
            ("core dumps", "none" if all_of["ulimits"]["core"]["hard"] == 0 else "some"),
            ("memory of relay and console", _size(memory)),
            ("swap", "none beyond the memory"),
            (
                "shared memory (`/dev/shm`)",
                "64 MB. [`shm_size`](project.md#what-a-site-gives-to-apps) gives more, which an app's "
                "DataLoader workers may need",
            ),
            ("log", f"{log['max-file']} files of {_size(log['max-size'])}"),
            (
                "restart",
                f"`{restart}`, except for consoles. The number of restarts has no limit: a site waits for a "
                "server that is away for days. The engine's pause between two of them doubles up to a minute",
            ),
            (
                "network",
                "[one with each participant that it connects to](project.md#what-a-container-reaches)",
            ),
        ],
    )


def _service(role: str, name: str = "") -> dict[str, Any]:
    content = yaml.safe_load((COMPOSE / f"{role}.yaml").read_text())
    return dict(content["services"][name or role])


def _size(text: str) -> str:
    read = re.search(r"(\d+)([mg])\b", text)
    assert read is not None, text
    return f"{read[1]} {read[2].upper()}B"
