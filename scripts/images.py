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
from packaging.utils import canonicalize_name, parse_wheel_filename

from scripts import apt, core, engine, ownership

BASE = "python:3.11-slim"
"""What the images are built from, if FLOWERBED_BASE names no other. It must have Python 3.11 as `python3`,
and Debian's tools."""
PYTHON = "3.11"
STAND_IN_SUITE = "bookworm"
"""The Debian release whose Python is PYTHON."""
STAND_IN = f"flowerbed-base:{STAND_IN_SUITE}"
"""The base image that is made here from Debian packages, where BASE cannot be pulled."""
STAND_IN_LABEL = "org.flowerbed.stand-in"
"""On that image."""
LABEL = "org.flowerbed.image"
"""On every image that is built from DOCKERFILE."""

DOCKERFILE = "images/Dockerfile"
REQUIREMENTS = core.ROOT / "images" / "requirements.txt"
TORCH = core.ROOT / "images" / "requirements-torch.txt"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where torch's CPU builds are; the plain index has CUDA builds of several GB under the same version."""
WHEELS = core.HOUSE / "wheels"
WHEELS_STAMP = core.HOUSE / "wheels.stamp"
LOCK = "lock.txt"
"""Beside wheels that are listed without hashes: the same with the hashes of what was fetched, for pip."""
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


def base() -> str:
    """The base image to build from: the user's own, the stand-in if it is all that is here, else BASE."""
    if own := os.environ.get("FLOWERBED_BASE", ""):
        return own
    if has(BASE):
        return STAND_IN if _is_stand_in(BASE) else BASE
    return STAND_IN if has(STAND_IN) else BASE


def ensure_base(*, renew: bool = False) -> str:
    """Make sure that the engine has the base image.

    Args:
        renew: pull it again, or make the stand-in anew, for the fixes that its Debian packages have had.

    Returns:
        How: present, pulled or made.
    """
    if not os.environ.get("FLOWERBED_BASE"):
        _name_stand_in()
    wanted = base()
    if has(wanted) and not renew:
        return "present"
    start = time.monotonic()
    name = BASE if wanted == STAND_IN else wanted
    core.say(f"  pulling {name}")
    pull = core.run([engine.docker(), "pull", "--quiet", name], timeout=PULL_TIMEOUT)
    how = "pulled"
    if pull.returncode:
        said = pull.stderr.decode(errors="replace").strip()
        # What was pulled once is renewed by pulling: another system's files are no newer version of it.
        if name != BASE or has(BASE) or not apt.is_possible():
            raise core.Failure(
                f"The base image {name} cannot be pulled: {said}\n"
                f"Bring it from another machine (docker save {name} -o base.tar there, docker load -i "
                "base.tar here), or, on Debian or Ubuntu, run flowerbed as root: where there is none, it "
                "makes a stand-in from Debian packages."
            )
        _make_base()
        how = "made"
    core.say(f"  base image {how} in {time.monotonic() - start:.0f} s")
    return how


def _name_stand_in() -> None:
    """Give a stand-in its own name. Earlier versions called it as the real one, which it then kept from every
    other build on the engine."""
    if not _is_stand_in(BASE):
        return
    if not has(STAND_IN):
        core.must(core.run([engine.docker(), "tag", BASE, STAND_IN]), f"docker tag {STAND_IN}")
    core.say(f"  {BASE} was made here from Debian packages: from now on it is {STAND_IN}")
    core.must(core.run([engine.docker(), "image", "rm", BASE]), f"docker image rm {BASE}")


def _make_base() -> None:
    """Make the stand-in from Debian packages."""
    core.say(f"  no registry answers: making {STAND_IN} from Debian packages")
    if shutil.which("mmdebstrap") is None:
        apt.install("mmdebstrap", "debian-archive-keyring")
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "base.tar"
        command = ["mmdebstrap", "--variant=minbase", "--include=usr-is-merged,python3,ca-certificates"]
        command += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
        command += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("man", "doc", "locale")]
        command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
        made = core.run([*command, STAND_IN_SUITE, str(archive)], timeout=BUILD_TIMEOUT)
        core.must(made, f"Making {STAND_IN} from Debian packages (mmdebstrap)")
        label = f"LABEL {STAND_IN_LABEL}={STAND_IN_SUITE}"
        command = [engine.docker(), "import", "--change", label, str(archive), STAND_IN]
        core.must(core.run(command, timeout=PULL_TIMEOUT), "docker import")


def is_stand_in() -> bool:
    """Whether the base image was made here."""
    return base() == STAND_IN


def _is_stand_in(image: str) -> bool:
    template = f'{{{{index .Config.Labels "{STAND_IN_LABEL}"}}}}'
    process = core.run([engine.docker(), "image", "inspect", "--format", template, image])
    return process.returncode == 0 and process.stdout.decode().strip() == STAND_IN_SUITE


def wheels_are_complete(architecture: str) -> bool:
    """Whether the wheelhouse is what the requirements say, for the engine's architecture."""
    if not (WHEELS / LOCK).is_file() or not WHEELS_STAMP.is_file():
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
    stamp = _wheels_stamp(architecture)
    if WHEELS.is_dir() and not (WHEELS / LOCK).exists() and _text(WHEELS_STAMP) == stamp:
        # Filled by a version that wrote no hashes of torch's: they are what is there now.
        _lock(WHEELS, _unlisted(WHEELS))
    if wheels_are_complete(architecture):
        return 0
    start = time.monotonic()
    _recover(WHEELS)
    core.say("  filling the wheelhouse (290 MB when it is empty)")
    old = {path.name for path in WHEELS.glob("*.whl")}
    fresh = WHEELS.with_name("wheels.new")
    shutil.rmtree(fresh, ignore_errors=True)
    # The list is complete; without --no-deps pip would add what it takes to be missing on this machine.
    options = ["--no-deps", *(["--find-links", str(WHEELS)] if old else [])]
    _download(architecture, fresh, [*options, "--require-hashes", "--requirement", str(REQUIREMENTS)])
    _download(architecture, fresh, [*options, *_torch_sources(), "--requirement", str(TORCH)])
    _refuse_cuda(fresh)
    _lock(fresh, _unlisted(fresh))
    _replace(WHEELS, fresh)
    _write_anew(WHEELS_STAMP, stamp)
    wheels = {path.name for path in WHEELS.glob("*.whl")}
    core.say(f"  {len(wheels)} wheels, {len(wheels - old)} of them new, in {time.monotonic() - start:.0f} s")
    return len(wheels - old)


def _hash(wheel: Path) -> str:
    with wheel.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hashes(text: str) -> set[str]:
    return set(re.findall(r"--hash=sha256:([0-9a-f]{64})", text))


def _unlisted(folder: Path) -> list[Path]:
    """The wheels whose hashes are not in REQUIREMENTS: torch's."""
    listed = _hashes(REQUIREMENTS.read_text())
    return [wheel for wheel in folder.glob("*.whl") if _hash(wheel) not in listed]


def _lock(folder: Path, wheels: Iterable[Path]) -> None:
    """Write a folder's LOCK, and let the builder read what is there, whatever the umask here."""
    lines = []
    for wheel in sorted(wheels):
        name, version, _, _ = parse_wheel_filename(wheel.name)
        lines.append(f"{name}=={version} --hash=sha256:{_hash(wheel)}\n")
    (folder / LOCK).write_text("".join(lines))
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)


def check_wheels() -> None:
    """Refuse wheels that are not those that were fetched. pip checks them once more in the build.

    Raises:
        core.Failure: with the names of the wheels.
    """
    listed = REQUIREMENTS.read_text()
    for folder, known in (
        (WHEELS, listed),
        (APPS / "wheels", ""),
        (MLFLOW / "wheels", _text(MLFLOW_REQUIREMENTS)),
    ):
        hashes = _hashes(known + _text(folder / LOCK))
        foreign = sorted(wheel.name for wheel in folder.glob("*.whl") if _hash(wheel) not in hashes)
        if foreign:
            raise core.Failure(
                f"These wheels in {folder} are not what was fetched, or nobody fetched them: "
                f"{', '.join(foreign)}. Remove them, and `./flowerbed build` fetches what is missing.",
                wheels=foreign,
            )


def _text(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


def _replace(folder: Path, fresh: Path) -> None:
    """Put a finished folder into another's place. Killed in between, `_recover` finds the old one."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _recover(folder: Path) -> None:
    old = folder.with_name(f"{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)


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
        raise core.UsageError(f"{file}: {error.strerror}: expected the folder of a Flower app.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise core.UsageError(f"{file} is not TOML: {error}.") from None
    project = content.get("project")
    lines = project.get("dependencies", []) if isinstance(project, dict) else []
    if not isinstance(lines, list):
        raise core.UsageError(f"{file}: [project] dependencies: expected a list, found {lines!r}.")
    missing = []
    has = image_packages()
    for line in lines:
        try:
            requirement = Requirement(str(line))
        except InvalidRequirement as error:
            raise core.UsageError(f"{file}: '{line}' is no requirement: {error}.") from None
        if requirement.marker and not requirement.marker.evaluate({"python_version": PYTHON, "extra": ""}):
            continue
        version = has.get(canonicalize_name(requirement.name))
        if version is None:
            missing.append(str(requirement))
        elif not requirement.specifier.contains(version, prereleases=True):
            raise core.UsageError(
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
    fresh = MLFLOW.with_name(f"{MLFLOW.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    options = ["--no-deps", "--require-hashes", "--requirement", str(MLFLOW_REQUIREMENTS)]
    _download(architecture, fresh / "wheels", options)
    _lock(fresh / "wheels", ())  # The list has the hashes.
    (fresh / "requirements.txt").write_text(wanted)
    _replace(MLFLOW, fresh)


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
    _recover(wheels)
    wheels.mkdir(parents=True, exist_ok=True)
    before = file.read_text().splitlines() if file.exists() else []
    wanted = sorted({*before, *also, *(line for app in apps for line in lacking(app))})
    if wanted and (wanted != before or not (wheels / LOCK).is_file()):
        core.say(f"  fetching what the apps need on top: {', '.join(wanted)}")
        _fetch_apps(wanted, wheels, architecture)
    elif not (wheels / LOCK).is_file():
        _lock(wheels, ())
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
        kept = wheels.with_name(f"{wheels.name}.new")
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        for wheel in fresh.glob("*.whl"):
            if wheel.name not in ours:
                shutil.move(wheel, kept / wheel.name)
        _lock(kept, kept.glob("*.whl"))
        _replace(wheels, kept)


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
    words += ["--target", target, "--build-arg", f"BASE={base()}"]
    words += ["--build-arg", f"KIT={kit}"] if kit else []
    words += ["--no-cache"] if fresh else []
    # Not on a participant's, which may go to another machine.
    words += ["--label", f"{ownership.LABEL}={core.ROOT}"] if target == "runtime" else []
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
