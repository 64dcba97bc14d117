"""Read the decisions of a server's or site's operator: `local/flowerbed.json` of its kit.

Provisioning writes the file from `project.yml` (`provisioning/harden.py`). A job cannot change it, because
the kit is read-only. A site on another machine may decide otherwise (`bridge/common/own_policy.py`). Without
such a file, as in FLARE's simulator, nothing is restricted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.common import own_policy, site_settings
from bridge.common.job_options import ConfigValue

if TYPE_CHECKING:
    from nvflare.apis.fl_context import FLContext

FILE = "local/flowerbed.json"
"""The file, relative to FLARE's workspace."""

REQUIRED, BEST_EFFORT, OFF = "required", "best-effort", "off"
SANDBOXES = (REQUIRED, BEST_EFFORT, OFF)
"""The strictness of the confinement of processes that run an app's code."""

SERVER, ANY = "server", "any"
EGRESS = (SERVER, ANY)
"""The reach of an app's connections: its own job's ports only, or anywhere."""


@dataclass(frozen=True)
class Limits:
    """The most that one job may write here. Bytes, unless the name says otherwise."""

    job_files: int = 20 * 2**30
    """All files of a running job here, its results included. More ends the job, or at a site its part."""
    log: int = 64 * 2**20
    """Each log that a site streams to the server for one job. There are two, and at most four."""
    audit: int = 64 * 2**20
    """The audit log, both its files. When the newer one has half of that, it replaces the older."""
    kept_jobs: int = 50
    """A number: folders of finished jobs that stay in the workspace, the newest."""


@dataclass(frozen=True)
class Settings:
    """The decisions, each with the value that restricts nothing as its default."""

    sandbox: str = OFF
    egress: str = ANY
    custom_code: bool = True
    allowed_apps: tuple[str, ...] | None = None
    """The SHA-256 hashes of the deployed apps that this site runs, or None for all."""
    limits: Limits = field(default_factory=Limits)
    node_config: Mapping[str, ConfigValue] = field(default_factory=dict)
    """Entries of an app's `context.node_config` here, beside our own keys."""


def workspace_of(fl_ctx: FLContext) -> Path:
    """Return the FLARE workspace of this process, be it a long-lived one or a job's."""
    # Imported here, since `usage.py` reads settings too, and FLARE takes long to import.
    from nvflare.apis.fl_constant import FLContextKey

    root = fl_ctx.get_prop(FLContextKey.WORKSPACE_ROOT)
    if not root:
        engine = fl_ctx.get_engine()
        root = engine.args.workspace if hasattr(engine, "args") else engine.get_workspace().get_root_dir()
    return Path(root)


def provisioned(workspace: Path) -> bool:
    """Return whether this is the workspace of a participant with a kit, and not one of FLARE's simulator."""
    return (workspace / FILE).is_file()


def read(workspace: Path) -> Settings:
    """Return the settings of the participant with this FLARE workspace.

    Raises:
        ValueError: the file exists and is broken. Nothing must run then.
    """
    file = workspace / FILE
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        return Settings(node_config=_own_node_config())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}. Provision and build again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object. Provision and build again.")
    content |= own_policy.read()
    apps = content.get("allowed_apps")
    return Settings(
        **{
            key: value
            for key, value in _known(Settings, content).items()
            if key not in ("limits", "allowed_apps", site_settings.NODE_CONFIG)
        },
        node_config={**(content.get(site_settings.NODE_CONFIG) or {}), **_own_node_config()},
        allowed_apps=None if apps is None else tuple(apps),
        limits=Limits(**_known(Limits, content.get("limits") or {})),
    )


def _own_node_config() -> dict[str, Any]:
    """Return the entries that only the site knows. They are in the container's environment, and in no kit or
    image."""
    text = os.environ.get(site_settings.NODE_CONFIG_VARIABLE, "")
    try:
        content = json.loads(text) if text else {}
    except ValueError as error:
        raise ValueError(
            f"{site_settings.NODE_CONFIG_VARIABLE}: expected a JSON object, found invalid JSON: {error}"
        ) from None
    if problem := next(site_settings.node_config_problems(content), ""):
        raise ValueError(f"{site_settings.NODE_CONFIG_VARIABLE}: {problem}.")
    return dict(content)


def _known(kind: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    names = {part.name for part in fields(kind)}
    return {key: value for key, value in content.items() if key in names}
