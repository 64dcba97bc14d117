"""Check for `doctor` what server and sites give to apps, and whether their data can be read.

Only a container can tell: its user is not ours, and its engine may be on another machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.common import readable, site_settings
from bridge.common.finding import Finding
from bridge.common.site_settings import DATA_FOLDER
from provisioning import here, site_files
from scripts import core, engine

WITHIN = readable.WITHIN + 17.0
"""Seconds for a container's answer: the limit of the check, and a slow start of Python on a busy machine."""

AT_ONCE = 4
"""Containers that are asked at once: each starts a Python."""


@dataclass(frozen=True)
class Look:
    """The result of reading one data folder as a container's user."""

    service: str
    source: str
    """The folder on the machine."""
    target: str
    files: int = 0
    closed: int = 0
    first: str = ""
    why: str = ""

    @property
    def is_shut(self) -> bool:
        """Return whether nothing in the folder can be read."""
        return self.closed > 0 and (self.first == self.target or self.closed >= self.files)

    @property
    def found(self) -> str:
        """The finding, for users."""
        what = f"{self.service}: user {here.USER} of its container"
        if not self.closed:
            return f"{what} reads {self.source}"
        where = self.source + self.first.removeprefix(self.target)
        many = "cannot read" if self.is_shut else f"cannot read {self.closed} of the files and folders of"
        return f"{what} {many} {self.source} ({where}: {self.why})"

    @property
    def mend(self) -> str:
        """The way to make the folder readable."""
        return (
            f"give it a group: chgrp -R GROUP {self.source}, chmod -R g+rX {self.source}, "
            f"data: {{folder: {self.source}, group: GROUP}} in project.yml. Or, if it is no secret: "
            f"chmod -R o+rX {self.source}"
        )


def data_folders(service: Mapping[str, Any]) -> dict[str, str]:
    """Return the data folders of a service of the resolved Compose file: its path, and the machine's."""
    return {
        volume["target"]: volume["source"]
        for volume in service.get("volumes", [])
        if volume["target"] == DATA_FOLDER or volume["target"].startswith(f"{DATA_FOLDER}/")
    }


def read_data(config: Mapping[str, Any], running: Mapping[str, str]) -> list[Look]:
    """Try to read the data of all running services, each as its container's user.

    Args:
        config: the resolved Compose file.
        running: containers by service.

    Raises:
        core.Failure: a container did not answer.
    """
    asked = [
        (name, container, folders)
        for name, container in running.items()
        if (folders := data_folders(config["services"].get(name, {})))
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [look for looks in pool.map(lambda one: _looks(*one), asked) for look in looks]


def _looks(service: str, container: str, folders: Mapping[str, str]) -> Sequence[Look]:
    command = [engine.docker(), "exec", "--interactive", container, "python", "-I", "-S", "-", *folders]
    process = core.run(command, input=Path(readable.__file__).read_bytes(), timeout=WITHIN)
    said = core.must(process, f"Looking at the data of {service}")
    try:
        told = json.loads(said)
    except ValueError:
        core.fail(f"Looking at the data of {service}", said.decode(errors="replace"))
    return [Look(service, source, target, **told[target]) for target, source in folders.items()]


def check_data(config: Mapping[str, Any], running: Mapping[str, str]) -> Iterator[Finding]:
    """Check that each site has its folder, and that its container's user can read it."""
    lost = [] if engine.is_remote() else lost_folders(config)
    if lost:
        names = ", ".join(dict.fromkeys(name for name, _ in lost))
        yield Finding("data", "warn", f"no folder for {names}", "./flowerbed data, or put their data there")
    try:
        looks = read_data(config, running)
    except core.Failure as error:
        yield Finding("data", "warn", f"could not check it: {error}", "./flowerbed up, then try again")
        return
    for look in (look for look in looks if look.closed):
        yield Finding("data", "fail" if look.is_shut else "warn", look.found, look.mend)
    if looks and not any(look.closed for look in looks):
        names = ", ".join(sorted({look.service for look in looks}))
        yield Finding("data", "ok", f"read as the containers' user: {names}")
    elif not looks and not lost and not engine.is_remote():
        names = ", ".join(name for name, service in config["services"].items() if data_folders(service))
        if names:
            yield Finding("data", "ok", f"a folder for each of {names}")


def check_gpus(config: Mapping[str, Any], running: Mapping[str, str]) -> Iterator[Finding]:
    """Check that each container that should have GPUs sees some."""
    for name, container in running.items():
        if not _devices(config["services"].get(name, {})):
            continue
        command = [
            engine.docker(),
            "exec",
            container,
            "nvidia-smi",
            "--query-gpu=name",
            "--format=csv,noheader",
        ]
        process = core.run(command, timeout=WITHIN)
        lines = process.stdout.decode(errors="replace").split("\n")
        if found := [line.strip() for line in lines if line.strip()] if process.returncode == 0 else []:
            yield Finding("gpus", "ok", f"{name}: {len(found)}, {', '.join(dict.fromkeys(found))}")
        else:
            why = (process.stderr + process.stdout).decode(errors="replace").strip().splitlines()
            text = f"{name}: nvidia-smi finds none in its container ({why[-1] if why else 'it said nothing'})"
            yield Finding("gpus", "fail", text, "look at the driver (nvidia-smi), then ./flowerbed up")


def _devices(service: Mapping[str, Any]) -> Any:
    resources = (service.get("deploy") or {}).get("resources") or {}
    return (resources.get("reservations") or {}).get("devices")


def lost_folders(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return services with the data folders that they lack."""
    return [
        (name, source)
        for name, service in config["services"].items()
        for source in data_folders(service).values()
        if not Path(source).is_dir()
    ]


def check_settings(participants: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Show what each participant of this machine gives to apps, and check that it exists."""
    for participant in participants:
        if participant.get("type") not in (site_files.SERVER, site_files.SITE) or participant.get(
            "elsewhere"
        ):
            continue
        name, settings = participant["name"], site_files.settings(participant)
        missing = list(here.missing(settings, core.ROOT))
        for problem in missing:
            yield Finding("settings", "fail", f"{name}: {problem}", f"correct it, in {_places(name)}")
        if settings and not missing:
            yield Finding("settings", "ok", f"{name}: {in_words(settings)}")


def in_words(settings: Mapping[str, Any]) -> str:
    """Describe settings without possible secrets: of node config and variables only the names."""
    parts = []
    for key, value in settings.items():
        if key in (site_settings.NODE_CONFIG, site_settings.ENVIRONMENT):
            parts.append(f"{key} {', '.join(value)}")
        elif key == site_settings.DATA:
            parts.append(f"{key} {', '.join(map(_folder, site_settings.folders(value)))}")
        elif key == site_settings.HOSTS:
            parts.append(f"{key} {', '.join(f'{name} {address}' for name, address in value.items())}")
        elif key in (site_settings.PROXY, site_settings.CONNECT_THROUGH):
            # Without its user and password.
            parts.append(f"{key} {value.rpartition('@')[2].rpartition('//')[2]}")
        else:
            shown = str(value).lower() if isinstance(value, bool) else value
            parts.append(f"{key} {', '.join(map(str, shown)) if isinstance(shown, list) else shown}")
    return "; ".join(parts)


def _folder(folder: site_settings.Folder) -> str:
    group = "" if folder.group is None else f" (group {folder.group})"
    return f"{folder.source} at {folder.target}{group}"


def _places(name: str) -> str:
    return f"project.yml or {site_files.FOLDER}/{name}.yml"
