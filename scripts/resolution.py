"""uv resolves what an app asks for into a lock with hashes: seconds, and no package is installed.

First where no package's code runs (`uv.py`). Where uv has to build a package to know what it needs, uv is run
again where packages are built (`source_builds.py`).
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
"""What is taken where an app leaves it open, beside FLARE's own flwr: known to work. So apps share
environments."""

CUDA = re.compile(r"^(nvidia-(?!nccl)|cuda-|triton==)", re.MULTILINE)
"""What torch's CUDA build asks for. XGBoost asks for nvidia-nccl-cu12, whatever it runs on."""


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
    wanted = (*wanted, *_oldest(wanted))
    texts = {"wanted.in": "".join(f"{line}\n" for line in wanted)}
    # uv keeps what stands there already, as far as it fits.
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
    """The words that let uv find torch's CPU build, unless the user says where packages are."""
    return [] if gpu or uv.sources().are_named else ["--torch-backend", "cpu"]


def preferred(*, gpu: bool) -> list[str]:
    """What is taken where an app leaves it open."""
    (flwr,) = re.findall(r"^flwr==[^ ]+", wheelhouse.RUNTIME.requirements.read_text(), re.MULTILINE)
    return [flwr, *(line.split("+")[0] if gpu else line for line in PREFERRED)]


@dataclass(frozen=True)
class _Compiled:
    """What `uv pip compile` has come to."""

    code: int
    said: str
    text: str
    """The file that it has written."""
    by_packages: bool
    """Whether code of packages could write it."""


def _compile(
    texts: Mapping[str, str],
    output: str,
    options: Sequence[str],
    *,
    apt: Sequence[str],
    builds: bool = False,
) -> _Compiled:
    """Run `uv pip compile`, and where that takes a build, again where packages are built.

    Args:
        texts: the files that are there at first, by name. uv reads the first.
        output: the file that it writes.
        options: its own.
        apt: the Debian packages that building takes.
        builds: whether it is known that something has to be built.
    """
    for building in (True,) if builds else (False, True):
        # Each in a new folder: what packages' code has left in one, nothing else looks at.
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
        f"with GPUs: build --gpu. {indexes.way_to_torch(torch)}"
    )
