"""The wheelhouse: every wheel that the runtime image needs, in .flowerbed/wheels.

A build never uses the network: the host puts every wheel there first. So it is the same on a machine that has
a registry, on one that has a mirror with a certificate of its own, and on one that has neither and was given
the folder.
"""

from __future__ import annotations

import email
import hashlib
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

from packaging.utils import canonicalize_name, parse_wheel_filename

from scripts import base_image, core, progress

REQUIREMENTS = core.ROOT / "images" / "requirements.txt"
TORCH = core.ROOT / "images" / "requirements-torch.txt"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where torch's CPU builds are; the plain index has CUDA builds of several GB under the same version."""
WHEELS = core.HOUSE / "wheels"
WHEELS_STAMP = core.HOUSE / "wheels.stamp"
LOCK = "lock.txt"
"""Beside wheels that are listed without hashes: the same with the hashes of what was fetched, for pip."""
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""The engine's names of architectures, and the wheels'."""
GLIBC = ("2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")
"""Of the platform tags that may be fetched, newest first; torch asks for the newest. pip has to be told each
when it fetches for a Python that it does not run in."""
SIZES = (90e6, 200e6)
"""Bytes of the wheels in REQUIREMENTS, and of torch's, for a bar."""
DOWNLOAD_TIMEOUT = 1800.0
"""Seconds for all wheels (290 MB)."""


def is_complete(architecture: str) -> bool:
    """Whether the wheelhouse is what the requirements say, for the engine's architecture."""
    if not (WHEELS / LOCK).is_file() or not WHEELS_STAMP.is_file():
        return False
    return WHEELS_STAMP.read_text() == _stamp(architecture)


def _stamp(architecture: str) -> str:
    content = REQUIREMENTS.read_bytes() + TORCH.read_bytes() + architecture.encode()
    return hashlib.sha256(content).hexdigest() + "\n"


def fill(architecture: str) -> int:
    """Put every wheel that the runtime image needs into .flowerbed/wheels. Returns how many were fetched.

    What is there already is used again; with everything there the network is not touched.

    Raises:
        core.Failure: pip could not get one, or got torch's CUDA build.
    """
    stamp = _stamp(architecture)
    if WHEELS.is_dir() and not (WHEELS / LOCK).exists() and text_of(WHEELS_STAMP) == stamp:
        # Filled by a version that wrote no hashes of torch's: they are what is there now.
        write_lock(WHEELS, _unlisted(WHEELS))
    if is_complete(architecture):
        return 0
    start = time.monotonic()
    recover(WHEELS)
    core.say("  filling the wheelhouse (290 MB when it is empty)")
    old = {path.name for path in WHEELS.glob("*.whl")}
    fresh = WHEELS.with_name("wheels.new")
    shutil.rmtree(fresh, ignore_errors=True)
    # The list is complete; without --no-deps pip would add what it takes to be missing on this machine.
    options = ["--no-deps", *(["--find-links", str(WHEELS)] if old else [])]
    # How much has to be fetched is known only where nothing is there.
    sizes = (None, None) if old else SIZES
    listed = [*options, "--require-hashes", "--requirement", str(REQUIREMENTS)]
    download(architecture, fresh, listed, sizes[0])
    download(architecture, fresh, [*options, *torch_sources(), "--requirement", str(TORCH)], sizes[1])
    _refuse_cuda(fresh)
    write_lock(fresh, _unlisted(fresh))
    put_in_place(WHEELS, fresh)
    write_anew(WHEELS_STAMP, stamp)
    wheels = {path.name for path in WHEELS.glob("*.whl")}
    core.say(f"  {len(wheels)} wheels, {len(wheels - old)} of them new, in {time.monotonic() - start:.0f} s")
    return len(wheels - old)


def hash_of(wheel: Path) -> str:
    """A file's SHA-256."""
    with wheel.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_in(text: str) -> set[str]:
    """The hashes in a list of requirements."""
    return set(re.findall(r"--hash=sha256:([0-9a-f]{64})", text))


def _unlisted(folder: Path) -> list[Path]:
    """The wheels whose hashes are not in REQUIREMENTS: torch's."""
    listed = hashes_in(REQUIREMENTS.read_text())
    return [wheel for wheel in folder.glob("*.whl") if hash_of(wheel) not in listed]


def write_lock(folder: Path, wheels: Iterable[Path]) -> None:
    """Write a folder's LOCK, and let the builder read what is there, whatever the umask here."""
    lines = []
    for wheel in sorted(wheels):
        name, version, _, _ = parse_wheel_filename(wheel.name)
        lines.append(f"{name}=={version} --hash=sha256:{hash_of(wheel)}\n")
    (folder / LOCK).write_text("".join(lines))
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)


def text_of(file: Path) -> str:
    """What a file holds; nothing where there is none."""
    return file.read_text() if file.is_file() else ""


def put_in_place(folder: Path, fresh: Path) -> None:
    """Put a finished folder into another's place. Killed in between, `recover` finds the old one."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Take the old folder again, if `put_in_place` was killed in between."""
    old = folder.with_name(f"{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def write_anew(file: Path, text: str) -> None:
    """Write a file that copies of this checkout (`dev/scratch_federation.py`) share, for this one only."""
    file.unlink(missing_ok=True)
    file.write_text(text)


def download(architecture: str, folder: Path, options: Iterable[str], total: float | None = None) -> None:
    """Fetch wheels for the image's Python and the engine's architecture, whatever runs here."""
    machine = MACHINES.get(architecture)
    if machine is None:
        raise core.Failure(f"The engine's machine is {architecture}: expected {' or '.join(MACHINES)}.")
    tags = [f"manylinux_{version}_{machine}" for version in GLIBC]
    # Names of the same from before the version stood in the tag.
    tags += [f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1")]
    command = [*core.pip("download"), "--implementation", "cp", "--python-version", base_image.PYTHON]
    command += [
        word for abi in (f"cp{base_image.PYTHON.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)
    ]
    command += [word for tag in tags for word in ("--platform", tag)]
    words = [*command, "--dest", str(folder), *options]
    process = progress.of_files(words, folder, "fetching", total, timeout=DOWNLOAD_TIMEOUT)
    core.must(process, "Fetching packages with pip")


def torch_sources() -> list[str]:
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
