"""The parts of a build: disk, base image, wheelhouse, the packages of apps, and the images themselves.

A build never uses the network: the host puts every wheel into .flowerbed/wheels first. So it is the same on
a machine that has a registry, on one that has a mirror with a certificate of its own, and on one that has
neither and was given the folder.
"""

from __future__ import annotations

import email
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from scripts import apt, core, engine

BASE = os.environ.get("FLOWERBED_BASE") or "python:3.11-slim"
"""What the images are built from; it must have Python 3.11 as `python3`, and Debian's tools."""
PYTHON = "3.11"
STAND_IN_LABEL = "org.flowerbed.stand-in"
"""On a base image that was made here, from Debian packages."""
STAND_IN_SUITE = "bookworm"
"""The Debian release whose Python is PYTHON."""
LABEL = "org.flowerbed.image"
"""On every image that is built from DOCKERFILE."""

DOCKERFILE = "images/Dockerfile"
REQUIREMENTS = core.ROOT / "images" / "requirements.txt"
TORCH = core.ROOT / "images" / "requirements-torch.txt"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where torch's CPU builds are; the plain index has CUDA builds of several GB under the same version."""
WHEELS = core.HOUSE / "wheels"
WHEELS_STAMP = core.HOUSE / "wheels.stamp"
APPS = core.HOUSE / "apps"
"""requirements.txt and wheels of what apps need on top; `build --app` adds to it."""
MLFLOW = core.HOUSE / "mlflow"
"""The same of MLflow's server, complete."""
MLFLOW_REQUIREMENTS = core.ROOT / "images" / "requirements-mlflow.txt"
MLFLOW_CLIENT = "mlflow-skinny==3.17.2"
"""What a server's job needs to tell MLflow of its points."""

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""The engine's names of architectures, and the wheels'."""
GLIBC = ("2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")
"""Of the platform tags that may be fetched, newest first; torch asks for the newest. pip has to be told each
when it fetches for a Python that it does not run in."""

FIRST_BUILD_GB = 5.0
"""Free disk that a build from nothing takes: the image 1.0, the builder's own copy 1.1, the wheels and their
copy 0.6, the base 0.1, and room to work."""
REBUILD_GB = 1.0
"""The same when the runtime image is there: participants are small."""
PULL_TIMEOUT = 600.0
"""Seconds to pull the base image (50 MB)."""
BUILD_TIMEOUT = 1800.0
"""Seconds for one image; the runtime took 35 to 65 on 2 cores."""
DOWNLOAD_TIMEOUT = 1800.0
"""Seconds for all wheels (290 MB)."""


@dataclass(frozen=True)
class Image:
    """A participant's image: its name without the tag, and the kit to bake in, relative to the root."""

    name: str
    kit: str


def has(image: str) -> bool:
    """Whether the engine has an image."""
    return core.run([engine.docker(), "image", "inspect", "--format", "{{.Id}}", image]).returncode == 0


def runtime(project: str, tag: str) -> str:
    """The name of a project's runtime image."""
    return f"{project}-runtime:{tag}"


def storage() -> Path | None:
    """Where the engine keeps its images, if that is on this machine."""
    if engine.is_remote():
        return None
    command = [engine.docker(), "info", "--format", "{{.DockerRootDir}}"]
    process = core.run(command, timeout=engine.ANSWER_TIMEOUT)
    path = Path(process.stdout.decode().strip() or "/nowhere")
    return path if path.exists() else None


def free_gb(path: Path) -> float:
    """Free disk at a path, in GB."""
    return shutil.disk_usage(path).free / 1e9


def check_disk(first: bool) -> None:
    """Refuse a build that would fill the disk.

    Raises:
        core.Failure: with what is needed, what is free, and how to get more.
    """
    needed = FIRST_BUILD_GB if first else REBUILD_GB
    for path in (storage(), core.ROOT):
        if path is not None and (free := free_gb(path)) < needed:
            raise core.Failure(
                f"The disk is nearly full: a build needs about {needed:.0f} GB, and {free:.1f} GB are free "
                f"at {path}. Free some: docker system df shows what Docker holds, docker system prune frees "
                "what is unused.",
                free_gb=round(free, 1),
                needed_gb=needed,
            )


def ensure_base() -> str:
    """Make sure that the engine has the base image. Returns how: present, pulled or made."""
    if has(BASE):
        return "present"
    start = time.monotonic()
    core.say(f"  pulling {BASE}")
    pull = core.run([engine.docker(), "pull", "--quiet", BASE], timeout=PULL_TIMEOUT)
    how = "pulled"
    if pull.returncode:
        if BASE != "python:3.11-slim" or not apt.is_possible():
            said = pull.stderr.decode(errors="replace").strip()
            raise core.Failure(
                f"The base image {BASE} is not here and cannot be pulled: {said}\n"
                f"Bring it from another machine (docker save {BASE} -o base.tar there, docker load -i "
                "base.tar here), or, on Debian or Ubuntu, run flowerbed as root: it then makes a stand-in "
                "from Debian packages."
            )
        _make_base()
        how = "made"
    core.say(f"  base image {how} in {time.monotonic() - start:.0f} s")
    return how


def _make_base() -> None:
    """Make a stand-in from Debian packages, under the same name, so that the Dockerfile stays as it is."""
    core.say(f"  no registry answers: making {BASE} from Debian packages")
    if shutil.which("mmdebstrap") is None:
        apt.install("mmdebstrap", "debian-archive-keyring")
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "base.tar"
        command = ["mmdebstrap", "--variant=minbase", "--include=usr-is-merged,python3,ca-certificates"]
        command += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
        command += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("man", "doc", "locale")]
        command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
        made = core.run([*command, STAND_IN_SUITE, str(archive)], timeout=BUILD_TIMEOUT)
        core.must(made, f"Making {BASE} from Debian packages (mmdebstrap)")
        label = f"LABEL {STAND_IN_LABEL}={STAND_IN_SUITE}"
        command = [engine.docker(), "import", "--change", label, str(archive), BASE]
        core.must(core.run(command, timeout=PULL_TIMEOUT), "docker import")


def is_stand_in() -> bool:
    """Whether the base image was made here."""
    template = f'{{{{index .Config.Labels "{STAND_IN_LABEL}"}}}}'
    process = core.run([engine.docker(), "image", "inspect", "--format", template, BASE])
    return process.returncode == 0 and process.stdout.decode().strip() not in ("", "<no value>")


def wheels_are_complete(architecture: str) -> bool:
    """Whether the wheelhouse is what the requirements say, for the engine's architecture."""
    if not WHEELS.is_dir() or not WHEELS_STAMP.is_file():
        return False
    return WHEELS_STAMP.read_text() == _wheels_stamp(architecture)


def _wheels_stamp(architecture: str) -> str:
    content = REQUIREMENTS.read_bytes() + TORCH.read_bytes() + architecture.encode()
    return hashlib.sha256(content).hexdigest() + "\n"


def fill_wheelhouse(architecture: str) -> int:
    """Put every wheel that the runtime image needs into .flowerbed/wheels. Returns how many were fetched.

    What is there already is used again; with everything there the network is not touched.

    Raises:
        core.Failure: pip could not get one, or got torch's CUDA build.
    """
    if wheels_are_complete(architecture):
        return 0
    start = time.monotonic()
    core.say("  filling the wheelhouse (290 MB when it is empty)")
    old = {path.name for path in WHEELS.glob("*.whl")}
    fresh = WHEELS.with_name("wheels.new")
    shutil.rmtree(fresh, ignore_errors=True)
    # The list is complete; without --no-deps pip would add what it takes to be missing on this machine.
    options = ["--no-deps", *(["--find-links", str(WHEELS)] if old else [])]
    _download(architecture, fresh, [*options, "--require-hashes", "--requirement", str(REQUIREMENTS)])
    _download(architecture, fresh, [*options, *_torch_sources(), "--requirement", str(TORCH)])
    _refuse_cuda(fresh)
    # The image's user and the builder read them, whatever the umask here.
    for wheel in fresh.iterdir():
        wheel.chmod(0o644)
    shutil.rmtree(WHEELS, ignore_errors=True)
    fresh.rename(WHEELS)
    _write_anew(WHEELS_STAMP, _wheels_stamp(architecture))
    wheels = {path.name for path in WHEELS.glob("*.whl")}
    core.say(f"  {len(wheels)} wheels, {len(wheels - old)} of them new, in {time.monotonic() - start:.0f} s")
    return len(wheels - old)


def _write_anew(file: Path, text: str) -> None:
    """Write a file that copies of this checkout (`copies.py`) share, for this one only."""
    file.unlink(missing_ok=True)
    file.write_text(text)


def _download(architecture: str, folder: Path, options: Iterable[str]) -> None:
    """Fetch wheels for the image's Python and the engine's architecture, whatever runs here."""
    machine = MACHINES.get(architecture)
    if machine is None:
        raise core.Failure(f"The engine's machine is {architecture}: expected {' or '.join(MACHINES)}.")
    tags = [f"manylinux_{version}_{machine}" for version in GLIBC]
    # Names of the same from before the version stood in the tag.
    tags += [f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1")]
    command = [*core.pip("download"), "--implementation", "cp", "--python-version", PYTHON]
    command += [word for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)]
    command += [word for tag in tags for word in ("--platform", tag)]
    process = core.run([*command, "--dest", str(folder), *options], timeout=DOWNLOAD_TIMEOUT)
    core.must(process, "Fetching packages with pip")


def _torch_sources() -> list[str]:
    """Options that lead pip to torch's CPU build; none where the user's pip is told already where to look."""
    configured = core.run([sys.executable, "-m", "pip", "config", "list"]).stdout.decode(errors="replace")
    if re.search(r"index[-_]url|find[-_]links", configured):
        return []
    return ["--extra-index-url", TORCH_CPU_INDEX]


def _refuse_cuda(folder: Path) -> None:
    (wheel,) = folder.glob("torch-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        needs = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    if any(line.lower().startswith(("nvidia-", "cuda-")) for line in needs):
        raise core.Failure(
            f"pip found torch's CUDA build ({wheel.name}), several GB with what it needs; the images take "
            f"the CPU build. Show pip the way: PIP_EXTRA_INDEX_URL={TORCH_CPU_INDEX}, or "
            "PIP_FIND_LINKS=FOLDER for a folder that has it."
        )


def image_packages() -> dict[str, str]:
    """What the runtime image has without apps: version by canonical name."""
    lines = [*REQUIREMENTS.read_text().splitlines(), *TORCH.read_text().splitlines()]
    pins = (re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", line) for line in lines)
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def lacking(app: Path) -> list[str]:
    """The requirements in an app's pyproject.toml that the image does not meet by itself.

    Extras of a package that the image has are ignored: `flwr[simulation]` is what every template says, and no
    simulation runs in an image.

    Raises:
        core.Misuse: no such file, not TOML, no valid requirement, or one that contradicts the image.
    """
    file = app / "pyproject.toml"
    try:
        content = tomllib.loads(file.read_text())
    except OSError as error:
        raise core.Misuse(f"{file}: {error.strerror}: expected the folder of a Flower app.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise core.Misuse(f"{file} is not TOML: {error}.") from None
    project = content.get("project")
    lines = project.get("dependencies", []) if isinstance(project, dict) else []
    if not isinstance(lines, list):
        raise core.Misuse(f"{file}: [project] dependencies: expected a list, found {lines!r}.")
    missing = []
    has = image_packages()
    for line in lines:
        try:
            requirement = Requirement(str(line))
        except InvalidRequirement as error:
            raise core.Misuse(f"{file}: '{line}' is no requirement: {error}.") from None
        if requirement.marker and not requirement.marker.evaluate({"python_version": PYTHON, "extra": ""}):
            continue
        version = has.get(canonicalize_name(requirement.name))
        if version is None:
            missing.append(str(requirement))
        elif not requirement.specifier.contains(version, prereleases=True):
            raise core.Misuse(
                f"{file}: asks for {requirement}, and the image has {requirement.name} {version}, which is "
                "pinned in images/. Change one of the two."
            )
    return missing


def fetch_mlflow(architecture: str) -> None:
    """Put the wheels of MLflow's server into .flowerbed/mlflow, unless they are there."""
    file, wanted = MLFLOW / "requirements.txt", MLFLOW_REQUIREMENTS.read_text()
    if file.is_file() and file.read_text() == wanted:
        return
    core.say("  fetching MLflow's server (200 MB)")
    shutil.rmtree(MLFLOW, ignore_errors=True)
    options = ["--no-deps", "--require-hashes", "--requirement", str(MLFLOW_REQUIREMENTS)]
    _download(architecture, MLFLOW / "wheels", options)
    for wheel in (MLFLOW / "wheels").iterdir():
        wheel.chmod(0o644)
    file.write_text(wanted)  # Last: it says that they are complete.


def add_apps(apps: Iterable[Path], architecture: str, also: Iterable[str] = ()) -> list[str]:
    """Fetch what apps need on top of the image, and keep it for this build and those after it.

    Args:
        apps: their folders.
        architecture: the engine's.
        also: requirements of this project's own.

    Returns:
        every requirement on top, of these apps and of earlier ones; removing .flowerbed/apps forgets all.
    """
    file = APPS / "requirements.txt"
    wheels = APPS / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    before = file.read_text().splitlines() if file.exists() else []
    wanted = sorted({*before, *also, *(line for app in apps for line in lacking(app))})
    if wanted != before:
        core.say(f"  fetching what the apps need on top: {', '.join(sorted(set(wanted) - set(before)))}")
        _fetch_apps(wanted, wheels, architecture)
    if wanted != before or not file.exists():
        _write_anew(file, "".join(f"{line}\n" for line in wanted))
    return wanted


def _fetch_apps(wanted: list[str], wheels: Path, architecture: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        # The image's own packages stay as they are.
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in image_packages().items()))
        fresh = Path(scratch) / "wheels"
        options = ["--constraint", str(constraints), "--find-links", str(WHEELS), "--find-links", str(wheels)]
        _download(architecture, fresh, [*options, *_torch_sources(), *wanted])
        ours = {path.name for path in WHEELS.glob("*.whl")}
        for old in wheels.iterdir():
            old.unlink()
        for wheel in fresh.iterdir():
            if wheel.name not in ours:
                shutil.move(wheel, wheels / wheel.name)
                (wheels / wheel.name).chmod(0o644)


def participants(config: dict[str, Any], tag: str) -> list[Image]:
    """The images that a federation needs, from its resolved Compose file."""
    services = config["services"].values()
    found = {s["image"].removesuffix(f":{tag}"): s["build"]["args"]["KIT"] for s in services if "build" in s}
    return [Image(name, kit) for name, kit in sorted(found.items())]


def build(target: str, image: str, *, kit: str = "", fresh: bool = False) -> float:
    """Build one stage of the Dockerfile under a name. Returns the seconds it took.

    Args:
        target: runtime or participant.
        kit: the kit's folder, relative to the root.
        fresh: use nothing from the builder's cache.
    """
    words, env = engine.builder()
    words += ["--network", "none", "--progress", "plain", "--file", DOCKERFILE, "--tag", image]
    words += ["--target", target, "--build-arg", f"BASE={BASE}"]
    words += ["--build-arg", f"KIT={kit}"] if kit else []
    words += ["--no-cache"] if fresh else []
    start = time.monotonic()
    process = core.run([*words, "."], env=env, timeout=BUILD_TIMEOUT)
    if process.returncode:
        said = (process.stderr + process.stdout).decode(errors="replace")
        if "no space left on device" in said:
            raise core.Failure(f"The disk became full while building {image}: docker system df shows why.")
        core.fail(f"Building {image}", said)
    return time.monotonic() - start


def forget_old() -> None:
    """Remove our images that have lost their name to newer ones, unless a container runs from them."""
    core.run([engine.docker(), "image", "prune", "--force", "--filter", f"label={LABEL}"])
