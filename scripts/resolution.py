"""Let uv resolve an app's dependencies into a lock with hashes, in seconds, without installing a package.

uv first runs where no package's code runs (`uv.py`). If it has to build a package to read its dependencies,
it runs again where packages are built (`source_builds.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bridge.common import app_environment, versions
from bridge.common.app import BadApp
from bridge.common.app_environment import DESCRIPTION, LOCK
from scripts import app as apps
from scripts import base_image, core, indexes, locks, source_builds, uv, wheelhouse
from scripts.locks import Resolved

PREFERRED = ("torch==2.13.0+cpu", "torchvision==0.28.0")
"""Choices where an app leaves the version open, beside FLARE's flwr. They are known to work, and let apps
share environments."""

CUDA = re.compile(r"^(nvidia-(?!nccl)|cuda-|triton==)", re.MULTILINE)
"""Requirements of torch's CUDA build. XGBoost asks for nvidia-nccl-cu12 on every machine."""


def resolve(app: apps.App, *, gpu: bool = False, apt: Sequence[str] = (), sizes: bool = False) -> Resolved:
    """Let uv find the packages that an app asks for. Needs `prepare`.

    Args:
        app: the app.
        gpu: whether torch's CUDA build is wanted.
        apt: Debian packages that it needs.
        sizes: whether to ask for the wheels' sizes too, even if such an environment exists.

    Raises:
        core.UsageError: no packages fit together. The text has uv's explanation.
    """
    try:
        wanted = app_environment.requirements(app.pyproject)
        python = _python(app_environment.requires_python(app.pyproject), app)
    except BadApp as bad:
        raise core.UsageError(f"{app.folder}/{bad}.") from bad
    wanted = (*wanted, *_oldest(wanted))
    texts = {"wanted.in": "".join(f"{line}\n" for line in wanted)}
    # uv keeps the versions in this file, as far as they fit.
    texts[LOCK] = "".join(f"{line}\n" for line in preferred(gpu=gpu))
    common = ["--python", python, "--no-header", "--quiet", *backend(gpu=gpu)]
    made = _compile(texts, LOCK, ["--generate-hashes", "--no-annotate", *common], apt=apt)
    if made.code:
        raise core.UsageError(_no_lock(app, made.said))
    lock = locks.check(made.text) if made.by_packages else made.text
    if not gpu and (torch := re.search(r"^torch==([^ +]+) ", lock, re.MULTILINE)) and CUDA.search(lock):
        raise core.UsageError(_no_cpu_build(app, torch[1]))
    resolved = Resolved(app, lock, locks.packages(lock, ""), python, gpu, tuple(sorted(apt)))
    if not sizes and (uv.ENVIRONMENTS / resolved.name / DESCRIPTION).is_file():
        return resolved
    words = ["--format", "pylock.toml", "--no-deps", *common]
    listed = _compile({LOCK: lock}, "pylock.toml", words, apt=apt, builds=made.by_packages)
    return replace(resolved, packages=locks.packages(lock, listed.text))


def backend(*, gpu: bool) -> list[str]:
    """Return the words that let uv find torch's CPU build, unless the user says where packages are."""
    return [] if gpu or uv.sources().are_named else ["--torch-backend", "cpu"]


def preferred(*, gpu: bool) -> list[str]:
    """Return the requirements to use where an app leaves the version open."""
    (flwr,) = re.findall(r"^flwr==[^ ]+", wheelhouse.RUNTIME.requirements.read_text(), re.MULTILINE)
    return [flwr, *(line.split("+")[0] if gpu else line for line in PREFERRED)]


@dataclass(frozen=True)
class _Compiled:
    """The result of `uv pip compile`."""

    code: int
    said: str
    text: str
    """The file that it has written."""
    by_packages: bool
    """True if code of packages could write the file."""


def _compile(
    texts: Mapping[str, str],
    output: str,
    options: Sequence[str],
    *,
    apt: Sequence[str],
    builds: bool = False,
) -> _Compiled:
    """Run `uv pip compile`. If that takes a build, run it again where packages are built.

    Args:
        texts: the initial files, by name. uv reads the first.
        output: the file that it writes.
        options: its options.
        apt: the Debian packages that building takes.
        builds: whether something is known to need a build.
    """
    for building in (True,) if builds else (False, True):
        # Each run gets a new folder: nothing else reads what packages' code has left in one.
        with uv.scratch() as folder:
            for name, text in texts.items():
                (folder / name).write_text(text)
            inside = uv.as_mounted(folder)
            words = ["pip", "compile", f"{inside}/{next(iter(texts))}", "--output-file", f"{inside}/{output}"]
            words += options
            if building:
                done = source_builds.call(words, folder, packages=apt)
            else:
                done = uv.call(words, folder=folder)
            if done.returncode == 0:
                with locks.open_plain(folder / output) as file:
                    text = file.read(locks.LIMIT).decode(errors="replace")
                return _Compiled(0, done.stdout, text, building)
        if not source_builds.NOT_BUILT.search(done.stdout):
            break
    return _Compiled(done.returncode, done.stdout, "", building)


def _python(wanted: str, app: apps.App) -> str:
    """Return the interpreter of the base image for an app, in uv's words.

    Raises:
        core.UsageError: the image has none that fits.
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        usual = SpecifierSet(wanted)
    except InvalidSpecifier as error:
        raise core.UsageError(f"{app.folder}/pyproject.toml: requires-python: {error}.") from None
    # With any patch number.
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
    return (
        f"The packages that {asked} asks for cannot be installed together ({oldest}). uv "
        f"says:\n{said.strip()}"
    )


def _oldest(wanted: Sequence[str]) -> Iterator[str]:
    """Yield the lowest allowed Flower, since uv may otherwise go back to one that does not run here."""
    for name in versions.DISTRIBUTIONS:
        if any(re.match(rf"{name}(?![\w.-])", line) for line in wanted):
            yield f"{name}>={versions.OLDEST}"


def _no_cpu_build(app: apps.App, torch: str) -> str:
    return (
        f"{app.name} would get the CUDA build of torch {torch}, several GB with what it needs. For sites "
        f"with GPUs: build --gpu. {indexes.way_to_torch(torch)}"
    )
