"""What apps need on top of the runtime image, and MLflow: read from requirements, and fetched."""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from scripts import base_image, core, wheelhouse

APPS = core.HOUSE / "apps"
"""requirements.txt and wheels of what apps need on top; `build --app` adds to it."""
MLFLOW = core.HOUSE / "mlflow"
"""The same of MLflow's server, complete."""
MLFLOW_REQUIREMENTS = core.ROOT / "images" / "requirements-mlflow.txt"
MLFLOW_SIZE = 200e6
"""Bytes of its wheels, for a bar."""
MLFLOW_CLIENT = "mlflow-skinny==3.17.2"
"""What a server's job needs to tell MLflow of its points."""


def lacking(app: Path) -> list[str]:
    """The requirements in an app's pyproject.toml that the image does not meet by itself.

    Extras of a package that the image has are ignored: `flwr[simulation]` is what every template says, and no
    simulation runs in an image.

    Raises:
        core.UsageError: no such file, not TOML, no valid requirement, or one that contradicts the image.
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
    has = wheelhouse.image_packages()
    for line in lines:
        try:
            requirement = Requirement(str(line))
        except InvalidRequirement as error:
            raise core.UsageError(f"{file}: '{line}' is no requirement: {error}.") from None
        if requirement.marker and not requirement.marker.evaluate(
            {"python_version": base_image.PYTHON, "extra": ""}
        ):
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
    wheelhouse.download(architecture, fresh / "wheels", options, MLFLOW_SIZE)
    wheelhouse.write_lock(fresh / "wheels", ())  # The list has the hashes.
    (fresh / "requirements.txt").write_text(wanted)
    wheelhouse.put_in_place(MLFLOW, fresh)


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
    wheelhouse.recover(wheels)
    wheels.mkdir(parents=True, exist_ok=True)
    before = file.read_text().splitlines() if file.exists() else []
    wanted = sorted({*before, *also, *(line for app in apps for line in lacking(app))})
    if wanted and (wanted != before or not (wheels / wheelhouse.LOCK).is_file()):
        core.say(f"  fetching what the apps need on top: {', '.join(wanted)}")
        _fetch_apps(wanted, wheels, architecture)
    elif not (wheels / wheelhouse.LOCK).is_file():
        wheelhouse.write_lock(wheels, ())
    if wanted != before or not file.exists():
        wheelhouse.write_anew(file, "".join(f"{line}\n" for line in wanted))
    return wanted


def _fetch_apps(wanted: list[str], wheels: Path, architecture: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        # The image's own packages stay as they are.
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text(
            "".join(f"{name}=={version}\n" for name, version in wheelhouse.image_packages().items())
        )
        fresh = Path(scratch) / "wheels"
        options = [
            "--constraint",
            str(constraints),
            "--find-links",
            str(wheelhouse.WHEELS),
            "--find-links",
            str(wheels),
        ]
        wheelhouse.download(architecture, fresh, [*options, *wheelhouse.torch_sources(), *wanted])
        ours = {path.name for path in wheelhouse.WHEELS.glob("*.whl")}
        kept = wheels.with_name(f"{wheels.name}.new")
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        for wheel in fresh.glob("*.whl"):
            if wheel.name not in ours:
                shutil.move(wheel, kept / wheel.name)
        wheelhouse.write_lock(kept, kept.glob("*.whl"))
        wheelhouse.put_in_place(wheels, kept)


def check_wheels() -> None:
    """Refuse wheels that are not those that were fetched. pip checks them once more in the build.

    Raises:
        core.Failure: with the names of the wheels.
    """
    listed = wheelhouse.REQUIREMENTS.read_text()
    for folder, known in (
        (wheelhouse.WHEELS, listed),
        (APPS / "wheels", ""),
        (MLFLOW / "wheels", wheelhouse.text_of(MLFLOW_REQUIREMENTS)),
    ):
        hashes = wheelhouse.hashes_in(known + wheelhouse.text_of(folder / wheelhouse.LOCK))
        foreign = sorted(
            wheel.name for wheel in folder.glob("*.whl") if wheelhouse.hash_of(wheel) not in hashes
        )
        if foreign:
            raise core.Failure(
                f"These wheels in {folder} are not what was fetched, or nobody fetched them: "
                f"{', '.join(foreign)}. Remove them, and `./flowerbed build` fetches what is missing.",
                wheels=foreign,
            )
