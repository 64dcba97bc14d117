"""Making, listing and removing the environments of apps. uv and its container are played."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.common import app_environment
from scripts import app as apps
from scripts import (
    app_builds,
    base_image,
    console,
    core,
    engine,
    environments,
    indexes,
    resolution,
    source_builds,
    submit,
    unfinished,
    uv,
)
from scripts.__main__ import main
from tests.unit.faking import environment

LOCK = "numpy==2.4.0 \\\n    --hash=sha256:aa\nflwr==1.42.0 \\\n    --hash=sha256:bb\n"
PYLOCK = """\
[[packages]]
name = "numpy"
version = "2.4.0"
wheels = [{url = "https://x.example/numpy.whl", size = 20_000_000}]
[[packages]]
name = "flwr"
version = "1.42.0"
sdist = {url = "https://x.example/flwr.tar.gz"}
"""
FLWR = "flwr-1.42.0-py3-none-any.whl"
"""The name of its wheel."""
PROJECT = """\
[project]
name = "{name}"
version = "1.0.0"
license = "Apache-2.0"
dependencies = {dependencies}
{more}
[tool.flwr.app]
publisher = "x"
[tool.flwr.app.components]
serverapp = "mine.app:app"
clientapp = "mine.app:client"
"""
UNSOLVED = "No solution found when resolving dependencies:\n  Because numpy==1 needs Python <3.9, they clash."


class Uv:
    """Plays uv: what it answers, and how it was called."""

    def __init__(self) -> None:
        self.lock, self.pylock = LOCK, PYLOCK
        self.fails: dict[str, tuple[int, str]] = {}
        self.failed_imports: list[tuple[str, str, str]] = []
        self.installed: Callable[[Path], None] = lambda packages: None
        self.calls: list[list[str]] = []
        self.builds: list[list[str]] = []
        self.compiled: list[list[str]] = []
        self.on_script: Callable[[str], None] = lambda name: None
        self.synced = ""
        self.wheels: Path | None = None
        self.building: Callable[[Path], object] = lambda folder: (folder / FLWR).write_bytes(b"wheel")
        self.scripts: list[tuple[str, tuple[str, ...], dict[str, str]]] = []
        self.debian: list[tuple[str, ...]] = []
        self.libraries = "libc.so.6\n"

    def call(
        self, words: Sequence[str], *, tell: Any = None, folder: Any = None, wheels: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        self.calls.append(list(words))
        self.wheels = wheels
        kind = words[0] if words[0] != "pip" else words[1]
        kind = "sizes" if "pylock.toml" in words else kind
        code, said = self.fails.get(kind, (0, ""))
        if code == 0 and kind in ("compile", "sizes"):
            content = self.lock if kind == "compile" else self.pylock
            _here(words[words.index("--output-file") + 1]).write_text(content)
        if kind == "venv":
            packages = _here(words[-1]) / "lib" / "python3.11" / "site-packages"
            packages.mkdir(parents=True)
            (packages.parents[2] / "bin").mkdir()
            (packages.parents[2] / "bin" / "python").symlink_to("/usr/bin/python3.11")
            (packages / "big.bin").write_bytes(b"x" * 1000)
        if kind == "sync":
            [lock] = (word for word in words if word.endswith("/lock.txt"))
            self.synced = _here(lock).read_text()
            venv = _here(words[words.index("--python") + 1]).parents[1]
            (packages,) = venv.glob("lib/*/site-packages")
            self.installed(packages)
        return subprocess.CompletedProcess(list(words), code, said)

    def build(
        self,
        words: Sequence[str],
        folder: Path,
        *,
        packages: Any = (),
        collect: bool = False,
        tell: Any = None,
    ) -> subprocess.CompletedProcess[str]:
        self.builds.append(list(words))
        code, said = self.fails.get("build", (0, ""))
        if not collect:
            answer = self.call(words, folder=folder)
            self.calls.pop()
            return answer
        self.building(folder)
        return subprocess.CompletedProcess(list(words), code, said)

    def python(
        self,
        folder: Path,
        command: Sequence[str],
        *,
        script: Any = None,
        writes: bool = False,
        variables: Any = None,
    ) -> subprocess.CompletedProcess[bytes]:
        assert not writes or ("-S" in command and folder.name == "venv")
        if script is None:
            self.compiled.append(list(command))
            return subprocess.CompletedProcess([], 1, b"", b"")
        words = tuple(command[command.index(str(script)) + 1 :])
        self.scripts.append((script.name, words, variables or {}))
        assert writes == (script.name == "mend_torchvision.py"), "no package's code runs where it can write"
        self.on_script(script.name)
        return subprocess.CompletedProcess([], 0, json.dumps(self.failed_imports).encode(), b"")

    def as_root(self, script: str, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        if "ldconfig" in script:
            return subprocess.CompletedProcess([], 0, self.libraries.encode(), b"")
        self.debian.append(words)
        target = _here(script.split("FOLDER=")[1].splitlines()[0])
        (target / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
        (target / "usr/lib/x86_64-linux-gnu/libgomp.so.1").touch()
        code, said = self.fails.get("apt", (0, ""))
        return subprocess.CompletedProcess([], code, b"", said.encode())


def _here(path: str) -> Path:
    return uv.ENVIRONMENTS / Path(path).relative_to(uv.MOUNTED)


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uv:
    player = Uv()
    monkeypatch.setattr(uv, "ENVIRONMENTS", tmp_path / "environments")
    for name in ("call", "python", "as_root"):
        monkeypatch.setattr(uv, name, getattr(player, name))
    monkeypatch.setattr(source_builds, "call", player.build)
    monkeypatch.setattr(uv, "sources", lambda: uv.Sources({}, ()))
    monkeypatch.setattr(engine, "ask", lambda: SimpleNamespace(architecture="amd64"))
    monkeypatch.setattr(engine, "ensure", lambda: None)
    monkeypatch.setattr(base_image, "name", lambda: "the-base")
    monkeypatch.setattr(environments, "prepare", uv.prepare)
    monkeypatch.setattr(core, "HOUSE", tmp_path)
    monkeypatch.setattr(unfinished, "is_up", lambda: False)
    uv.prepare()
    return player


Write = Callable[..., apps.App]


@pytest.fixture
def app(tmp_path: Path) -> Write:
    def write(
        name: str = "first",
        dependencies: Sequence[str] = ("flwr", "numpy"),
        code: str = "import numpy\napp = client = None\n",
        more: str = "",
    ) -> apps.App:
        folder = tmp_path / name
        (folder / "mine").mkdir(parents=True, exist_ok=True)
        text = PROJECT.format(name=name, dependencies=json.dumps(list(dependencies)), more=more)
        (folder / "pyproject.toml").write_text(text)
        (folder / "mine" / "app.py").write_text(code)
        return apps.read(folder)

    return write


def there() -> list[str]:
    """Return everything in the folder of environments, except uv's cache."""
    known = (uv.CACHE, ".lock", source_builds.BOX)
    return sorted(path.name for path in uv.ENVIRONMENTS.iterdir() if path.name not in known)


def make(app: apps.App, **how: Any) -> dict[str, Any]:
    source_builds.forget()
    return environments.make(resolution.resolve(app, **how))


def build(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any], str]:
    """Run `build`: exit code, JSON and what it told people."""
    code = main(["build", *map(str, words), "--format", "json"])
    said = capsys.readouterr()
    return code, json.loads(said.out.splitlines()[-1]), said.err


# Making one


def test_a_new_environment_is_found_for_its_app(played: Uv, app: Write) -> None:
    first = app()
    facts = make(first)
    assert there() == [facts["name"]]
    made = environments.of_app(first)
    assert made is not None and made.name == facts["name"] and made.flwr == "1.42.0"
    assert facts["apps"] == ["first 1.0.0"] and facts["packages"] == 2 and facts["python"] == "3.11"
    assert (uv.ENVIRONMENTS / facts["name"] / "lock.txt").read_text() == LOCK
    [sync] = [call for call in played.calls if "sync" in call]
    assert "--require-hashes" in sync


def test_apps_with_one_lock_share_and_a_changed_requirement_disturbs_nobody(played: Uv, app: Write) -> None:
    first, second = app(), app("second", ["numpy>=2", "flwr"])
    name = make(first)["name"]
    before = sorted(path.stat().st_ino for path in (uv.ENVIRONMENTS / name / "venv").rglob("*"))
    installs = sum("sync" in call for call in played.calls)
    assert make(second)["name"] == name and make(second)["apps"] == ["first 1.0.0", "second 1.0.0"]
    assert sum("sync" in call for call in played.calls) == installs, "it is there"
    played.lock = LOCK.replace("2.4.0", "2.5.0")
    changed = app("second", ["numpy>=2.5", "flwr"])
    assert environments.of_app(changed) is None
    other = make(changed)["name"]
    assert there() == sorted([name, other])
    found = environments.of_app(first)
    assert found is not None and found.name == name
    assert before == sorted(path.stat().st_ino for path in (uv.ENVIRONMENTS / name / "venv").rglob("*"))


def test_another_apps_imports_are_tried_too(
    played: Uv, app: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    name = make(app())["name"]
    second = app("second", code="import numpy\nimport requests.auth\napp = client = None\n")
    played.failed_imports = [("requests.auth", "ModuleNotFoundError", "No module named 'requests'")]
    code, answer, _ = build(capsys, "--app", second.folder)
    assert code == 2 and "the app imports requests.auth" in answer["error"]
    assert there() == [name], "the first app's is gone"
    assert environments.of_app(app()).facts["apps"] == ["first 1.0.0"]  # type: ignore[union-attr]
    played.failed_imports = []
    tried = len(played.scripts)
    for _ in range(2):
        code, answer, _ = build(capsys, "--app", second.folder)
        assert code == 0 and answer["environments"][0]["apps"] == ["first 1.0.0", "second 1.0.0"]
    assert [words for _, words, _ in played.scripts[tried:]] == [("requests.auth",)]


def test_a_newer_one_for_the_same_app_is_the_apps_from_then_on(played: Uv, app: Write) -> None:
    first = app()
    old = make(first)["name"]
    played.lock = LOCK.replace("2.4.0", "2.5.0")
    new = make(first)["name"]
    found = environments.of_app(first)
    assert found is not None and found.name == new and there() == sorted([old, new])
    # A CUDA build beside it is another matter.
    played.lock = LOCK + "torch==2.13.0 \\\n    --hash=sha256:cc\n"
    played.pylock = PYLOCK + '[[packages]]\nname = "torch"\nwheels = [{size = 1}]\n'
    make(first, gpu=True)
    found = environments.of_app(first)
    assert found is not None and found.name == new


def test_the_lock_python_and_debian_packages_make_the_name(played: Uv, app: Write) -> None:
    first = app()
    names = [resolution.resolve(first).name, resolution.resolve(first, apt=["libgomp1"]).name]
    assert resolution.resolve(app("second")).name == names[0]
    assert resolution.resolve(first, apt=["b", "a"]).name == resolution.resolve(first, apt=["a", "b"]).name
    played.lock = LOCK.replace("sha256:aa", "sha256:ab")
    names.append(resolution.resolve(first).name)
    assert len(set(names)) == 3 and all(app_environment.NAME.fullmatch(name) for name in names)
    assert there() == [], "resolving leaves nothing"


def test_resolution_errors_are_shown_in_uvs_words(played: Uv, app: Write) -> None:
    played.fails["compile"] = 1, UNSOLVED
    with pytest.raises(core.UsageError) as refused:
        resolution.resolve(app())
    assert UNSOLVED in str(refused.value) and "first/pyproject.toml" in str(refused.value)
    assert there() == []


@pytest.mark.parametrize("package", ["nvidia-cublas==13.1", "nvidia-cudnn-cu12==9"])
def test_the_cuda_build_is_refused_unless_it_is_asked_for(played: Uv, app: Write, package: str) -> None:
    played.lock = f"torch==2.13.0 \\\n    --hash=sha256:cc\n{package} \\\n    --hash=sha256:dd\n" + LOCK
    with pytest.raises(core.UsageError, match=r"CUDA build of torch 2\.13\.0") as refused:
        resolution.resolve(app())
    assert "--gpu" in str(refused.value) and "UV_FIND_LINKS" in str(refused.value) and there() == []
    assert resolution.resolve(app(), gpu=True).gpu


def test_a_refused_cuda_build_says_which_configuration_led_there(
    played: Uv, app: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    played.lock = (
        LOCK + "torch==2.8.0 \\\n    --hash=sha256:cc\nnvidia-cublas==13.1 \\\n    --hash=sha256:dd\n"
    )
    for name in indexes.VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def said(**variables: str) -> str:
        monkeypatch.setattr(uv, "sources", lambda: uv.Sources(variables, ()))
        with pytest.raises(core.UsageError) as wrong:
            resolution.resolve(app())
        return str(wrong.value)

    assert "was not asked" not in said()
    found = said(UV_FIND_LINKS="/wheels", UV_INDEX="https://x.example/simple", SSL_CERT_FILE="/c.pem")
    assert (
        "because pip's extra-index-url, find-links (pip config list) sets where packages come from" in found
    )
    assert "UV_TORCH_BACKEND=cpu" in found and "torch 2.8.0+cpu" in found
    monkeypatch.setenv("UV_INDEX", "https://x.example/simple")
    found = said(UV_FIND_LINKS="/wheels", UV_INDEX="https://x.example/simple")
    assert "because UV_INDEX and pip's find-links (pip config list) sets" in found


def test_a_cuda_package_of_another_dependency_is_not_a_cuda_build(played: Uv, app: Write) -> None:
    played.lock = LOCK + "nvidia-nccl-cu12==2.28 \\\n    --hash=sha256:dd\n"
    assert resolution.resolve(app()).packages


def test_where_torch_is_looked_for(played: Uv, app: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    make(app())
    asked = [call for call in played.calls if call[0] == "pip"]
    assert len(asked) == 3 and all(call[call.index("--torch-backend") + 1] == "cpu" for call in asked)
    played.calls.clear()
    make(app("second", ["flwr", "torch"]), gpu=True)
    # Where the user says where packages are, nothing is added to it.
    monkeypatch.setattr(uv, "sources", lambda: uv.Sources({"UV_FIND_LINKS": "/wheels"}, ()))
    make(app("third", ["flwr", "numpy>1"]), apt=["libgomp1"])
    assert not any("--torch-backend" in call for call in played.calls)


def test_uv_is_given_what_is_asked_for_without_the_simulation(
    played: Uv, app: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, str] = {}

    def call(words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        (folder,) = uv.ENVIRONMENTS.glob(".resolving-*")
        for path in folder.iterdir():
            given.setdefault(path.name, path.read_text())
        return played.call(words, **options)

    monkeypatch.setattr(uv, "call", call)
    resolution.resolve(app("first", ["flwr[simulation]>=1.30", "Numpy"]))
    # And no Flower that is older than those that are known.
    assert given["wanted.in"] == "flwr>=1.30\nnumpy\nflwr>=1.34\n"
    # As far as the app leaves it open: what FLARE's own environment has, and one torch.
    assert given["lock.txt"].splitlines() == ["flwr==1.42.0", "torch==2.13.0+cpu", "torchvision==0.28.0"]


def test_a_small_disk_is_reported_before_anything_is_fetched(
    played: Uv, app: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5e8))
    with pytest.raises(core.Failure, match=r"needs about 1\.1 GB, and 0\.5 GB are free") as full:
        make(app())
    assert full.value.facts["needed_gb"] == 1.1 and "./flowerbed apps" in str(full.value)
    assert there() == [] and not any("sync" in call for call in played.calls)


@pytest.mark.parametrize("code", ["import pandas.io\n", "from pandas import x\n"])
def test_imports_without_a_requirement_are_named(played: Uv, app: Write, code: str) -> None:
    module = "pandas.io" if ".io" in code else "pandas"
    played.failed_imports = [(module, "ModuleNotFoundError", "No module named 'pandas'")]
    first = app(code=f"{code}app = client = None\n")
    with pytest.raises(core.UsageError, match=f"imports {module}, and none of its packages") as refused:
        make(first)
    assert f"{first.folder}/pyproject.toml" in str(refused.value)
    assert played.scripts[-1][:2] == ("try_imports.py", (module,))
    assert environments.of_app(first) is None and there() == []


def test_a_packages_own_failure_is_only_a_note(
    played: Uv, app: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without network, data or GPU, much fails here that works at a site."""
    played.failed_imports = [
        ("numpy", "ModuleNotFoundError", "No module named 'numpy_extra'"),
        ("flwr", "RuntimeError", "no GPU\nhere"),
    ]
    assert make(app())["name"] in there()
    said = capsys.readouterr().err
    assert "Note: importing numpy fails here: ModuleNotFoundError: No module named 'numpy_extra'" in said
    assert "Note: importing flwr fails here: RuntimeError: no GPU\n" in said


def test_a_missing_system_library_is_named_with_the_command_that_brings_it(played: Uv, app: Write) -> None:
    text = "libgomp.so.1: cannot open shared object file: No such file or directory"
    played.failed_imports = [("xgboost", "OSError", text)]
    first = app(code="import xgboost\napp = client = None\n")
    with pytest.raises(core.UsageError) as refused:
        make(first, apt=["libpq5"])
    command = f"./flowerbed build --app {first.folder} --apt libgomp1 --apt libpq5"
    assert "libgomp.so.1" in str(refused.value) and command in str(refused.value)
    assert environments.of_app(first) is None and there() == []


def test_submit_says_the_whole_command_after_a_build_that_was_refused(
    played: Uv, app: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "ENVIRONMENTS", uv.ENVIRONMENTS)
    first = app(code="import numpy\napp = client = None\n")
    request: dict[str, Any] = {"options": {}}
    plain = f"./flowerbed build --app {first.folder}, or submit with --build."
    with pytest.raises(core.UsageError) as told:
        submit.in_environment(first, request)
    assert plain in str(told.value)
    text = "libgomp.so.1: cannot open shared object file: No such file or directory"
    played.failed_imports = [("numpy", "OSError", text)]
    code, outcome, _ = build(capsys, "--app", first.folder)
    assert (code, outcome["apt"]) == (2, ["libgomp1"])
    calls = len(played.calls)
    for build_it in (False, True):
        with pytest.raises(core.UsageError) as told:
            submit.in_environment(first, request, build=build_it)
        assert f"./flowerbed build --app {first.folder} --apt libgomp1" in str(told.value)
        assert "submit with --build" not in str(told.value)
    assert len(played.calls) == calls, "it is not tried again in vain"
    played.failed_imports = []
    assert build(capsys, "--app", first.folder, "--apt", "libgomp1")[0] == 0
    assert submit.in_environment(first, request)["options"]["environment"]
    shutil.rmtree(uv.ENVIRONMENTS / there()[0])
    with pytest.raises(core.UsageError) as told:
        submit.in_environment(first, request)
    assert plain in str(told.value), "a build has worked since"


def test_submit_names_an_import_that_came_since_its_environment_was_made(
    played: Uv, app: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "ENVIRONMENTS", uv.ENVIRONMENTS)
    facts = make(app())
    more = app(code="import numpy, json, pandas.io, scipy\napp = client = None\n")
    (packages,) = (uv.ENVIRONMENTS / facts["name"]).glob("venv/lib/*/site-packages")
    (packages / "scipy").mkdir()
    submit.in_environment(more, {"options": {}})
    told = capsys.readouterr().err
    assert told.count("Note:") == 1 and "imports pandas, which its environment" in told


def test_debian_packages_are_unpacked_beside_and_found_by_the_linker(played: Uv, app: Write) -> None:
    facts = make(app(), apt=["libgomp1"])
    assert played.debian == [("libgomp1",)]
    assert facts["libraries"] == ["usr/lib/x86_64-linux-gnu"] and facts["apt"] == ["libgomp1"]
    folder = f"/environments/{facts['name']}/system/usr/lib/x86_64-linux-gnu"
    assert played.scripts[-1][2] == {"LD_LIBRARY_PATH": folder}


@pytest.mark.parametrize(
    ("step", "said", "text"),
    [
        ("sync", "Failed to build broken==1.0\n  error in setup.py", "error in setup.py"),
        ("sync", "OSError: No space left on device", "The disk became full"),
        ("venv", "No interpreter found for Python 3.11", "No interpreter found"),
        ("apt", "E: Unable to locate package libgomp1", "Unable to locate package"),
    ],
)
def test_a_failed_installation_leaves_nothing_behind(
    played: Uv, app: Write, step: str, said: str, text: str
) -> None:
    played.fails[step] = 1, said
    first = app()
    with pytest.raises(core.Failure, match=text):
        make(first, apt=["libgomp1"])
    assert there() == [] and environments.of_app(first) is None
    # The next try starts over.
    played.fails.clear()
    assert make(first, apt=["libgomp1"])["name"] in there()


def test_an_interrupted_build_leaves_nothing_behind(played: Uv, app: Write) -> None:
    def interrupt(packages: Path) -> None:
        raise KeyboardInterrupt

    played.installed = interrupt
    with pytest.raises(KeyboardInterrupt):
        make(app())
    assert there() == []


def test_one_that_is_there_stays_when_another_app_does_not_fit_it(played: Uv, app: Write) -> None:
    name = make(app())["name"]
    played.failed_imports = [("pandas", "ModuleNotFoundError", "No module named 'pandas'")]
    second = app("second", ["numpy>=2"], code="import pandas\napp = client = None\n")
    with pytest.raises(core.UsageError):
        make(second)
    assert there() == [name] and environments.of_app(second) is None


def test_a_partial_environment_is_ignored_and_made_again(played: Uv, app: Write) -> None:
    """Killed at the worst moment: the description comes last."""
    name = make(app())["name"]
    (uv.ENVIRONMENTS / name / app_environment.DESCRIPTION).unlink()
    (uv.ENVIRONMENTS / name / "venv" / "half").touch()
    assert environments.of_app(app()) is None
    assert make(app())["name"] == name
    assert not (uv.ENVIRONMENTS / name / "venv" / "half").exists()


def test_a_lock_with_an_address_has_no_hash_for_it(played: Uv, app: Write) -> None:
    wheel = "mine @ https://a.example/mine-1.0-py3-none-any.whl\n"
    played.lock = LOCK + wheel
    facts = make(app("first", ["flwr", "mine @ https://a.example/mine-1.0-py3-none-any.whl"]))
    [sync] = [call for call in played.calls if "sync" in call]
    assert "--require-hashes" not in sync and facts["packages"] == 3 and wheel in played.synced


def test_packages_without_wheels_are_built_apart_and_installed_from_the_built_wheel(
    played: Uv, app: Write
) -> None:
    played.lock = LOCK + "mine @ git+https://git.example/mine@0123abcd\n"
    mine, wanted = "mine-2.1-cp311-cp311-linux_x86_64.whl", ""

    def building(folder: Path) -> None:
        nonlocal wanted
        wanted = (folder / "wanted.txt").read_text()
        for name in (FLWR, mine, "numpy-9-py3-none-any.whl", "x.whl"):
            (folder / name).write_bytes(b"wheel")

    played.building = building
    facts = make(app("first", ["flwr", "mine @ git+https://git.example/mine"]))
    assert (uv.ENVIRONMENTS / facts["name"] / "lock.txt").read_text() == played.lock
    assert wanted == "flwr==1.42.0 \\\n    --hash=sha256:bb\nmine @ git+https://git.example/mine@0123abcd\n"
    digest = hashlib.sha256(b"wheel").hexdigest()
    assert played.synced.splitlines() == [
        "numpy==2.4.0 \\",
        "    --hash=sha256:aa",
        f"flwr==1.42.0 --hash=sha256:{digest}",
        f"mine==2.1 --hash=sha256:{digest}",
    ]
    [sync] = [call for call in played.calls if "sync" in call]
    assert "--require-hashes" in sync and "--no-build" in sync and played.wheels is not None
    # Of numpy, uv's wheel counts, and none that a build leaves.
    assert sorted(path.name for path in played.wheels.iterdir()) == [FLWR, mine]


@pytest.mark.parametrize("kind", ["link", "pipe", "huge", "none"])
def test_what_a_build_leaves_in_a_wheels_place_is_refused(
    played: Uv, app: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    monkeypatch.setattr(source_builds, "WHEEL_LIMIT", 100)

    def building(folder: Path) -> None:
        if kind == "link":
            (folder / FLWR).symlink_to(secret)
        elif kind == "pipe":
            os.mkfifo(folder / FLWR)
        elif kind == "huge":
            (folder / FLWR).write_bytes(b"x" * 101)

    played.building = building
    with pytest.raises(core.Failure, match="flwr"):
        make(app())
    assert there() == [] and secret.read_text() == "mine"


def test_uv_resolves_again_where_packages_are_built(
    played: Uv, app: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so only if it must, and the result is checked."""
    assert resolution.resolve(app()).packages and played.builds == []

    def fails(words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(list(words), 1, "error: Failed to build `a==1.0`")

    monkeypatch.setattr(uv, "call", fails)
    assert resolution.resolve(app()).lock == LOCK
    assert len(played.builds) == 2, "the sizes too"
    for bad in ("--index-url https://evil.example", "a==1 --find-links=/x", "-e /x", "a==1; x\x1b[2J"):
        played.lock = f"{LOCK}{bad}\n"
        with pytest.raises(core.Failure, match="a line that uv does not write"):
            resolution.resolve(app())
    played.lock = LOCK
    for bad in (
        "x = " + "[" * 100_000,
        "packages = 1",
        "[[packages]]",
        '[[packages]]\nname="flwr"\nwheels=[1]',
    ):
        played.pylock = bad
        with pytest.raises(core.Failure, match="Could not read uv's list"):
            resolution.resolve(app())
    assert there() == []


@pytest.mark.parametrize("depth", [3, 1500])
def test_a_killed_build_leaves_nothing_that_the_next_one_does_not_remove(
    played: Uv, app: Write, capsys: pytest.CaptureFixture[str], depth: int
) -> None:
    name = make(app())["name"]
    for folder in [uv.ENVIRONMENTS / left for left in (".resolving-abc", source_builds.BOX, "0123456789ab")]:
        folder.mkdir(exist_ok=True)
        subprocess.run(["mkdir", "-p", "/".join(["d"] * depth)], cwd=folder, check=True)
        (folder / "link").symlink_to(uv.ENVIRONMENTS / name)
    assert build(capsys, "--app", app().folder)[1]["environments"][0]["name"] == name
    assert sorted(path.name for path in uv.ENVIRONMENTS.iterdir()) == sorted([uv.CACHE, ".lock", name])
    assert environments.of_app(app()) is not None


@pytest.mark.parametrize("text", ["operator torchvision::nms does not exist", "broken"])
def test_torchvision_is_made_to_work_without_its_operators(played: Uv, app: Write, text: str) -> None:
    played.installed = lambda packages: (packages / "torchvision").mkdir()
    played.failed_imports = [("torchvision", "RuntimeError", text)]

    def mended(name: str) -> None:
        if name == "mend_torchvision.py":
            played.failed_imports = []

    played.on_script = mended
    if text == "broken":
        with pytest.raises(core.Failure, match=r"torchvision does not import beside this torch.*broken"):
            make(app())
        return
    name = make(app())["name"]
    tried, script, again = played.scripts[:3]
    assert tried == again == ("try_imports.py", ("torchvision",), {})
    packages = f"/environments/{name}/venv/lib/python3.11/site-packages"
    assert script == ("mend_torchvision.py", ("--untried", packages), {})
    [compiled] = played.compiled
    assert compiled[0] == "/usr/bin/python3.11" and compiled[-1] == packages


# Python's version


@pytest.mark.parametrize("wanted", ["", ">=3.10", ">=3.11,<4", "==3.11.*", "~=3.11.4", "!=3.11.0"])
def test_the_bases_python_is_taken_where_it_fits(played: Uv, app: Write, wanted: str) -> None:
    first = app(more=f'requires-python = "{wanted}"' if wanted else "")
    assert resolution.resolve(first).python == "3.11"
    assert not any(call[0] == "python" for call in played.calls)


def test_another_python_is_honoured_where_the_base_has_it_and_refused_where_not(
    played: Uv, app: Write
) -> None:
    first = app(more='requires-python = ">=3.12"')
    played.fails["python"] = 0, "/usr/bin/python3.12\n"
    assert resolution.resolve(first).python == "/usr/bin/python3.12"
    played.fails["python"] = 1, "No interpreter found"
    with pytest.raises(
        core.UsageError, match=r"asks for Python >=3\.12, and the base image the-base has 3\.11"
    ):
        resolution.resolve(first)
    with pytest.raises(core.UsageError, match="requires-python"):
        resolution.resolve(app(more='requires-python = "three"'))


# The verbs


def test_a_dry_run_shows_the_packages_and_installs_nothing(
    played: Uv, app: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    code, outcome, told = build(capsys, "--app", app().folder, "--dry-run")
    assert code == 0 and there() == [] and not any("sync" in call for call in played.calls)
    [made] = outcome["environments"]
    assert made["packages"] == {"numpy": "2.4.0", "flwr": "1.42.0"} and made["bytes_to_fetch"] == 20_000_000
    assert made["without_wheel"] == ["flwr"] and "no wheel: it is built here" in told
    assert made["notes"] == [] and "Note:" not in told
    assert "19.1 MB to fetch, and 1 more of unknown size. Nothing was installed." in told


@pytest.mark.parametrize("how", [["--dry-run"], []])
def test_an_import_without_a_package_is_noted_before_anything_is_installed(
    played: Uv, app: Write, capsys: pytest.CaptureFixture[str], how: list[str]
) -> None:
    played.fails["sync"] = 1, "too early"
    first = app(code="import numpy, sklearn.svm\napp = client = None\n")
    _, outcome, told = build(capsys, "--app", first.folder, *how)
    assert "Note: the app imports sklearn, and no package here seems to bring it." in told
    assert f"{first.folder}/pyproject.toml" in told and "numpy, and no" not in told
    if how:
        assert len(outcome["environments"][0]["notes"]) == 1


def test_an_existing_environment_is_not_made_again(
    played: Uv, app: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = app().folder
    name = build(capsys, "--app", folder)[1]["environments"][0]["name"]
    calls = len(played.calls)
    _, outcome, told = build(capsys, "--app", folder)
    assert outcome["environments"][0]["name"] == name and "already exists" in told
    assert len(played.calls) == calls, "uv is not asked"
    played.lock = LOCK.replace("2.4.0", "2.5.0")
    assert build(capsys, "--app", folder, "--upgrade")[1]["environments"][0]["name"] != name
    made = build(capsys, "--app", folder, "--apt", "libgomp1")[1]["environments"][0]
    assert made["apt"] == ["libgomp1"]
    # Once named, they stay named.
    assert build(capsys, "--app", folder, "--upgrade")[1]["environments"][0]["name"] == made["name"]


def test_several_apps_are_read_before_the_first_is_made(
    played: Uv, app: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, outcome, _ = build(capsys, "--app", app().folder, "--app", tmp_path / "nowhere")
    assert code == 2 and "nowhere" in outcome["error"] and played.calls == []
    code, outcome, _ = build(capsys, "--app", app().folder, "--app", app("second").folder)
    assert [made["name"] for made in outcome["environments"]] == there() * 2


def test_an_untested_flower_is_reported(played: Uv, app: Write, capsys: pytest.CaptureFixture[str]) -> None:
    played.lock = LOCK.replace("flwr==1.42.0", "flwr==1.44.0")
    assert "flwr 1.44.0 is newer" in build(capsys, "--app", app().folder)[2]


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    code = main(["apps", *words, "--format", "json"])
    said = capsys.readouterr()
    return code, json.loads(said.out.splitlines()[-1]), said.err + said.out


def test_apps_lists_all_environments(
    played: Uv, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert listed(capsys)[1] == {"environments": []}
    environment(uv.ENVIRONMENTS, "aaaaaaaaaaaa", bytes=3_000_000, apps=["first 1.0.0"], made=2.0)
    environment(uv.ENVIRONMENTS, "bbbbbbbbbbbb", gpu=True)
    found = listed(capsys)[1]["environments"]
    assert [(made["name"], made["gpu"]) for made in found] == [
        ("aaaaaaaaaaaa", False),
        ("bbbbbbbbbbbb", True),
    ]
    assert main(["apps"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ENVIRONMENT" in lines[0] and len(lines) == 3, lines
    for word in ("aaaaaaaaaaaa", "1.42.0", "2.86 MB", "first 1.0.0"):
        assert word in lines[1]
    assert "3.11 GPU" in lines[2]


def test_apps_removes_one_by_the_beginning_of_its_name(
    played: Uv, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("aaaaaaaaaaaa", "aabbbbbbbbbb", "cccccccccccc"):
        environment(uv.ENVIRONMENTS, name)
    (uv.ENVIRONMENTS / uv.CACHE / "wheels").mkdir()
    code, outcome, told = listed(capsys, "--remove", "aab")
    assert code == 0 and there() == ["aaaaaaaaaaaa", "cccccccccccc"]
    assert outcome["removed"][0]["name"] == "aabbbbbbbbbb" and outcome["removed"][0]["bytes"] >= 0
    assert "Removed environment aabbbbbbbbbb" in told
    assert not (uv.ENVIRONMENTS / uv.CACHE / "wheels").exists(), "else its files would live on there"
    assert (uv.ENVIRONMENTS / uv.CACHE).stat().st_mode & 0o777 == 0o700


def test_one_that_a_job_uses_is_not_removed_unless_forced(
    played: Uv, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        environment(uv.ENVIRONMENTS, name)
    jobs = [
        {"job_id": "j-1", "name": "mine", "status": "RUNNING", "environment": "aaaaaaaaaaaa"},
        {"job_id": "j-2", "name": "next", "status": "SUBMITTED", "environment": "aaaaaaaaaaaa"},
        {"job_id": "j-3", "name": "past", "status": "FINISHED:COMPLETED", "environment": "bbbbbbbbbbbb"},
    ]
    monkeypatch.setattr(unfinished, "is_up", lambda: True)
    monkeypatch.setattr(console, "service", lambda identity: "admin")
    monkeypatch.setattr(console, "ask", lambda service, verb: {"jobs": jobs})
    code, outcome, told = listed(capsys, "--remove", "aaaa")
    assert code == 1 and outcome["jobs"] == ["j-1", "j-2"] and len(there()) == 2
    assert (
        "j-1  mine" in told and "j-2  next" in told and "./flowerbed wait j-1" in told and "--force" in told
    )
    assert listed(capsys, "--remove", "bbbb")[0] == 0, "its job has ended"
    assert listed(capsys, "--remove", "aaaa", "--force")[0] == 0 and there() == []
    environment(uv.ENVIRONMENTS, "cccccccccccc")
    # Such as one that was handed in by FLARE's own tools.
    jobs[0]["environment"] = ""
    assert listed(capsys, "--remove", "cccc")[1]["jobs"] == ["j-1"]
    monkeypatch.setattr(unfinished, "is_up", lambda: False)
    assert listed(capsys, "--remove", "cccc")[0] == 0, "nothing runs"


def test_nothing_is_removed_when_usage_is_unknown(
    played: Uv, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(service: str, verb: str) -> None:
        raise core.Failure("the server cannot be reached")

    environment(uv.ENVIRONMENTS, "aaaaaaaaaaaa")
    monkeypatch.setattr(unfinished, "is_up", lambda: True)
    monkeypatch.setattr(console, "service", lambda identity: "admin")
    monkeypatch.setattr(console, "ask", silent)
    code, _, told = listed(capsys, "--remove", "aaaa")
    assert code == 1 and there() == ["aaaaaaaaaaaa"]
    assert "Could not ask the server which jobs use it" in told and "--force" in told


@pytest.mark.parametrize("name", ["aa", "", "dd", "../environments", "/", ".", ".cache", "*"])
def test_a_name_that_fits_several_or_none_removes_nothing(
    played: Uv, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for made in ("aaaaaaaaaaaa", "aabbbbbbbbbb"):
        environment(uv.ENVIRONMENTS, made)
    code, outcome, _ = listed(capsys, "--remove", "aaaa", "--remove", name)
    assert code == 2 and f"--remove {name}: expected the name of one environment" in outcome["error"]
    assert "aaaaaaaaaaaa, aabbbbbbbbbb" in outcome["error"]
    assert there() == ["aaaaaaaaaaaa", "aabbbbbbbbbb"]


def test_a_verb_that_waits_for_another_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A refusal within seconds once took 25, since another verb resolved at the same time."""

    def wait() -> None:
        with core.alone(tmp_path / ".lock"):
            pass

    with ThreadPoolExecutor(1) as pool:
        with core.alone(tmp_path / ".lock"):
            assert "waiting" not in capsys.readouterr().err
            second = pool.submit(wait)
            deadline = time.monotonic() + 10
            while "waiting for another flowerbed" not in (told := capsys.readouterr().err):
                assert time.monotonic() < deadline, told
                time.sleep(0.01)
            assert not second.done()
        second.result(timeout=10)


def test_no_two_make_or_remove_at_once(played: Uv, app: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one waits. Here it would wait without end, so it has to give up at once."""
    import fcntl

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda file, how: flock(file, how | fcntl.LOCK_NB))
    environment(uv.ENVIRONMENTS, "aaaaaaaaaaaa")
    with uv.alone():
        with pytest.raises(BlockingIOError):
            app_builds.make([app().folder], app_builds.Choice())
        with pytest.raises(BlockingIOError), uv.alone():
            pass
    assert there() == ["aaaaaaaaaaaa"]


def test_a_description_is_written_through_no_link(tmp_path: Path) -> None:
    """A package's build code can write into the folder, and plant one."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "made"
    folder.mkdir()
    for name in ("environment.json.new", "environment.json"):
        (folder / name).symlink_to(victim)
    environments._describe(folder, {"flwr": "1.42.0"})
    assert victim.read_text() == "mine"
    assert not (folder / "environment.json").is_symlink()
