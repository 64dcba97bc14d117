"""The steps of a release (`dev/release.py`), with a small project and an engine that is imitated."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dev import release, sbom, test
from scripts import apt, base_image, core, published, wheelhouse
from tests.unit.faking import Program, inspected

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "flowerbed"
version = "0.2.0"
requires-python = ">=3.11"
[tool.hatch.build.targets.wheel]
packages = ["pack"]
"""
CHANGELOG = """\
# Changelog

## [0.2.0] - 2026-12-31

- New.

## [0.1.0] - 2026-11-28

- First.
"""
HOOK = """\
import os
from pathlib import Path
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

class Hook(BuildHookInterface):
    def initialize(self, version, build_data):
        path = Path(self.root, "random.txt")
        path.write_text(os.urandom(8).hex())
        build_data["force_include"][str(path)] = "pack/random.txt"
"""
COMMITTED = (2026, 11, 28, 5, 6, 8)
NAME = "registry.example.org/flowerbed-runtime"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed project that can be released as v0.2.0."""
    root = tmp_path / "root"
    (root / "pack").mkdir(parents=True)
    (root / "pack" / "__init__.py").write_text("x = 1\n")
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "CHANGELOG.md").write_text(CHANGELOG)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    commit(root)
    monkeypatch.setattr(core, "ROOT", root)
    monkeypatch.setattr(core, "SOURCE", root)
    monkeypatch.setattr(test, "install", lambda: None)
    return root


def commit(root: Path) -> None:
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "x"],
    ):
        date = datetime.datetime(*COMMITTED, tzinfo=datetime.UTC).isoformat()
        subprocess.run(["git", *words], cwd=root, env={**os.environ, "GIT_COMMITTER_DATE": date}, check=True)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_what_can_be_released_passes_the_check(project: Path) -> None:
    assert release.main(["check", "v0.2.0"]) == 0


@pytest.mark.parametrize(
    ("tag", "file", "old", "new", "said"),
    [
        ("v0.2.1", "", "", "", "expected the tag v0.2.0, found v0.2.1"),
        ("0.2.0", "", "", "", "expected the tag v0.2.0, found 0.2.0"),
        ("v0.2.0", "CHANGELOG.md", "2026-12-31", "unreleased", "dates 0.2.0 'unreleased': expected a date"),
        ("v0.2.0", "CHANGELOG.md", "0.2.0", "0.3.0", "begins with 0.3.0: expected 0.2.0"),
        ("v0.2.0", "CHANGELOG.md", "## [", "## ", "begins with no version: expected 0.2.0"),
    ],
)
def test_what_does_not_agree_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str], tag: str, file: str, old: str, new: str, said: str
) -> None:
    if file:
        (project / file).write_text((project / file).read_text().replace(old, new))
        commit(project)
    assert release.main(["check", tag]) == 1
    assert said in capsys.readouterr().err


def test_a_tree_with_changes_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "pack" / "more.py").write_text("")
    assert release.main(["check", "v0.2.0"]) == 1
    assert "expected a tree without changes, found:\n?? pack/more.py" in capsys.readouterr().err


def test_two_builds_give_the_same_packages(project: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert release.main(["packages", str(tmp_path / name)]) == 0
        (project / "pack" / "__init__.py").touch()
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert set(hashes(tmp_path / "a")) == {"flowerbed-0.2.0-py3-none-any.whl", "flowerbed-0.2.0.tar.gz"}
    with zipfile.ZipFile(tmp_path / "a" / "flowerbed-0.2.0-py3-none-any.whl") as wheel:
        assert {file.date_time for file in wheel.infolist()} == {COMMITTED}, "when it was committed"


def test_two_builds_of_this_checkout_give_the_same_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test, "install", lambda: None)
    assert release.main(["packages", str(tmp_path)]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".whl", ".gz"}


def test_packages_that_differ_are_refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "hatch_build.py").write_text(HOOK)
    (project / "pyproject.toml").write_text(PROJECT + "[tool.hatch.build.targets.wheel.hooks.custom]\n")
    assert release.main(["packages", str(tmp_path / "out")]) == 1
    assert "Two builds of flowerbed-0.2.0-py3-none-any.whl differ" in capsys.readouterr().err


def test_an_sdist_that_lacks_a_file_of_the_wheel_is_refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "pack" / "more.py").write_text("")
    left_out = '[tool.hatch.build.targets.sdist]\nexclude = ["pack/more.py"]\n'
    (project / "pyproject.toml").write_text(PROJECT + left_out)
    assert release.main(["packages", str(tmp_path / "out")]) == 1
    assert "differs if it is built from the sdist" in capsys.readouterr().err


@pytest.fixture
def docker(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """An engine, and wheels of two packages."""
    program = Program(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{program.folder}:/usr/bin:/bin")
    monkeypatch.delenv("FLOWERBED_BASE", raising=False)
    monkeypatch.setattr(apt, "is_root", lambda: False)
    monkeypatch.setattr(wheelhouse, "HOUSE", tmp_path / "wheels")
    monkeypatch.setattr(wheelhouse, "IMAGES", project / "images")
    (project / "images").mkdir()
    folder = wheelhouse.RUNTIME.folder
    folder.mkdir(parents=True)
    (folder / "flwr-1.42.0-py3-none-any.whl").write_bytes(b"flwr")
    (folder / "typing_extensions-4.1-py3-none-any.whl").write_bytes(b"typing")
    wheelhouse.RUNTIME.requirements.write_text(
        "".join(f"--hash=sha256:{wheelhouse.hash_of(path)}\n" for path in folder.iterdir())
    )
    (folder / wheelhouse.STAMP).write_text(wheelhouse.RUNTIME._stamp("amd64"))
    image = json.loads(inspected())
    image[0]["RepoDigests"] = [f"{NAME}@sha256:{'b' * 64}", f"other@sha256:{'c' * 64}"]
    program.answer("image inspect", out=json.dumps(image))
    program.answer(f"image inspect {base_image.STAND_IN}", code=1)
    program.answer(f"pull {base_image.BASE}")
    program.answer("build")
    program.answer("push")
    inside = "run --rm --network none --read-only --cap-drop ALL --entrypoint"
    python = json.dumps([["flwr", "1.42.0"], ["typing_extensions", "4.1"]])
    program.answer(f"{inside} /opt/venv/bin/python", out=python)
    program.answer(f"{inside} sh", out="libc6 2.36-9+deb12u1 amd64\n12\n")
    program.answer("buildx imagetools create")
    program.answer("buildx imagetools inspect", out=json.dumps({"digest": f"sha256:{'d' * 64}"}))
    return program


def test_an_image_has_its_version_and_a_list_of_all_packages(
    project: Path, docker: Program, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert release.main(["image", NAME, str(out)]) == 0
    (build,) = (call for call in docker.calls if call.startswith("build "))
    assert f"--tag {NAME}:0.2.0-amd64 " in build and "--target runtime" in build
    assert f"--label {published.VERSION}=0.2.0" in build and "org.flowerbed.home" not in build
    document = json.loads((out / "flowerbed-runtime-amd64.cdx.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert {part["purl"] for part in document["components"]} == {
        "pkg:pypi/flwr@1.42.0",
        "pkg:pypi/typing-extensions@4.1",
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u1?arch=amd64&distro=debian-12",
    }
    content = hashlib.sha256(b"flwr").hexdigest()
    assert document["components"][0]["hashes"] == [{"alg": "SHA-256", "content": content}]
    assert not [call for call in docker.calls if call.startswith("push")]


def test_a_package_that_is_no_wheel_of_the_image_is_refused(
    project: Path, docker: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = "run --rm --network none --read-only --cap-drop ALL --entrypoint"
    docker.answer(f"{inside} /opt/venv/bin/python", out='[["stranger", "1"]]')
    assert release.main(["image", NAME, str(tmp_path / "out")]) == 1
    assert "holds stranger 1, which no wheel" in capsys.readouterr().err


def test_what_is_published_is_named_by_digest_and_hashed(
    project: Path, docker: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert release.main(["packages", str(out)]) == 0
    assert release.main(["image", NAME, str(out), "--push"]) == 0
    (out / "digest-arm64").write_text(f"{NAME}@sha256:{'e' * 64}\n")
    capsys.readouterr()
    assert release.main(["index", NAME, str(out)]) == 0
    assert capsys.readouterr().out == f"sha256:{'d' * 64}\n", "nothing else: the workflow takes it"
    joined = f"{NAME}@sha256:{'b' * 64} {NAME}@sha256:{'e' * 64}"
    assert f"buildx imagetools create --tag {NAME}:0.2.0 {joined}" in docker.calls
    assert release.main(["files", str(out)]) == 0
    content = json.loads((out / release.IMAGES).read_text())
    assert content["version"] == "0.2.0" and len(content["commit"]) == 40
    assert content["flowerbed-runtime"] == {
        "all": f"{NAME}@sha256:{'d' * 64}",
        "amd64": f"{NAME}@sha256:{'b' * 64}",
        "arm64": f"{NAME}@sha256:{'e' * 64}",
    }
    assert (out / release.NOTES).read_text() == "- New.\n"
    assert set(hashes(out)) == {
        "SHA256SUMS",
        "images.json",
        "NOTES.md",
        "flowerbed-runtime-amd64.cdx.json",
        "flowerbed-0.2.0-py3-none-any.whl",
        "flowerbed-0.2.0.tar.gz",
    }
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, capture_output=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 5, done
    (out / "images.json").write_text("{}")
    assert subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=out, capture_output=True).returncode


@pytest.mark.parametrize("found", [{}, {"digest": "latest"}])
def test_an_answer_without_a_digest_publishes_nothing(
    project: Path, docker: Program, tmp_path: Path, found: dict[str, Any]
) -> None:
    (tmp_path / "digest-amd64").write_text(f"{NAME}@sha256:{'b' * 64}\n")
    docker.answer("buildx imagetools inspect", out=json.dumps(found))
    assert release.main(["index", NAME, str(tmp_path)]) == 1
    assert not (tmp_path / "digest").exists()


def test_only_one_wheel_and_one_sdist_are_uploaded(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release.main(["upload", str(tmp_path)]) == 1
    assert "expected one wheel and one sdist, found 0 packages" in capsys.readouterr().err


def test_every_version_has_notes() -> None:
    assert release.notes(core.version()).startswith("First release") or release.notes(core.version())
    with pytest.raises(core.Failure, match=r"expected a heading '## \[9\.9\.9\] - DATE', found none"):
        release.notes("9.9.9")


def test_debians_packages_are_asked_of_the_image() -> None:
    assert "${Package} ${Version} ${Architecture}" in sbom.DEBIAN
