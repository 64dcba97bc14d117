"""Check the machine: engine, image, disk, memory, processor, kernel, GPUs, data and environments."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bridge.common import app_environment, readable
from bridge.common.finding import Finding, Level
from bridge.common.site_settings import DATA_FOLDER
from bridge.common.text import one_line
from bridge.launch import sandbox

OLDEST_ENGINE, OLDEST_COMPOSE = (20, 10), (2, 20)
FULL_COMPOSE = (2, 24, 4)
"""From this Compose on, a site may have several data folders, and GPUs of its choice."""

LEAST_DISK, GOOD_DISK = 1.0, 10.0
"""GB for the site's volume. A job with torch keeps some, and an environment takes 1 to 2."""

LEAST_MEMORY, GOOD_MEMORY = 0.5, 2.0
"""GB. FLARE takes 0.2 at a site, each job 0.4 more, and its app what it needs."""

GB = 1024**3

VOLUME = Path("/workspace")
GPU_VARIABLE = "NVIDIA_VISIBLE_DEVICES"
"""The engine sets this variable in a container that gets GPUs."""

SAID_LIMIT = 300
NVIDIA_WITHIN = 20.0

BROKEN = (
    (
        "bind source path does not exist",
        "data: in site.yml names a folder that does not exist. Make or correct it",
    ),
    ("could not select device driver", "install the NVIDIA Container Toolkit, or remove gpus: from site.yml"),
    ("nvidia", "nvidia-smi on this machine shows whether its driver works. Or remove gpus: from site.yml"),
    ("address pool", "docker network prune, or give the engine more address pools"),
    ("env file", "env_file: in site.yml names a file that does not exist. Make or correct it"),
    ("no space left", "docker system df shows what fills the disk"),
    ("permission denied", "may this user use Docker? Add it to the group docker"),
)
"""Parts of what Compose says when a container does not start, and the fix."""


def check_engine(version: str) -> Finding:
    """Check the engine's version."""
    numbers = _numbers(version)
    if numbers >= OLDEST_ENGINE:
        return Finding("engine", "ok", one_line(version, SAID_LIMIT))
    text = f"{one_line(version, SAID_LIMIT) or 'unknown'}, expected 20.10 or newer"
    return Finding("engine", "fail" if numbers else "warn", text, "install a newer Docker Engine")


def check_compose(version: str) -> Finding:
    """Check Compose's version."""
    numbers, said = _numbers(version), one_line(version, SAID_LIMIT)
    if numbers < OLDEST_COMPOSE:
        text = f"{said or 'unknown'}, expected 2.20 or newer"
        return Finding("compose", "fail", text, "install a newer docker-compose-plugin")
    if numbers < FULL_COMPOSE:
        text = f"{said}: several data folders, and gpus, need 2.24.4"
        return Finding("compose", "warn", text, "install a newer docker-compose-plugin if site.yml has them")
    return Finding("compose", "ok", said)


def check_image(found: str, expected: str) -> Finding:
    """Check that the runtime is the one that the join file names."""
    if found == expected:
        return Finding("image", "ok", f"the runtime is the join file's, {_short(found)}")
    text = f"the runtime is {_short(found)}, and the join file names {_short(expected)}"
    return Finding("image", "fail", text, "get the runtime that the join file names, then ./site update FILE")


def check_start(said: str) -> Finding:
    """Name what keeps the site's container from starting, from Compose's words."""
    # Without the words of the site's own script, which say where to look.
    lines = [line for line in said.strip().splitlines() if not line.startswith("site: ")]
    line = (lines or ["it said nothing"])[-1]
    mend = next(
        (mend for words, mend in BROKEN if words in said.lower()), "correct site.yml, then ./site doctor"
    )
    return Finding("container", "fail", f"it does not start: {one_line(line, SAID_LIMIT)}", mend)


def check_disk(places: tuple[Path, ...] = (VOLUME, app_environment.ROOT)) -> Finding:
    """Check the room on the disks of the site's volume and of its environments."""
    free = min(_free(place) for place in ([place for place in places if place.is_dir()] or [Path("/")]))
    level: Level = "fail" if free < LEAST_DISK else "warn" if free < GOOD_DISK else "ok"
    text = f"{free:.1f} GB free for jobs and environments"
    if level == "ok":
        return Finding("disk", level, text)
    text += f", expected {LEAST_DISK if level == 'fail' else GOOD_DISK:.0f} or more"
    return Finding("disk", level, text, "docker system df shows what Docker holds")


def check_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Finding:
    """Check the machine's memory against the container's limit."""
    sizes = {
        name: int(value.split()[0]) * 1024 / GB
        for name, _, value in (line.partition(":") for line in (proc / "meminfo").read_text().splitlines())
        if name in ("MemTotal", "MemAvailable")
    }
    total, free, limit = sizes["MemTotal"], sizes["MemAvailable"], _limit(cgroup)
    text = f"{free:.1f} of {total:.1f} GB free" + (f", the site may take {limit:.1f}" if limit else "")
    if free < LEAST_MEMORY or (limit is not None and limit < LEAST_MEMORY):
        text += f". Expected {LEAST_MEMORY} GB or more"
        return Finding("memory", "fail", text, "end other programs, or raise memory: in site.yml")
    if limit is not None and limit > total:
        return Finding(
            "memory", "warn", f"{text}, more than there is", f"memory: {int(total * 0.8) or 1}GB in site.yml"
        )
    if free < GOOD_MEMORY:
        return Finding(
            "memory", "warn", f"{text}. A job needs about {GOOD_MEMORY:.0f} GB", "end other programs"
        )
    return Finding("memory", "ok", text)


def check_processor(proc: Path = Path("/proc"), machine: str = "") -> Finding:
    """Check for the instructions that the wheels of torch and others use."""
    machine = machine or platform.machine()
    cores = len(os.sched_getaffinity(0))
    text = f"{cores} {'core' if cores == 1 else 'cores'}, {machine}"
    if machine == "x86_64":
        flags = re.search(r"^flags\s*:(.*)$", (proc / "cpuinfo").read_text(), re.MULTILINE)
        if flags and "avx2" not in flags[1].split():
            mend = "in a virtual machine, choose the processor type 'host'. Without it, apps are slow or fail"
            return Finding("cpu", "warn", f"{text}, without AVX2, which torch and others use", mend)
    return Finding("cpu", "ok", text)


def check_sandbox(asked: str) -> Finding:
    """Check how far the kernel can confine apps."""
    if asked == "off":
        return Finding("sandbox", "ok", "off, so apps are not confined")
    abi = sandbox.abi()
    if missing := sandbox.missing(abi):
        level: Level = "fail" if asked == "required" else "warn"
        mend = "a newer kernel with Landlock enabled confines more"
        return Finding("sandbox", level, f"{asked}, and this kernel cannot confine {missing}", mend)
    return Finding("sandbox", "ok", f"{asked} confines {sandbox.level(abi)}")


def check_gpus() -> Iterator[Finding]:
    """Check the GPUs of a container that should have some."""
    if os.environ.get(GPU_VARIABLE, "void") in ("void", ""):
        return
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        process = subprocess.run(command, capture_output=True, timeout=NVIDIA_WITHIN, check=False)
        said = process.stdout.decode(errors="replace").strip().splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        said, why = [], str(error)
    else:
        why = process.stderr.decode(errors="replace").strip() or " ".join(said)
        said = said if process.returncode == 0 else []
    if said:
        yield Finding("gpu", "ok", f"{len(said)}: {', '.join(one_line(line, 80) for line in said)}")
    else:
        text = f"nvidia-smi finds none in the container ({one_line(why, SAID_LIMIT) or 'it said nothing'})"
        yield Finding(
            "gpu", "fail", text, "look at this machine's driver (nvidia-smi), or remove gpus: from site.yml"
        )


def check_data(mounts: Path = Path("/proc/self/mountinfo"), root: str = DATA_FOLDER) -> Iterator[Finding]:
    """Check that the container's user can read the site's data."""
    targets = [line.split()[4] for line in mounts.read_text().splitlines()]
    folders = [target for target in targets if target == root or target.startswith(f"{root}/")]
    if not folders:
        yield Finding(
            "data", "warn", "the site has none", "data: /srv/patients in site.yml, or any other folder"
        )
    deadline = time.monotonic() + readable.WITHIN
    for folder in folders:
        look = readable.look(folder, deadline)
        first = one_line(f"{look['first']}: {look['why']}", SAID_LIMIT)
        mend = (
            f"the container's user is {os.geteuid()}. Give the folder to a group (chgrp -R, chmod -R g+rX), "
            "and write data: {folder: PATH, group: NUMBER} into site.yml. If the data is not secret, "
            "chmod -R o+rX is enough"
        )
        if look["closed"] and (look["first"] == folder or look["closed"] >= look["files"]):
            yield Finding("data", "fail", f"user {os.geteuid()} of the container cannot read {first}", mend)
        elif look["closed"]:
            text = f"user {os.geteuid()} of the container cannot read all of {folder} ({first})"
            yield Finding("data", "warn", text, mend)
        elif not look["files"]:
            yield Finding("data", "warn", f"{folder} is empty", "put the site's data there")
        else:
            yield Finding("data", "ok", f"user {os.geteuid()} of the container reads {folder}")


def check_environments(root: Path = app_environment.ROOT) -> Finding:
    """Check the environments of apps: which are there, and whether all of each is."""
    if not root.is_dir():
        return Finding("environments", "warn", f"there is no folder {root}", "mount environments/ there")
    try:
        names = sorted(path.name for path in root.iterdir() if app_environment.NAME.fullmatch(path.name))
    except OSError as error:
        text = f"{root} cannot be read ({error.strerror})"
        return Finding("environments", "fail", text, "chmod -R o+rX environments")
    broken = [name for name in names if _incomplete(root / name)]
    if broken:
        text = f"{', '.join(broken)}: a part is missing, or cannot be read"
        return Finding(
            "environments", "fail", text, "remove that folder from environments/, and copy it again"
        )
    if not names:
        return Finding("environments", "ok", "none yet. The first job of an app needs one")
    return Finding("environments", "ok", ", ".join(names))


def _incomplete(folder: Path) -> bool:
    description = folder / app_environment.DESCRIPTION
    return not all(
        os.access(path, os.R_OK)
        for path in (description, folder / app_environment.LOCK, folder / app_environment.VENV / "bin")
    )


def _free(path: Path) -> float:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize / GB


def _limit(cgroup: Path) -> float | None:
    for file in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        if file.is_file():
            said = file.read_text().strip()
            if said.isdecimal() and int(said) < 1 << 60:
                return int(said) / GB
    return None


def _numbers(version: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(part) for part in found.groups() if part) if found else ()


def _short(image: str) -> str:
    return one_line(image.removeprefix("sha256:"), 80)[:12] or "unknown"
