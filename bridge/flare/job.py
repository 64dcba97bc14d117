"""A Flower app as a FLARE job: what a recipe, `flowerbed submit` and an exported folder have in common."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from nvflare.app_common.logging.job_log_streamer import JobLogStreamer
from nvflare.job_config.api import FedJob
from nvflare.recipe.spec import Recipe
from packaging.requirements import InvalidRequirement, Requirement

from bridge.flare.controller import FlowerController
from bridge.flare.executor import FlowerExecutor
from bridge.flower.superlink import ConfigValue

TASK_REQUEST_INTERVAL = 0.5
"""Seconds between two questions of a site's job after a task; each costs about 10 ms."""


class BadApp(Exception):
    """The folder is not a Flower app that can be run here; the text is for people."""

    def __init__(self, text: str, **facts: Any) -> None:
        super().__init__(text)
        self.facts = facts


def read_app(app: Path) -> dict[str, Any]:
    """Return the app's pyproject.toml as a dict.

    Raises:
        BadApp: there is none, it is broken, or it names no ServerApp and ClientApp.
    """
    file = app / "pyproject.toml"
    try:
        config = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise BadApp("expected a Flower app, but it has no pyproject.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadApp(f"pyproject.toml is broken: {error}") from None
    components = config.get("tool", {}).get("flwr", {}).get("app", {}).get("components", {})
    for part in ("serverapp", "clientapp"):
        if not isinstance(components.get(part), str):
            raise BadApp(f"pyproject.toml has no {part} in [tool.flwr.app.components]")
    return config


def check_packages(config: Mapping[str, Any]) -> None:
    """Raise `BadApp` unless every package that the app asks for is installed here.

    Sites install nothing at run time (they have no network), so what is missing in the image is
    missing for good.
    """
    missing = []
    for line in config.get("project", {}).get("dependencies", []):
        try:
            wanted = Requirement(line)
        except InvalidRequirement as error:
            raise BadApp(f"pyproject.toml asks for {line!r}, which is no requirement: {error}") from None
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            missing.append(line)
        else:
            # A local label such as +cpu says how a package was built, not which version it is.
            if not wanted.specifier.contains(found.split("+")[0], prereleases=True):
                missing.append(f"{line} (the image has {found})")
    if missing:
        raise BadApp("the image lacks packages that the app needs: " + ", ".join(missing), missing=missing)


def check_run_config(config: Mapping[str, Any], overrides: Mapping[str, ConfigValue]) -> None:
    """Raise `BadApp` unless every overridden key stands in the app's own configuration."""
    known = flat(config.get("tool", {}).get("flwr", {}).get("app", {}).get("config", {}))
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise BadApp(
            f"the app has no configuration key {', '.join(unknown)}; "
            f"it has {', '.join(sorted(known)) or 'none'} ([tool.flwr.app.config] in pyproject.toml)"
        )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, ConfigValue]:
    """Flower's own flattening of nested configuration: `{"a": {"b": 1}}` is `{"a.b": 1}`."""
    result: dict[str, ConfigValue] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


class FlowerJob(FedJob):
    """A FLARE job that runs one Flower app."""

    def __init__(
        self,
        app: Path,
        *,
        name: str,
        run_config: Mapping[str, ConfigValue] | None = None,
        min_sites: int = 1,
        sites: Sequence[str] | None = None,
    ) -> None:
        """Make the job.

        Args:
            app: the Flower app's folder.
            name: the job's name.
            run_config: overrides of the app's configuration.
            min_sites: the fewest sites with which the job may run.
            sites: the sites that take part; None: all there are.

        Raises:
            BadApp: the folder is no Flower app, or has no such configuration.
        """
        config = read_app(app)
        check_run_config(config, run_config or {})
        super().__init__(
            name=name, min_clients=min_sites, mandatory_clients=list(sites) if sites is not None else None
        )
        # The bridge is in every image; it does not travel with the job.
        self.set_app_packages(["bridge"])
        self.to_server(FlowerController(run_config=dict(run_config or {}), min_sites=min_sites))
        # How often a site's job asks for a task, and so how soon it sees END_RUN (FLARE's own: 2 s).
        self.to_server({"server": {"task_request_interval": TASK_REQUEST_INTERVAL}})
        self.to_server(str(app))
        # Sites get the app's code too: not to run it from there (it comes through Flower), but so
        # that FLARE asks each site's policy whether it allows custom code.
        for part in (FlowerExecutor(), JobLogStreamer(target_parent_server=True), str(app)):
            if sites is None:
                self.to_clients(part)
            else:
                for site in sites:
                    self.to(part, site)


class FlowerRecipe(Recipe):
    """The job as a FLARE recipe; the arguments are those of FLARE's own `FlowerRecipe`."""

    def __init__(
        self,
        flower_content: str,
        name: str = "flower_job",
        min_clients: int = 1,
        mandatory_clients: list[str] | None = None,
        run_config: dict[str, ConfigValue] | None = None,
    ) -> None:
        """See `FlowerJob`."""
        app = Path(flower_content)
        check_packages(read_app(app))
        job = FlowerJob(app, name=name, run_config=run_config, min_sites=min_clients, sites=mandatory_clients)
        super().__init__(job)
