"""The count of Flower's own apps, and what some of them ask for that no index has."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from bridge.common import app_environment
from bridge.common.app import BadApp
from dev import flower_apps
from dev.flower_apps import Found
from scripts import app as apps
from scripts import core, resolution, uv
from scripts.locks import Package, Resolved

PYPROJECT = """
[project]
name = "toy"
version = "1.0.0"
dependencies = [{asked}]

[tool.flwr.app]
publisher = "tester"

[tool.flwr.app.components]
serverapp = "toy:app"
clientapp = "toy:app"
"""


def app_in(folder: Path, asked: str = '"flwr>=1.28.0"') -> Path:
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT.format(asked=asked))
    (folder / "toy.py").write_text("app = None\n")
    return folder


class Index:
    """An imitation of uv: it answers with these locks, and remembers its requests."""

    def __init__(self, lock: str, said: str = "") -> None:
        self.lock, self.said, self.asked = lock, said, ""

    def call(self, words: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
        folder = uv.ENVIRONMENTS / Path(words[2]).parent.name
        if words[2].endswith("wanted.in"):
            self.asked = (folder / "wanted.in").read_text()
            (folder / "lock.txt").write_text(self.lock)
        (folder / "pylock.toml").touch()
        return subprocess.CompletedProcess(words, int(bool(self.said)), self.said)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    made = Index("flwr==1.42.0 \\\n    --hash=sha256:00\nnumpy==2.4.0 \\\n    --hash=sha256:00\n")
    monkeypatch.setattr(uv, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(uv, "call", made.call)
    uv.prepare()
    return made


@pytest.mark.parametrize(
    "url", ["{root:parent:parent:uri}", "{root:uri}", "file://{root}/../flwr", "{home:uri}/flower"]
)
def test_the_flower_beside_an_app_is_the_published_one(url: str) -> None:
    config = {"project": {"dependencies": [f"flwr[simulation] @ {url}", "numpy"]}}
    assert app_environment.requirements(config) == ("flwr", "numpy")
    with pytest.raises(BadApp, match=r"a folder next to the app.*UV_FIND_LINKS"):
        app_environment.requirements({"project": {"dependencies": [f"mine @ {url}"]}})


def test_other_references_are_kept() -> None:
    for line in ("flwr @ https://example.org/flwr-1.40-py3-none-any.whl", "mine @ git+https://example.org/a"):
        found = app_environment.requirements({"project": {"dependencies": [line]}})
        assert line in {requirement.replace("@", " @", 1) for requirement in found}


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        ('"flwr[simulation]==1.17.0"', "flwr>=1.34\n"),
        ('"flwr-nightly"', "flwr-nightly>=1.34\n"),
        ('"numpy", "flwr-datasets"', "flwr>=1.34\n"),
    ],
)
def test_a_too_old_flower_is_never_chosen(index: Index, tmp_path: Path, asked: str, more: str) -> None:
    resolution.resolve(apps.read(app_in(tmp_path / "toy", asked)))
    assert index.asked.endswith(more) and index.asked.count(">=1.34") == 1


@pytest.mark.parametrize(
    ("torch", "needs", "fits"),
    [
        ("2.8.0", "nvidia-cublas-cu12==12.8.4.1", False),
        ("2.14.1", "nvidia-cublas==13.1", False),
        ("2.13.0+cpu", "nvidia-nccl-cu12==2.28", True),
        ("", "nvidia-nccl-cu12==2.28", True),
        ("", "nvidia-cublas-cu12==12.8.4.1", True),
        ("2.8.0", "nvidia-nccl-cu12==2.28", True),
    ],
)
def test_only_torchs_own_cuda_build_is_refused(
    index: Index, tmp_path: Path, torch: str, needs: str, fits: bool
) -> None:
    """XGBoost asks for a package of NVIDIA's on every machine, and an app may ask for one itself."""
    lines = [line for line in (needs, f"torch=={torch}" if torch else "") if line]
    index.lock += "".join(f"{line} \\\n    --hash=sha256:00\n" for line in lines)
    app = apps.read(app_in(tmp_path / "toy"))
    if fits:
        assert not resolution.resolve(app).gpu
    else:
        with pytest.raises(core.UsageError, match=rf"CUDA build of torch {torch}.*build --gpu"):
            resolution.resolve(app)
    assert resolution.resolve(app, gpu=True).gpu


def test_apps_are_found_and_their_errors_reported(index: Index, tmp_path: Path) -> None:
    checkout = tmp_path / "flower"
    app_in(checkout / "examples" / "one")
    app_in(checkout / "framework" / "e2e" / "two")
    app_in(checkout / "elsewhere" / "three")
    (checkout / "baselines").mkdir()
    (checkout / "baselines" / "pyproject.toml").write_text("[project]\nname = 'no app'\n")
    one, two = flower_apps.find(checkout)
    assert (one.name, two.name) == ("one", "two")
    found = flower_apps.resolve(one, checkout)
    assert found.resolved is not None and (found.path, found.resolved.flwr) == ("examples/one", "1.42.0")
    index.said = "error: No solution found when resolving dependencies\n  cause: Because a and b|c cannot be"
    assert flower_apps.resolve(two, checkout) == Found(
        "framework/e2e/two", None, "Because a and b\\|c cannot be"
    )


def test_the_table_is_between_its_marks() -> None:
    torch = Package("torch", "2.8.0", 1 << 30, True)
    packages = (Package("flwr", "1.42.0", 10**6, True), torch, Package("easydict", "1.1", None, False))
    app = apps.App(Path("a"), "a", "1")
    every = [Found("examples/a", Resolved(app, "", packages, "3.11", True, ())), Found("b", None, "No way.")]
    page = "# Apps\n\n<!-- Flower's apps -->\nold\n<!-- end of Flower's apps -->\n\nMore\n"
    filled = flower_apps.filled(page, every)
    assert "Of 2 apps with a ServerApp, 1 resolve unedited." in filled and "old" not in filled
    assert "| `examples/a` | 1.42.0 | 2.8.0 CUDA | 3 | 1 GB | easydict |\n" in filled
    assert "| `b` | No way. |\n<!-- end" in filled and filled.endswith("\nMore\n")
    assert flower_apps.filled(filled, every) == filled
    assert flower_apps.PLACE.search(flower_apps.PAGE.read_text())
