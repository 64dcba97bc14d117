"""A kit in a container: its layout, its mark, and the newest certificates beside it."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from provisioning import renewed
from scripts import core, kit_layer, leftovers
from tests.unit.faking import Authority, Program, inspected


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    kit = tmp_path / "prod_00" / "server"
    Authority().kit(kit, "server")
    (kit / "startup" / "fed_server.json").write_text("{}")
    (kit / "startup" / "sub_start.sh").write_text("#!/bin/sh\n")
    (kit / "local").mkdir()
    (kit / "local" / "resources.json.default").write_text("{}")
    (kit / "readme.txt").write_text("for people")
    return kit


def test_keys_are_files_of_their_reader_and_certificates_are_links(kit: Path) -> None:
    archive = tarfile.open(fileobj=io.BytesIO(kit_layer.pack(kit)))  # noqa: SIM115
    found = {entry.name: entry for entry in archive}
    assert all((entry.uid, entry.gid) == (10001, 10001) for entry in found.values())
    modes = {name: oct(entry.mode) for name, entry in found.items() if not entry.issym()}
    assert modes == {
        "renewed": "0o755",
        "kit": "0o700",
        "kit/startup": "0o700",
        "kit/local": "0o700",
        "kit/startup/fed_server.json": "0o400",
        "kit/startup/server.key": "0o400",
        "kit/startup/sub_start.sh": "0o500",
        "kit/local/resources.json.default": "0o400",
        "renewed/server.crt": "0o444",
        "renewed/rootCA.pem": "0o444",
    }
    assert {name: entry.linkname for name, entry in found.items() if entry.issym()} == {
        "kit/startup/server.crt": "/renewed/server.crt",
        "kit/startup/rootCA.pem": "/renewed/rootCA.pem",
        "kit/local/custom": "/apps",
        "kit/transfer": "/workspace/transfer",
    }
    (kit / "startup" / "fed_server.json").unlink()
    assert b"/apps" not in kit_layer.pack(kit), "only the server has deployed apps"


def test_a_new_certificate_needs_no_new_image_and_a_new_key_does(kit: Path) -> None:
    before = kit_layer.mark(kit)
    (kit / "startup" / "server.crt").write_text("a newer one")
    assert kit_layer.mark(kit) == before
    (kit / "startup" / "server.key").write_text("another one")
    assert kit_layer.mark(kit) != before


def test_an_image_with_the_same_kit_on_the_same_runtime_stays(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = Program(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(docker.folder))
    runtime = json.loads(inspected())
    runtime[0]["Id"] = "sha256:1"
    docker.answer("image inspect runtime", out=json.dumps(runtime))
    labels = {kit_layer.KIT: kit_layer.mark(kit), kit_layer.RUNTIME: "sha256:1"}

    def made(**changed: str) -> bool:
        docker.answer("image inspect image", out=inspected(**{**labels, **changed}))
        before = len(docker.calls)
        kit_layer.bake(kit, "runtime", "image")
        return any(call.startswith("commit") for call in docker.calls[before:])

    assert not made()
    assert made(**{kit_layer.KIT: "another"})
    assert made(**{kit_layer.RUNTIME: "sha256:0"})


def test_a_layer_that_cannot_be_made_leaves_no_container(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = Program(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(docker.folder))
    docker.answer("cp -", code=1, err="no space left on device\n")
    with pytest.raises(core.Failure, match="Building image failed"):
        kit_layer.bake(kit, "runtime", "image")
    assert "rm c0ffee" in docker.calls and not any(call.startswith("commit") for call in docker.calls)


def test_the_newest_certificates_are_beside_the_kits(kit: Path, tmp_path: Path) -> None:
    renewed.write(tmp_path, [kit])
    folder = tmp_path / "renewed" / "server"
    assert {path.name for path in folder.iterdir()} == {"server.crt", "rootCA.pem"}, "and no key"
    number = (folder / "rootCA.pem").stat().st_ino
    (kit / "startup" / "server.crt").write_text("a newer one")
    (tmp_path / "renewed" / "site-9").mkdir()
    (tmp_path / "renewed" / "site-9" / "client.crt").touch()
    renewed.write(tmp_path, [kit])
    assert (folder / "server.crt").read_text() == "a newer one"
    assert (folder / "rootCA.pem").stat().st_ino == number, "what did not change is not written"
    assert (tmp_path / "renewed" / "site-9").is_dir(), "its container may still run"
    (tmp_path / "prod_00" / "compose.yaml").touch()
    leftovers.forget_renewed(tmp_path / "prod_00" / "compose.yaml")
    assert [path.name for path in (tmp_path / "renewed").iterdir()] == ["server"]
    assert oct(folder.stat().st_mode)[-3:] == "755"
    assert {oct(path.stat().st_mode)[-3:] for path in folder.iterdir()} == {"644"}
