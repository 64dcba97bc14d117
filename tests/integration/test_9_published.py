"""A federation on a runtime image that was not built in its checkout: a local one stands for a release's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dev.scratch_federation import ScratchFederation, make
from scripts import core, engine, ownership, published
from scripts.core import ROOT
from tests.federation import PROJECT

APP = ROOT / "tests" / "apps" / "numpy-add"


@dataclass(frozen=True)
class Release:
    """An image, and the folder of the release's files."""

    image: str
    files: Path


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """Build the image as a release does, without pushing it."""
    out = tmp_path_factory.mktemp("release")
    words = [sys.executable, "-P", "-m", "dev.release", "image", f"{PROJECT}-published", str(out)]
    subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=600)
    image = f"{PROJECT}-published:{core.version()}-{engine.ask().architecture}"
    yield Release(image, out)
    subprocess.run([engine.docker(), "image", "rm", image], capture_output=True, check=False)


@pytest.fixture(scope="module")
def federation(released: Release) -> Iterator[ScratchFederation]:
    """Build and start a federation on that image."""
    made = make(f"{PROJECT}published", f"{PROJECT}published")
    clean_up = ("down", "--volumes", "--remove-orphans", "--rmi", "local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWERBED_RUNTIME", released.image)
        made.must("data")
        made.must("provision")
        made.must("build", timeout=600)
        made.must("build", "--app", str(APP), timeout=600)
    try:
        made.must("up")
        yield made
    finally:
        images = json.loads(made.compose("config", "--format", "json"))["services"].values()
        made.compose(*clean_up, check=False)
        names = [*{service["image"] for service in images}, f"{PROJECT}published-runtime:dev"]
        subprocess.run([engine.docker(), "image", "rm", *names], capture_output=True, check=False)


def layers(image: str) -> list[str]:
    found = engine.image(image)
    assert found is not None
    return list(found["RootFS"]["Layers"])


def test_every_image_begins_with_the_layers_of_the_published_one(
    federation: ScratchFederation, released: Release
) -> None:
    wanted = layers(released.image)
    assert layers(f"{PROJECT}published-runtime:dev") == wanted
    for service in ("server", "site-1", "admin"):
        found = layers(f"{PROJECT}published-{service}:dev")
        assert found[: len(wanted)] == wanted and len(found) == len(wanted) + 1, "the kit is the last layer"


def test_the_published_image_names_its_version_and_no_folder(
    federation: ScratchFederation, released: Release
) -> None:
    assert engine.label(released.image, published.VERSION) == core.version()
    assert not engine.label(released.image, ownership.LABEL)
    assert engine.label(f"{PROJECT}published-runtime:dev", ownership.LABEL) == str(federation.root)


def test_a_job_completes_on_it(federation: ScratchFederation) -> None:
    job = federation.must("submit", str(APP), "--wait", timeout=300)
    assert job["status"] == "FINISHED:COMPLETED"


def test_the_list_of_packages_is_that_of_the_running_image(
    federation: ScratchFederation, released: Release
) -> None:
    (file,) = released.files.glob("flowerbed-runtime-*.cdx.json")
    components = json.loads(file.read_text())["components"]
    listed = {part["purl"].partition("?")[0] for part in components}
    flwr = federation.exec("site-1", "python", "-c", "import flwr; print(flwr.__version__)").strip()
    libc = federation.exec("site-1", "dpkg-query", "--show", "--showformat=${Version}", "libc6")
    assert f"pkg:pypi/flwr@{flwr}" in listed and f"pkg:deb/debian/libc6@{libc.replace('+', '%2B')}" in listed
    assert all(part.get("hashes") for part in components if part["purl"].startswith("pkg:pypi/"))
    assert len(components) > 150
