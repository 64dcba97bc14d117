"""Code that packages bring, as they are built, installed, compiled and tried: it reaches nothing but its own.

An sdist with a hostile build backend, and a `.pth` file in its wheel, both made on the fly. No federation is
needed, and no index.
"""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.common import app_environment
from scripts import app as apps
from scripts import core, engine, environments, resolution, source_builds, uv

SECRET = "hunter2"  # Not one.
OTHER = "aaaaaaaaaaaa"
"""The name of another environment."""

BACKEND = """
import glob, json, os, socket, zipfile

VICTIM, PORT, LINKED = {victim!r}, {port}, {linked}

def tried(what, *words):
    try:
        return str(what(*words))
    except OSError as error:
        return type(error).__name__

def attack():
    found = dict(os.environ)
    found["there"] = sorted(os.listdir("/environments"))
    found["read"] = tried(lambda: open("/environments/{other}/lock.txt").read())
    found["shared"] = [tried(open, "/environments/.cache/RAN", "w")]
    others = ["{other}/" + name for name in ("environment.json", "lock.txt", "environment.json.new")]
    for name in (".cache", ".lock", *others):
        found["shared"].append(tried(os.unlink, "/environments/" + name))
        found["shared"].append(tried(os.symlink, VICTIM, "/environments/" + name))
    found["loopback"] = tried(socket.create_connection, ("127.0.0.1", PORT), 2)
    for folder in glob.glob("/environments/.resolving-*"):
        for name in ("wanted.in", "wanted.txt", *(["lock.txt", "pylock.toml"] if LINKED else [])):
            tried(os.unlink, folder + "/" + name)
            tried(os.symlink, VICTIM, folder + "/" + name)
        tried(os.mkfifo, folder + "/evil-9-py3-none-any.whl")
    return found

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "evil-1.0-py3-none-any.whl"
    files = {{
        "evil.py": "found = " + repr(attack()),
        "evil.pth": "import os, site; [open(p + '/PTH', 'a') for p in ('/environments', "
        "'/environments/.cache', *site.getsitepackages()) if os.access(p, os.W_OK)]\\n",
        "evil-1.0.dist-info/METADATA": "Metadata-Version: 2.1\\nName: evil\\nVersion: 1.0\\n",
        "evil-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }}
    files["evil-1.0.dist-info/RECORD"] = "".join(name + ",,\\n" for name in files)
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
"""
PROJECT = """\
[project]
name = "mine"
version = "1.0"
license = "Apache-2.0"
dependencies = ["evil"]
[tool.flwr.app]
publisher = "x"
[tool.flwr.app.components]
serverapp = "mine.app:app"
clientapp = "mine.app:app"
"""

Evil = Callable[..., apps.App]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user's."""
    file = tmp_path / "bashrc"
    file.write_text("alias ls=ls")
    file.chmod(0o600)
    return file


@pytest.fixture
def loopback() -> Iterator[int]:
    """Yield a port with a listener for this machine only."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


@pytest.fixture
def evil(tmp_path: Path, victim: Path, loopback: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Evil]:
    """An app that asks for the hostile package alone, and a folder of environments with another one."""
    engine.ensure()
    monkeypatch.setattr(uv, "ENVIRONMENTS", tmp_path / "environments")
    environments.prepare()
    other = uv.ENVIRONMENTS / OTHER
    other.mkdir()
    (other / "lock.txt").write_text("other")
    (other / "environment.json").write_text("{}")
    index = tmp_path / "index"
    (index / "none").mkdir(parents=True)
    for name in [name for name in os.environ if uv.PASSED_ON.fullmatch(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_DEFAULT_INDEX", (index / "none").as_uri())
    monkeypatch.setenv("UV_FIND_LINKS", str(index))
    monkeypatch.setenv("UV_INDEX_MINE_PASSWORD", SECRET)
    monkeypatch.setattr(core, "run", without_pip(core.run))
    monkeypatch.setattr(app_environment, "requirements", lambda config: ("evil",))
    uv.sources.cache_clear()

    def make(*, linked: bool = False) -> apps.App:
        code = BACKEND.format(victim=str(victim), port=loopback, linked=linked, other=OTHER)
        files = {
            "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n',
            "PKG-INFO": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n",
            "b.py": code,
        }
        with tarfile.open(index / "evil-1.0.tar.gz", "w:gz") as tar:
            for name, text in files.items():
                entry = tarfile.TarInfo(f"evil-1.0/{name}")
                entry.size = len(text.encode())
                tar.addfile(entry, io.BytesIO(text.encode()))
        app = tmp_path / "app"
        (app / "mine").mkdir(parents=True)
        (app / "pyproject.toml").write_text(PROJECT)
        (app / "mine" / "app.py").write_text("import evil\napp = None\n")
        return apps.read(app)

    yield make
    uv.sources.cache_clear()
    source_builds.forget()


def without_pip(run: Any) -> Any:
    """Ignore this machine's own configuration of pip."""

    def instead(command: Any, **options: Any) -> Any:
        return run(["true"] if "config" in command else command, **options)

    return instead


def untouched(victim: Path) -> None:
    """Check that only the environment itself has changed."""
    assert victim.read_text() == "alias ls=ls" and victim.stat().st_mode & 0o777 == 0o600
    root = uv.ENVIRONMENTS
    assert not any(path.is_symlink() for path in (root / uv.CACHE, root / OTHER, *(root / OTHER).iterdir()))
    assert (root / OTHER / "lock.txt").read_text() == "other"
    assert sorted(path.name for path in (root / OTHER).iterdir()) == ["environment.json", "lock.txt"]
    assert not (root / uv.CACHE / "RAN").exists(), "it ran where the cache is"
    assert not list(root.rglob("PTH")), "it ran where it could write"


def test_the_code_that_builds_a_package_reaches_nothing_but_its_own(evil: Evil, victim: Path) -> None:
    made = environments.make(resolution.resolve(evil()))
    untouched(victim)
    source_builds.forget()
    left = {path.name for path in uv.ENVIRONMENTS.iterdir()}
    assert left == {uv.CACHE, OTHER, made["name"]}
    folder = uv.ENVIRONMENTS / made["name"]
    assert made["imports"] == ["evil"] and (folder / "lock.txt").read_text().startswith("evil==1.0 ")
    (file,) = folder.glob("venv/lib/python3*/site-packages/evil.py")
    found = eval(file.read_text().removeprefix("found = "), {"__builtins__": {}})
    assert OTHER not in found["there"] and uv.CACHE not in found["there"]
    assert found["read"] == "FileNotFoundError" and found["loopback"] == "ConnectionRefusedError"
    assert SECRET not in json.dumps(found) and "UV_FIND_LINKS" in found
    assert list((folder / "venv").rglob("__pycache__/evil*.pyc")), "it is compiled"


def test_a_link_in_the_place_of_what_uv_writes_is_not_followed(evil: Evil, victim: Path) -> None:
    with pytest.raises(core.Failure, match=r"lock\.txt: expected a file that uv wrote"):
        environments.make(resolution.resolve(evil(linked=True)))
    untouched(victim)
    source_builds.forget()
    assert {path.name for path in uv.ENVIRONMENTS.iterdir()} == {uv.CACHE, OTHER}


def test_the_network_check_runs_no_code_of_packages(evil: Evil, loopback: int) -> None:
    """Search for the network where an index answers on only one of the two."""
    places = (f"127.0.0.1:{loopback}",)
    assert source_builds._reaches("host", places) and not source_builds._reaches("bridge", places)
