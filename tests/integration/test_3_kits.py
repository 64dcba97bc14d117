"""One runtime image for all: kits baked in as the last layer, or mounted, and no key that stays behind."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.scratch_federation import Project
from scripts import images, kit_layer
from tests.federation import PROJECT, Federation

SITE = "site-2"
GUEST = "guest@flowerbed.example"


def inspect(name: str) -> dict[str, Any]:
    shown = subprocess.run(["docker", "inspect", name], capture_output=True, check=True)
    return dict(json.loads(shown.stdout)[0])


def test_a_participants_image_is_the_runtime_and_one_small_layer(federation: Federation) -> None:
    runtime = inspect(f"{PROJECT}-runtime:dev")
    for service in ("server", SITE, "admin"):
        image = inspect(f"{PROJECT}-{service}:dev")
        layers = image["RootFS"]["Layers"]
        assert layers[:-1] == runtime["RootFS"]["Layers"], service
        assert 0 < image["Size"] - runtime["Size"] < 200_000, "a kit has some KB"
        assert image["Config"]["User"] == "10001:10001"
        assert image["Config"]["Entrypoint"] == runtime["Config"]["Entrypoint"]


def laid_out(kit: Path, folder: Path, way: str) -> dict[str, Any]:
    """Lay a kit out below `folder`, and return how the service mounts it."""
    with tarfile.open(fileobj=io.BytesIO(kit_layer.pack(kit))) as archive:
        archive.extractall(folder, filter="fully_trusted")
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            os.chown(path, kit_layer.USER, kit_layer.USER)
    bind = {"type": "bind", "read_only": True}
    files = [path for path in sorted((folder / "kit").rglob("*")) if path.is_file() or path.is_symlink()]
    if way == "folder":
        return {"volumes": [{**bind, "source": str(folder / "kit"), "target": "/kit"}]}
    for path in files:
        # Neither kind of secret has links to other places.
        if path.is_symlink() and (plain := folder / "renewed" / path.name).exists():
            path.unlink()
            path.write_bytes(plain.read_bytes())
            os.chown(path, kit_layer.USER, kit_layer.USER)
    if way == "secrets":
        names = {f"k{number}": path for number, path in enumerate(files) if path.is_file()}
        mounted = [
            {"source": name, "target": f"/kit/{path.relative_to(folder / 'kit')}"}
            for name, path in names.items()
        ]
        return {"secrets": mounted, "files": {name: {"file": str(path)} for name, path in names.items()}}
    # As kubelet does: files of root's that the group may read, in a folder that one link names.
    volume, version = folder / "volume", folder / "volume" / "..2026_11_28"
    for name in kit_layer.FOLDERS:
        (version / name).mkdir(parents=True)
        for path in (folder / "kit" / name).iterdir():
            if path.is_file():
                (version / name / path.name).write_bytes(path.read_bytes())
                (version / name / path.name).chmod(0o440)
                os.chown(version / name / path.name, 0, kit_layer.USER)
        (volume / name).symlink_to(f"..data/{name}")
    (volume / "..data").symlink_to(version.name)
    for path in (volume, version, *(version / name for name in kit_layer.FOLDERS)):
        path.chmod(0o755)
    return {"volumes": [{**bind, "source": str(volume), "target": "/kit"}]}


@pytest.fixture(scope="module")
def put_back(federation: Federation) -> Iterator[None]:
    yield
    federation.compose("up", "--detach", "--wait", "--no-deps", SITE)


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("way", ["folder", "secrets", "kubernetes"])
def test_the_runtime_runs_with_a_mounted_kit(federation: Federation, tmp_path: Path, way: str) -> None:
    """The image is named by its ID, which is a digest, and holds no kit."""
    runtime = inspect(f"{PROJECT}-runtime:dev")["Id"]
    tmp_path.chmod(0o755)
    given = laid_out(federation.kits / SITE, tmp_path / "site", way)
    files = given.pop("files", None)
    content: dict[str, Any] = {"services": {SITE: {"image": runtime, **given}}}
    if files:
        content["secrets"] = files
    override = tmp_path / "mounted.yaml"
    override.write_text(yaml.safe_dump(content))
    federation.compose(
        "-f", "compose.yaml", "-f", str(override), "up", "--detach", "--wait", "--no-deps", SITE
    )
    assert inspect(federation.container(SITE))["Image"] == runtime
    assert "site-2" in {site["name"] for site in federation.must("status")["sites"]}
    said = subprocess.run(
        ["docker", "exec", federation.container(SITE), "sh", "-c", "echo x > /kit/startup/x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode != 0 and "Read-only file system" in said.stderr
    alone = ("--sites", SITE, "--run-config", "min-available-clients=1")
    job = federation.submit("numpy-add", "--rounds", "1", *alone)
    assert federation.must("wait", job)["status"] == "FINISHED:COMPLETED"


def test_no_key_of_a_removed_participant_stays_behind(federation: Federation) -> None:
    """Neither in an image, an earlier kit, nor the builder's cache: the engine's whole folder is searched."""
    storage = images.storage()
    assert storage is not None, "the engine is on this machine"

    def guest(project: Project) -> None:
        project["participants"].append({"name": GUEST, "type": "admin", "org": "flowerbed", "role": "member"})

    def leave(project: Project) -> None:
        project["participants"] = [one for one in project["participants"] if one["name"] != GUEST]

    def places(key: bytes) -> list[Path]:
        folders = (storage, federation.root / "workspace" / PROJECT)
        # Other containers come and go meanwhile, which `walk` does not mind.
        found = [
            Path(here, "client.key")
            for top in folders
            for here, _, files in os.walk(top)
            if "client.key" in files
        ]
        return [path for path in found if path.is_file() and path.read_bytes() == key]

    federation.edit(guest)
    federation.must("provision")
    federation.must("build")
    key = (federation.kits / GUEST / "startup" / "client.key").read_bytes()
    assert len(places(key)) == 2, "in the kit and in the image's layer, and nowhere else"
    federation.edit(leave)
    federation.must("provision")
    federation.must("build")
    federation.must("up")
    assert places(key) == []
