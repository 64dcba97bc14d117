"""Check the engine, Compose and the builder, for `doctor`: what is there, and what this engine cannot do."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.version import Version

from bridge.common.finding import Finding
from provisioning import here
from scripts import apt, base_image, core, engine, engine_view

PAGE = "docs/how-to/other-engines.md"

OLDEST_PODMAN = Version("4.5")
"""The oldest Podman whose containers find each other by name where the Compose file has `dns:`."""

LIMITS = {"MemoryLimit": "memory", "PidsLimit": "the number of processes", "CpuCfsQuota": "processor cores"}
"""The engine's words for what it can limit."""

NAME_SERVERS = (
    *(Path(folder) / "aardvark-dns" for folder in ("/usr/lib/podman", "/usr/libexec/podman")),
    *(Path(folder) / "dnsname" for folder in ("/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin")),
)
"""The programs that answer Podman's containers for each other's names. One is needed."""


def check(answer: engine.Answer) -> Iterator[Finding]:
    """Check the engine itself."""
    yield check_engine(answer)
    if not answer.problem:
        has_base = engine.has(base_image.name())
        yield from check_mounts(has_base=has_base)
        # Podman 4 needs a container to tell, and so the base image.
        rootless = engine_view.is_rootless() if has_base or not answer.is_podman else os.geteuid() != 0
        yield from check_limits(engine.info(), is_podman=answer.is_podman, rootless=rootless)
        if answer.is_podman:
            yield from check_podman(answer, has_base=has_base, rootless=rootless)


def check_engine(answer: engine.Answer) -> Finding:
    """Check that an engine answers."""
    if not answer.problem:
        where = f", at {here.engine_address()}" if engine.is_remote() else ""
        return Finding("engine", "ok", f"{answer.name} {answer.version} ({answer.architecture}){where}")
    mend = "start it, or find out why it does not answer"
    if "permission denied" in answer.problem.lower():
        mend = "join the group docker (sudo usermod -aG docker $USER, log in again), or run flowerbed as root"
    elif engine.is_remote():
        pass
    elif sys.platform != "linux":
        mend = f"start Docker Desktop, or another engine: {PAGE}"
    else:
        mend = "./flowerbed up" if apt.is_possible() else "sudo ./flowerbed up"
        mend += " installs (on Debian or Ubuntu) and starts one"
    return Finding("engine", "fail", answer.problem, mend)


def check_compose() -> Finding:
    """Check that the Compose plugin is installed and new enough."""
    version = engine.compose_version()
    if version and version >= engine.OLDEST_COMPOSE:
        return Finding("compose", "ok", f"Docker Compose {version}")
    wanted = f"{version}, but {engine.OLDEST_COMPOSE} or newer is needed"
    found = wanted if version else "no plugin `docker compose`"
    return Finding("compose", "fail", found, "./flowerbed up installs one for you, from PyPI")


def check_builder(answer: engine.Answer) -> Finding:
    """Check that some CLI can build."""
    found = engine.find_builder()
    if found:
        how = "Podman's own builder" if answer.is_podman else "BuildKit"
        return Finding("builder", "ok", f"{how} through {' '.join(found[0])}")
    found_none = "no docker command here can use BuildKit"
    return Finding("builder", "fail", found_none, "install the package docker-buildx")


def check_mounts(*, has_base: bool) -> Iterator[Finding]:
    """Check that containers see this checkout, with an engine elsewhere or in a virtual machine."""
    if here.is_local_linux():
        return
    if not has_base:
        found = "whether containers see this checkout is not known before there is a base image"
        yield Finding("mounts", "warn", found, "./flowerbed build, then ./flowerbed doctor")
    elif problem := engine_view.unseen(core.ROOT):
        yield Finding("mounts", "fail", problem, engine_view.how_to_show(core.ROOT))
    else:
        yield Finding("mounts", "ok", "containers see this checkout")


def check_limits(info: Mapping[str, Any], *, is_podman: bool, rootless: bool) -> Iterator[Finding]:
    """Check that the engine can limit what a container takes."""
    # Podman names every limit, though on cgroup v1 it sets none without root.
    none = info.get("CgroupDriver") == "none" or (
        is_podman and rootless and str(info.get("CgroupVersion")) == "1"
    )
    missing = [what for key, what in LIMITS.items() if none or info.get(key) is False]
    if not missing:
        return
    mend = "give your user the controllers of cgroup v2" if rootless else "switch them on in the kernel"
    if is_podman and not none:
        found = f"Podman cannot limit {', '.join(missing)}, and starts no container that has such limits"
        yield Finding("cgroups", "fail", found, f"{mend}: {PAGE}")
        return
    found = f"the engine cannot limit {', '.join(missing)}: such limits of containers have no effect"
    yield Finding("cgroups", "warn", found, f"{mend}: {PAGE}")


def check_podman(answer: engine.Answer, *, has_base: bool, rootless: bool) -> Iterator[Finding]:
    """Check the parts of Podman that the federation needs and that are separate packages."""
    version = re.match(r"\d+\.\d+", answer.version)
    if version is None or Version(version[0]) < OLDEST_PODMAN:
        text = f"{answer.version}, whose containers would not find the server by its name"
        yield Finding("podman", "fail", text, f"install Podman {OLDEST_PODMAN} or newer")
    if not rootless:
        found = "as root, it lets containers reach services of its machine that listen on all addresses"
        yield Finding("podman", "warn", found, f"run it without root, or use Docker: {PAGE}")
    if here.is_local_linux():
        yield from _local_podman(rootless=rootless)
    if has_base:
        # Podman says only at a start that its init program is missing.
        command = [engine.docker(), "run", "--rm", "--init", "--network", "none", base_image.name(), "true"]
        process = core.run(command, timeout=engine.ANSWER_TIMEOUT)
        if process.returncode:
            said = process.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            found = f"a container with an init process does not start ({said[-1]})"
            yield Finding("podman", "fail", found, "install the package catatonit")


def _local_podman(*, rootless: bool) -> Iterator[Finding]:
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent"))
    if not (runtime / "systemd" / "private" if rootless else engine.SYSTEMD).exists():
        found = "it checks the health of containers by systemd's timers, and no systemd runs for its user"
        mend = "log in with a session of systemd (loginctl enable-linger), or use Docker: up waits for health"
        yield Finding("podman", "fail", found, mend)
    if not any(path.exists() for path in NAME_SERVERS):
        found = "its containers cannot find each other by name: neither aardvark-dns nor dnsname is installed"
        yield Finding("podman", "fail", found, f"install netavark and aardvark-dns: {PAGE}")
