"""The environments of apps, on the host: resolved and installed by uv, each named by the hash of its lock.

What an environment is stands in `bridge/common/app_environment.py`, how uv is called in `uv.py`. One is made
in these steps:

1. uv resolves what the app's pyproject.toml asks for into a lock with hashes: seconds, and no package is
   installed.
2. The lock's hash is the name. If that environment is there, it serves this app too.
3. uv installs the lock.
4. What the app imports is imported once, in a container without network.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge.common import app_environment, versions
from bridge.common.app import BadApp
from bridge.common.app_environment import DESCRIPTION, LOCK, SYSTEM, VENV, AppEnvironment
from scripts import app as apps
from scripts import (
    app_imports,
    base_image,
    core,
    engine,
    images,
    locks,
    progress,
    shared_objects,
    uv,
    wheelhouse,
)
from scripts.locks import Resolved

PREFERRED = ("torch==2.13.0+cpu", "torchvision==0.28.0")
"""What is taken where an app leaves it open, beside FLARE's own flwr: known to work. So apps share
environments."""

CUDA = re.compile(r"^(nvidia-(?!nccl)|cuda-|triton==)", re.MULTILINE)
"""What torch's CUDA build asks for. XGBoost asks for nvidia-nccl-cu12, whatever it runs on."""

UNPACKED = 4.0
"""Bytes on the disk for one byte of a wheel."""

SPARE = 1e9
"""Bytes that stay free on the disk."""

IMAGES = core.ROOT / "images"

APT = """
mkdir -p /tmp/archives/partial
apt-get update -q
apt-get install -qy --no-install-recommends --download-only -o Dir::Cache::archives=/tmp/archives "$@"
for file in /tmp/archives/*.deb; do dpkg-deb -x "$file" "$FOLDER"; done
chown -R --reference="$FOLDER/.." "$FOLDER"
"""
"""Unpacks Debian packages, and what they need beside the base image, into a folder."""


def of_app(app: apps.App, *, gpu: bool = False) -> AppEnvironment | None:
    """The environment that was made for an app, if there is one. Nothing is resolved."""
    try:
        found = app_environment.find(app.pyproject, uv.ENVIRONMENTS, gpu=gpu)
    except BadApp as bad:
        raise core.UsageError(f"{app.folder}/{bad}.") from bad
    return found if found is not None and found.facts["gpu"] == gpu else None


def prepare() -> None:
    """Get what uv runs in: the base image, and uv itself."""
    base_image.ensure()
    wheelhouse.RUNTIME.fill(engine.ask().architecture)
    uv.prepare()


def resolve(app: apps.App, *, gpu: bool = False, apt: Sequence[str] = (), sizes: bool = False) -> Resolved:
    """Let uv find the packages that an app asks for. Needs `prepare`.

    Args:
        app: the app.
        gpu: whether torch's CUDA build is wanted.
        apt: Debian packages that it needs.
        sizes: whether those of the wheels are asked for too, though there is such an environment.

    Raises:
        core.UsageError: there are none that fit together; with uv's explanation.
    """
    try:
        wanted = app_environment.requirements(app.pyproject)
        python = _python(app_environment.requires_python(app.pyproject), app)
    except BadApp as bad:
        raise core.UsageError(f"{app.folder}/{bad}.") from bad
    scratch = uv.ENVIRONMENTS / f".resolving-{app_environment.key(app.pyproject)[:12]}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        (scratch / "wanted.in").write_text("".join(f"{line}\n" for line in (*wanted, *_oldest(wanted))))
        # uv keeps what stands there already, as far as it fits.
        (scratch / LOCK).write_text("".join(f"{line}\n" for line in preferred(gpu=gpu)))
        backend = [] if gpu or uv.sources().are_named else ["--torch-backend", "cpu"]
        inside = f"{uv.MOUNTED}/{scratch.name}"
        common = ["--python", python, "--no-header", "--quiet", *backend]
        files = [f"{inside}/wanted.in", "--output-file", f"{inside}/{LOCK}", "--generate-hashes"]
        done = uv.call(["pip", "compile", *files, "--no-annotate", *common])
        if done.returncode:
            raise core.UsageError(_no_lock(app, done.stdout))
        lock = (scratch / LOCK).read_text()
        if not gpu and (torch := re.search(r"^torch==([^ +]+) ", lock, re.MULTILINE)) and CUDA.search(lock):
            raise core.UsageError(_no_cpu_build(app, torch[1]))
        resolved = Resolved(app, lock, locks.packages(lock, ""), python, gpu, tuple(sorted(apt)))
        if not sizes and (uv.ENVIRONMENTS / resolved.name / DESCRIPTION).is_file():
            return resolved
        files = [f"{inside}/{LOCK}", "--output-file", f"{inside}/pylock.toml", "--format", "pylock.toml"]
        done = uv.call(["pip", "compile", *files, "--no-deps", *common])
        pylock = (scratch / "pylock.toml").read_text() if done.returncode == 0 else ""
        return replace(resolved, packages=locks.packages(lock, pylock))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def preferred(*, gpu: bool) -> list[str]:
    """What is taken where an app leaves it open."""
    (flwr,) = re.findall(r"^flwr==[^ ]+", wheelhouse.RUNTIME.requirements.read_text(), re.MULTILINE)
    return [flwr, *(line.split("+")[0] if gpu else line for line in PREFERRED)]


def make(resolved: Resolved) -> dict[str, Any]:
    """Install what was resolved, unless it is there; then it is the app's. Returns its description.

    Raises:
        core.Failure: a package cannot be had or built, or the disk is too small.
        core.UsageError: the app imports what it does not ask for, or needs a library that is not there.
    """
    folder = uv.ENVIRONMENTS / resolved.name
    described = folder / DESCRIPTION
    facts: dict[str, Any] = json.loads(described.read_text()) if described.is_file() else {}
    if facts:
        facts = serve(resolved.app, folder, facts)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            facts = _install(resolved, folder)
            notes = _missing_libraries(folder)
            facts = serve(resolved.app, folder, facts)
        except BaseException:
            # Without a description nobody would see it, and remove it.
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for note in notes:
            core.say(f"  Note: {note}")
    key = app_environment.key(resolved.app.pyproject)
    # An earlier one that was made for the same stays, and is no more the app's.
    for other in app_environment.every(uv.ENVIRONMENTS):
        if other.name != resolved.name and key in other.facts["keys"] and other.facts["gpu"] == resolved.gpu:
            rest = [known for known in other.facts["keys"] if known != key]
            _describe(uv.ENVIRONMENTS / other.name, {**other.facts, "keys": rest})
    return {"name": resolved.name, **facts}


def serve(app: apps.App, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Let an environment be this app's too; returns its description.

    What no app before has imported is imported now.

    Raises:
        core.UsageError: the app imports what it does not ask for, or needs a library that is not there.
    """
    known = facts.get("imports", ())
    imported = app_imports.of_app(app.pyproject, app.files)
    if new := [module for module in imported if module not in known]:
        for note in _try(app, folder, facts, new):
            core.say(f"  Note: {note}")
    facts = {
        **facts,
        "imports": sorted({*known, *imported}),
        "keys": sorted({*facts["keys"], app_environment.key(app.pyproject)}),
        "apps": sorted({*facts["apps"], f"{app.name} {app.version}".strip()}),
    }
    _describe(folder, facts)
    return facts


def remove(name: str) -> int:
    """Remove an environment; returns the bytes that it took. What others share stays theirs."""
    folder = uv.ENVIRONMENTS / name
    # First the description: without it there is no environment.
    (folder / DESCRIPTION).unlink(missing_ok=True)
    size = size_of(folder)
    shutil.rmtree(folder)
    # Else its files would live on there. What another environment needs again is fetched again.
    shutil.rmtree(uv.ENVIRONMENTS / uv.CACHE, ignore_errors=True)
    uv.prepare()
    return size


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _install(resolved: Resolved, folder: Path) -> dict[str, Any]:
    _check_disk(resolved)
    start = time.monotonic()
    total = len(resolved.packages)
    core.say(f"  installing {total} packages ({core.in_words(resolved.size)} to fetch, if none is here)")
    inside = f"{uv.MOUNTED}/{folder.name}"
    folder.mkdir()
    (folder / LOCK).write_text(resolved.lock)
    # For the containers' user too, whatever the umask is.
    folder.chmod(0o755)
    (folder / LOCK).chmod(0o644)
    libraries = _debian_packages(resolved.apt, folder) if resolved.apt else []
    made = uv.call(["venv", "--quiet", "--python", resolved.python, f"{inside}/{VENV}"])
    if made.returncode:
        core.fail("Making an environment with uv", made.stdout)
    interpreter = f"{inside}/{VENV}/bin/python"
    words = ["pip", "sync", "--python", interpreter, "--compile-bytecode", f"{inside}/{LOCK}"]
    words += [] if " @ " in resolved.lock else ["--require-hashes"]
    words += [] if resolved.gpu or uv.sources().are_named else ["--torch-backend", "cpu"]
    with progress.Bar("installing") as bar:
        came = 0

        def tell(line: str) -> None:
            nonlocal came
            what = line.split(" ", 1)[0].strip()
            came += what in ("Downloaded", "Built")
            if what in ("Downloading", "Building", "Bytecode"):
                bar.at(came, line.strip())

        done = uv.call(words, tell=tell, compiler=resolved.apt or None)
    if done.returncode:
        if "No space left on device" in done.stdout:
            raise core.Failure(
                "The disk became full while packages were installed. Free some, and try again."
            )
        core.fail(f"Installing the packages of {resolved.app.name} with uv", done.stdout)
    packages = _site_packages(folder)
    if (packages / "torchvision").is_dir():
        mended = uv.python(
            interpreter, IMAGES / "mend_torchvision.py", _as_mounted(packages, folder), writes=True
        )
        core.must(mended, "Making torchvision work")
    size = size_of(folder)
    core.say(f"  {total} packages, {core.in_words(size)}, in {time.monotonic() - start:.0f} s")
    return {
        "flwr": resolved.flwr,
        "python": packages.parent.name.removeprefix("python"),
        "architecture": engine.ask().architecture,
        "gpu": resolved.gpu,
        "apt": list(resolved.apt),
        "libraries": libraries,
        "packages": total,
        "bytes": size,
        "made": time.time(),
        "apps": [],
        "keys": [],
    }


def _debian_packages(names: Sequence[str], folder: Path) -> list[str]:
    """Unpack Debian packages into the environment; returns its folders with libraries."""
    target = folder / SYSTEM
    target.mkdir()
    target.chmod(0o755)
    script = f"FOLDER={_as_mounted(target, folder)}{APT}"
    done = uv.as_root(script, *names)
    if done.returncode:
        core.fail(f"Fetching the Debian packages {', '.join(names)}", done.stderr.decode(errors="replace"))
    folders = {path.parent for path in target.rglob("*.so*") if "python" not in path.as_posix()}
    return sorted(path.relative_to(target).as_posix() for path in folders)


def _try(app: apps.App, folder: Path, facts: Mapping[str, Any], modules: Sequence[str]) -> list[str]:
    """Import modules; returns what may be wrong. Raises `core.UsageError` for what is."""
    system = [f"{uv.MOUNTED}/{folder.name}/{SYSTEM}/{path}" for path in facts["libraries"]]
    variables = {"LD_LIBRARY_PATH": ":".join(system)} if system else {}
    interpreter = f"{uv.MOUNTED}/{folder.name}/{VENV}/bin/python"
    done = uv.python(interpreter, IMAGES / "try_imports.py", *modules, variables=variables)
    failed = json.loads(core.must(done, f"Importing what {app.name} imports"))
    notes, wrong, needed = [], [], set(facts["apt"])
    for module, kind, text in failed:
        library = re.match(r"(lib\S+): cannot open shared object file", text)
        absent = re.match(r"No module named '([^']+)'", text)
        if library:
            package = shared_objects.debian_package(library[1])
            needed.add(package)
            apt = " ".join(f"--apt {name}" for name in sorted(needed))
            wrong.append(
                f"{module} needs the system library {library[1]}, in Debian's package {package}. Name it: "
                f"./flowerbed build --app {app.folder} {apt}"
            )
        elif kind == "ModuleNotFoundError" and absent and absent[1].split(".")[0] == module.split(".")[0]:
            wrong.append(
                f"the app imports {module}, and none of its packages has that. Add what brings it to "
                f"dependencies in {app.folder}/pyproject.toml"
            )
        else:
            notes.append(f"importing {module} fails here: {kind}: {text.splitlines()[0] if text else ''}")
    if wrong:
        raise core.UsageError("\n".join([*wrong[:-1], f"{wrong[-1]}."]), apt=sorted(needed))
    return notes


def _missing_libraries(folder: Path) -> list[str]:
    listed = uv.as_root("ldconfig -p | sed -n 's/^\\t\\([^ ]*\\) .*/\\1/p'").stdout.decode().split()
    beside = [path.name for path in (folder / SYSTEM).rglob("*.so*")]
    found = shared_objects.missing(_site_packages(folder), [*listed, *beside])
    return [
        f"{', '.join(sorted(owners))} has parts that need {library} (Debian's package "
        f"{shared_objects.debian_package(library)}: --apt), which only matters if the app uses them"
        for library, owners in sorted(found.items())
    ]


def _describe(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the description, at once. Nobody knows the new file's name, so no package's build code, which can
    write here, has a link in its place."""
    descriptor, fresh = tempfile.mkstemp(dir=folder)
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(dict(facts), indent=1) + "\n")
        os.fchmod(descriptor, 0o644)
    Path(fresh).replace(folder / DESCRIPTION)


def _python(wanted: str, app: apps.App) -> str:
    """The interpreter of the base image that an app takes: what uv is told.

    Raises:
        core.UsageError: it has none.
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        usual = SpecifierSet(wanted)
    except InvalidSpecifier as error:
        raise core.UsageError(f"{app.folder}/pyproject.toml: requires-python: {error}.") from None
    # Whatever its last number is.
    if not wanted or any(usual.contains(f"{base_image.PYTHON}.{patch}") for patch in range(30)):
        return base_image.PYTHON
    done = uv.call(["python", "find", "--no-project", wanted])
    if done.returncode:
        raise core.UsageError(
            f"{app.folder}/pyproject.toml asks for Python {wanted}, and the base image {base_image.name()} "
            f"has {base_image.PYTHON}. Build from an image that has both (FLOWERBED_BASE=IMAGE), or change "
            "requires-python."
        )
    return done.stdout.strip().splitlines()[-1]


def _no_lock(app: apps.App, said: str) -> str:
    asked = f"{app.folder}/pyproject.toml"
    oldest = f"flwr: {versions.OLDEST} or newer"
    return f"The packages that {asked} asks for cannot be had together ({oldest}). uv says:\n{said.strip()}"


def _oldest(wanted: Sequence[str]) -> Iterator[str]:
    """The Flower that has to be, else uv may go back to one that does not run here."""
    for name in versions.DISTRIBUTIONS:
        if any(re.match(rf"{name}(?![\w.-])", line) for line in wanted):
            yield f"{name}>={versions.OLDEST}"


def _no_cpu_build(app: apps.App, torch: str) -> str:
    return (
        f"{app.name} would get the CUDA build of torch {torch}, several GB with what it needs. For sites "
        "with GPUs: build --gpu. For the CPU build, show uv the way: "
        "UV_INDEX=https://download.pytorch.org/whl/cpu, or UV_FIND_LINKS=FOLDER for a folder that has it."
    )


def _check_disk(resolved: Resolved) -> None:
    needed = resolved.size * UNPACKED + SPARE
    free = shutil.disk_usage(uv.ENVIRONMENTS).free
    if free < needed:
        raise core.Failure(
            f"The disk is too small for the environment of {resolved.app.name}: it needs about "
            f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free at {uv.ENVIRONMENTS}. ./flowerbed apps "
            "shows which environments there are, and removes one.",
            needed_gb=round(needed / 1e9, 1),
            free_gb=round(images.free_gb(uv.ENVIRONMENTS), 1),
        )


def _site_packages(folder: Path) -> Path:
    (packages,) = (folder / VENV).glob("lib/python3*/site-packages")
    return packages


def _as_mounted(path: Path, folder: Path) -> str:
    """A path in an environment, as a container knows it."""
    return f"{uv.MOUNTED}/{folder.name}/{path.relative_to(folder).as_posix()}"
