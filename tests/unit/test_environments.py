"""Making, listing and removing the environments of apps. uv and its container are played."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.common import app_environment
from scripts import app as apps
from scripts import app_builds, base_image, console, core, engine, environments, unfinished, uv
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
        self.scripts: list[tuple[str, tuple[str, ...], dict[str, str]]] = []
        self.debian: list[tuple[str, ...]] = []
        self.libraries = "libc.so.6\n"

    def call(
        self, words: Sequence[str], *, tell: Any = None, compiler: Any = None
    ) -> subprocess.CompletedProcess[str]:
        self.calls.append(list(words))
        kind = words[0] if words[0] != "pip" else words[1]
        kind = "sizes" if "pylock.toml" in words else kind
        code, said = self.fails.get(kind, (0, ""))
        if code == 0 and kind in ("compile", "sizes"):
            content = self.lock if kind == "compile" else self.pylock
            _here(words[words.index("--output-file") + 1]).write_text(content)
        if kind == "venv":
            packages = _here(words[-1]) / "lib" / "python3.11" / "site-packages"
            packages.mkdir(parents=True)
            (packages / "big.bin").write_bytes(b"x" * 1000)
        if kind == "sync":
            [lock] = (word for word in words if word.endswith("/lock.txt"))
            (packages,) = _here(lock).parent.glob("venv/lib/*/site-packages")
            self.installed(packages)
        return subprocess.CompletedProcess(list(words), code, said)

    def python(
        self, interpreter: str, script: Path, *words: str, writes: bool = False, variables: Any = None
    ) -> subprocess.CompletedProcess[bytes]:
        self.scripts.append((script.name, words, variables or {}))
        return subprocess.CompletedProcess([], 0, json.dumps(self.failed_imports).encode(), b"")

    def as_root(self, script: str, *words: str) -> subprocess.CompletedProcess[bytes]:
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
    monkeypatch.setattr(uv, "sources", lambda: uv.Sources({}, ()))
    monkeypatch.setattr(engine, "ask", lambda: SimpleNamespace(architecture="amd64"))
    monkeypatch.setattr(engine, "ensure", lambda: None)
    monkeypatch.setattr(base_image, "name", lambda: "the-base")
    monkeypatch.setattr(environments, "prepare", uv.prepare)
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
    """All that is in the folder of environments, but for uv's cache."""
    return sorted(path.name for path in uv.ENVIRONMENTS.iterdir() if path.name not in (uv.CACHE, ".lock"))


def make(app: apps.App, **how: Any) -> dict[str, Any]:
    return environments.make(environments.resolve(app, **how))


def build(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any], str]:
    """Run `build`: exit code, JSON and what it told people."""
    code = main(["build", *map(str, words), "--format", "json"])
    said = capsys.readouterr()
    return code, json.loads(said.out.splitlines()[-1]), said.err


# Making one


def test_what_is_made_is_found_for_its_app(played: Uv, app: Write) -> None:
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


def test_what_another_app_of_an_environment_imports_is_tried_too(
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
    make(first, gpu=True)
    found = environments.of_app(first)
    assert found is not None and found.name == new


def test_the_lock_python_and_debian_packages_make_the_name(played: Uv, app: Write) -> None:
    first = app()
    names = [environments.resolve(first).name, environments.resolve(first, apt=["libgomp1"]).name]
    assert environments.resolve(app("second")).name == names[0]
    assert (
        environments.resolve(first, apt=["b", "a"]).name == environments.resolve(first, apt=["a", "b"]).name
    )
    played.lock = LOCK.replace("sha256:aa", "sha256:ab")
    names.append(environments.resolve(first).name)
    assert len(set(names)) == 3 and all(app_environment.NAME.fullmatch(name) for name in names)
    assert there() == [], "resolving leaves nothing"


def test_what_cannot_be_resolved_is_said_in_uvs_words(played: Uv, app: Write) -> None:
    played.fails["compile"] = 1, UNSOLVED
    with pytest.raises(core.UsageError) as refused:
        environments.resolve(app())
    assert UNSOLVED in str(refused.value) and "first/pyproject.toml" in str(refused.value)
    assert there() == []


@pytest.mark.parametrize("package", ["nvidia-cublas==13.1", "nvidia-cudnn-cu12==9"])
def test_the_cuda_build_is_refused_unless_it_is_asked_for(played: Uv, app: Write, package: str) -> None:
    played.lock = f"torch==2.13.0 \\\n    --hash=sha256:cc\n{package} \\\n    --hash=sha256:dd\n" + LOCK
    with pytest.raises(core.UsageError, match=r"CUDA build of torch 2\.13\.0") as refused:
        environments.resolve(app())
    assert "--gpu" in str(refused.value) and "UV_FIND_LINKS" in str(refused.value) and there() == []
    assert environments.resolve(app(), gpu=True).gpu


def test_a_part_of_cuda_that_another_package_asks_for_is_no_cuda_build(played: Uv, app: Write) -> None:
    played.lock = LOCK + "nvidia-nccl-cu12==2.28 \\\n    --hash=sha256:dd\n"
    assert environments.resolve(app()).packages


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
        for name in ("wanted.in", "lock.txt"):
            (folder,) = uv.ENVIRONMENTS.glob(".resolving-*")
            given.setdefault(name, (folder / name).read_text())
        return played.call(words, **options)

    monkeypatch.setattr(uv, "call", call)
    environments.resolve(app("first", ["flwr[simulation]>=1.30", "Numpy"]))
    # And no Flower that is older than those that are known.
    assert given["wanted.in"] == "flwr>=1.30\nnumpy\nflwr>=1.34\n"
    # As far as the app leaves it open: what FLARE's own environment has, and one torch.
    assert given["lock.txt"].splitlines() == ["flwr==1.42.0", "torch==2.13.0+cpu", "torchvision==0.28.0"]


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    played: Uv, app: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5e8))
    with pytest.raises(core.Failure, match=r"needs about 1\.1 GB, and 0\.5 GB are free") as full:
        make(app())
    assert full.value.facts["needed_gb"] == 1.1 and "./flowerbed apps" in str(full.value)
    assert there() == [] and not any("sync" in call for call in played.calls)


@pytest.mark.parametrize("code", ["import pandas.io\n", "from pandas import x\n"])
def test_what_is_imported_and_not_asked_for_is_named(played: Uv, app: Write, code: str) -> None:
    module = "pandas.io" if ".io" in code else "pandas"
    played.failed_imports = [(module, "ModuleNotFoundError", "No module named 'pandas'")]
    first = app(code=f"{code}app = client = None\n")
    with pytest.raises(core.UsageError, match=f"imports {module}, and none of its packages") as refused:
        make(first)
    assert f"{first.folder}/pyproject.toml" in str(refused.value)
    assert played.scripts[-1][:2] == ("try_imports.py", (module,))
    assert environments.of_app(first) is None and there() == []


def test_what_a_package_fails_with_by_itself_is_no_more_than_a_note(
    played: Uv, app: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without network, data or GPU much cannot work here that works at a site."""
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
def test_what_cannot_be_installed_leaves_nothing_behind(
    played: Uv, app: Write, step: str, said: str, text: str
) -> None:
    played.fails[step] = 1, said
    first = app()
    with pytest.raises(core.Failure, match=text):
        make(first, apt=["libgomp1"])
    assert there() == [] and environments.of_app(first) is None
    # And the next try begins anew.
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


def test_what_was_left_half_made_is_no_environment_and_is_made_anew(played: Uv, app: Write) -> None:
    """Killed at the worst moment: the description comes last."""
    name = make(app())["name"]
    (uv.ENVIRONMENTS / name / app_environment.DESCRIPTION).unlink()
    (uv.ENVIRONMENTS / name / "venv" / "half").touch()
    assert environments.of_app(app()) is None
    assert make(app())["name"] == name
    assert not (uv.ENVIRONMENTS / name / "venv" / "half").exists()


def test_a_lock_with_an_address_has_no_hash_for_it(played: Uv, app: Write) -> None:
    played.lock = LOCK + "mine @ git+https://git.example/mine@0123abcd\n"
    facts = make(app("first", ["flwr", "mine @ git+https://git.example/mine"]))
    [sync] = [call for call in played.calls if "sync" in call]
    assert "--require-hashes" not in sync and facts["packages"] == 3


# Python's version


@pytest.mark.parametrize("wanted", ["", ">=3.10", ">=3.11,<4", "==3.11.*", "~=3.11.4", "!=3.11.0"])
def test_the_bases_python_is_taken_where_it_fits(played: Uv, app: Write, wanted: str) -> None:
    first = app(more=f'requires-python = "{wanted}"' if wanted else "")
    assert environments.resolve(first).python == "3.11"
    assert not any(call[0] == "python" for call in played.calls)


def test_another_python_is_honoured_where_the_base_has_it_and_refused_where_not(
    played: Uv, app: Write
) -> None:
    first = app(more='requires-python = ">=3.12"')
    played.fails["python"] = 0, "/usr/bin/python3.12\n"
    assert environments.resolve(first).python == "/usr/bin/python3.12"
    played.fails["python"] = 1, "No interpreter found"
    with pytest.raises(
        core.UsageError, match=r"asks for Python >=3\.12, and the base image the-base has 3\.11"
    ):
        environments.resolve(first)
    with pytest.raises(core.UsageError, match="requires-python"):
        environments.resolve(app(more='requires-python = "three"'))


# The verbs


def test_a_dry_run_shows_what_would_be_there_and_installs_nothing(
    played: Uv, app: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    code, outcome, told = build(capsys, "--app", app().folder, "--dry-run")
    assert code == 0 and there() == [] and not any("sync" in call for call in played.calls)
    [made] = outcome["environments"]
    assert made["packages"] == {"numpy": "2.4.0", "flwr": "1.42.0"} and made["bytes_to_fetch"] == 20_000_000
    assert made["without_wheel"] == ["flwr"] and "no wheel: it is built here" in told
    assert "19.1 MB to fetch, and 1 whose size the index does not say. Nothing was installed." in told


def test_what_is_there_is_not_made_again(played: Uv, app: Write, capsys: pytest.CaptureFixture[str]) -> None:
    folder = app().folder
    name = build(capsys, "--app", folder)[1]["environments"][0]["name"]
    calls = len(played.calls)
    _, outcome, told = build(capsys, "--app", folder)
    assert outcome["environments"][0]["name"] == name and "is there" in told
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


def test_a_flower_that_nobody_has_tried_is_told_of(
    played: Uv, app: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    played.lock = LOCK.replace("flwr==1.42.0", "flwr==1.44.0")
    assert "flwr 1.44.0 is newer" in build(capsys, "--app", app().folder)[2]


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    code = main(["apps", *words, "--format", "json"])
    said = capsys.readouterr()
    return code, json.loads(said.out.splitlines()[-1]), said.err + said.out


def test_apps_lists_what_there_is(
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


def test_nothing_is_removed_when_nobody_can_say_what_is_used(
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
    assert "could not be asked which jobs use it" in told and "--force" in told


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


def test_no_two_make_or_remove_at_once(played: Uv, app: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes second waits: here it would for ever, so that it has to give up at once."""
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
