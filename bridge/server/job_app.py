"""Find a job's app at the server: the app that the job brings, or one that is deployed there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.common.app import (
    ROUNDS_KEY,
    BadApp,
    check_packages,
    check_run_config,
    deployed_app,
    read_app,
    run_config,
)
from bridge.common.app_environment import AppEnvironment
from bridge.common.job_options import ConfigValue
from bridge.job import fab, same_app


@dataclass(frozen=True)
class JobApp:
    """The place of the app, and its run config."""

    custom: Path
    """The job's folder with the app that it brings."""
    root: Path
    """FLARE's workspace."""
    deployed: str
    """The path of an app that is deployed at the server, or ""."""
    overrides: dict[str, ConfigValue]

    def checked(self, packages: AppEnvironment) -> bytes:
        """Return the app after a second check, because its submitter may have seen no more of it than its
        name.

        Args:
            packages: the environment that it will run in.

        Raises:
            BadApp: it is not a valid app, or that environment lacks a package that it needs.
        """
        app = fab.build(self._deployed()) if self.deployed else self._brought()
        config = fab.read(app)
        check_run_config(config, self.overrides)
        if not packages.name:
            check_packages(config)
        return app

    def read(self) -> dict[str, Any]:
        """Return the contents of the app's pyproject.toml. Raises `BadApp`."""
        return read_app(self._deployed()) if self.deployed else fab.read(self._brought())

    def config(self) -> dict[str, Any] | None:
        """Return the contents of the app's pyproject.toml, or None if it cannot be read."""
        try:
            return self.read()
        except BadApp:
            return None

    def rounds(self) -> int | None:
        """Return the number of rounds that the app will run, if the usual key gives it."""
        config = self.config()
        if config is None:
            return None
        rounds = (run_config(config) | self.overrides).get(ROUNDS_KEY)
        return rounds if isinstance(rounds, int) else None

    def _deployed(self) -> Path:
        return deployed_app(self.root, self.deployed)

    def _brought(self) -> bytes:
        content = same_app.brought(self.custom)
        if content is None:
            raise BadApp(
                f"the job holds no app: expected custom/{fab.NAME}. If the job is old, export it again."
            )
        return content
