"""`flowerbed build`: what it refuses, fetches and asks of the engine. No engine and no network is used."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import app_packages, apt, base_image, core, images, leftovers, wheelhouse
from scripts.__main__ import main
from tests.unit.faking import Checkout, Program, inspected

Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """An engine that is well, an ordinary user, and a full wheelhouse."""
    program = Program(tmp_path / "bin")
    root = tmp_path / "root"
    root.mkdir()
    house = root / ".flowerbed"
    monkeypatch.setenv("PATH", str(program.folder))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(apt, "is_root", lambda: False)
    monkeypatch.setattr(core, "ROOT", root)
    monkeypatch.setattr(wheelhouse, "WHEELS", house / "wheels")
    monkeypatch.setattr(wheelhouse, "WHEELS_STAMP", house / "wheels.stamp")
    monkeypatch.setattr(app_packages, "APPS", house / "apps")
    monkeypatch.setattr(app_packages, "MLFLOW", house / "mlflow")
    wheelhouse.WHEELS.mkdir(parents=True)
    wheelhouse.WHEELS_STAMP.write_text(wheelhouse._stamp("amd64"))
    (wheelhouse.WHEELS / wheelhouse.LOCK).touch()
    monkeypatch.delenv("FLOWERBED_BASE", raising=False)
    # `test_where_torch_is_looked_for` asks pip itself, which takes as long as all the rest of a test.
    monkeypatch.setattr(wheelhouse, "torch_sources", lambda: ["--torch-from-here"])
    program.answer("build")
    return program


@pytest.fixture
def checkout(docker: Program) -> Checkout:
    return Checkout(core.ROOT, docker)


@pytest.fixture
def flowerbed(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, dict[str, Any], str]:
        code = main([*words, "--format", "json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out.splitlines()[-1]), captured.err

    return call


def builds(docker: Program) -> list[str]:
    return [call for call in docker.calls if call.startswith("build ")]


def test_runtime_first_then_everybody_and_the_tag_at_last(
    checkout: Checkout, docker: Program, flowerbed: Run
) -> None:
    checkout.env.write_text("MINE=kept\n" + checkout.env.read_text().replace("FLOWERBED_TAG=dev\n", ""))
    code, outcome, _ = flowerbed("build")
    assert code == 0
    names = ["flowerbed-runtime", "flowerbed-admin", "flowerbed-server", "flowerbed-site-1"]
    assert outcome["images"] == [f"{name}:dev" for name in names] and outcome["runtime_mb"] == 1029
    calls = builds(docker)
    assert [call.split("--tag ")[1].split()[0] for call in calls] == outcome["images"]
    assert all("--network none" in call for call in calls)
    assert "KIT" not in calls[0] and "--target runtime" in calls[0]
    assert "--build-arg KIT=workspace/flowerbed/prod_00/site-1" in calls[3]
    assert checkout.env.read_text().splitlines()[0] == "MINE=kept"
    assert "FLOWERBED_TAG=dev" in checkout.env.read_text().splitlines()


@pytest.mark.parametrize("works", [True, False])
def test_a_build_that_works_removes_the_kits_of_before(
    checkout: Checkout, docker: Program, flowerbed: Run, works: bool
) -> None:
    """And neither a newer one, which may be made at this moment, nor anything else."""
    workspace = core.ROOT / "workspace" / "flowerbed"
    shutil.copytree(workspace / "prod_00", workspace / "prod_07")
    checkout.env.write_text(checkout.env.read_text().replace("prod_00", "prod_07"))
    for name in ("prod_06", "prod_08", "state", "here"):
        (workspace / name / "site-1" / "startup").mkdir(parents=True)
    if not works:
        docker.answer("build", code=1, err="#7 ERROR: executor failed\n")
    code, _, text = flowerbed("build")
    assert code == (not works)
    kept = {"prod_07", "prod_08", "state", "here"} | (set() if works else {"prod_00", "prod_06"})
    assert {path.name for path in workspace.iterdir()} == kept
    assert ("removed the old kits" in text) is works


def test_who_takes_no_part_any_more_is_named_with_what_is_left(
    checkout: Checkout, docker: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    docker.answer("volume ls", out="server\nsite-9\nsite-8\nmlflow\n\n")
    docker.answer("image inspect flowerbed-site-8:dev", code=1)
    file = core.ROOT / "workspace" / "flowerbed" / "prod_00" / "compose.yaml"
    file.write_text("volumes: {server: {}, site-1: {}, mlflow: {}}\n")
    (core.ROOT / "data" / "site-8").mkdir(parents=True)
    assert leftovers.tell(file, "flowerbed", "dev") == ["site-8", "site-9"]
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("docker volume rm flowerbed_site-8 && rm -r data/site-8")
    assert said[1].endswith("docker volume rm flowerbed_site-9 && docker image rm flowerbed-site-9:dev")
    assert not any("rm" in call.split()[:2] for call in docker.calls), "they are named, not removed"


def test_a_failed_build_shows_its_end_and_sets_no_tag(
    checkout: Checkout, docker: Program, flowerbed: Run
) -> None:
    checkout.env.write_text(checkout.env.read_text().replace("FLOWERBED_TAG=dev\n", ""))
    docker.answer("build", code=1, err="#7 ERROR: executor failed\n")
    code, outcome, _ = flowerbed("build")
    assert code == 1 and "executor failed" in outcome["error"]
    assert "FLOWERBED_TAG" not in checkout.env.read_text()


def test_a_disk_that_is_nearly_full(
    checkout: Checkout, docker: Program, flowerbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "free_gb", lambda path: 0.7)
    code, outcome, _ = flowerbed("build")
    assert code == 1 and outcome["free_gb"] == 0.7 and outcome["needed_gb"] == images.REBUILD_GB
    assert "nearly full" in outcome["error"] and "docker system prune" in outcome["error"]
    assert not builds(docker)
    # From nothing it takes more.
    monkeypatch.setattr(images, "free_gb", lambda path: 3.0)
    assert flowerbed("build")[0] == 0
    docker.answer("image inspect flowerbed-runtime:dev", code=1)
    assert flowerbed("build")[1]["needed_gb"] == images.FIRST_BUILD_GB


def test_a_disk_that_becomes_full(checkout: Checkout, docker: Program, flowerbed: Run) -> None:
    docker.answer("build", code=1, err="failed to copy: write /x: no space left on device\n")
    code, outcome, _ = flowerbed("build")
    assert code == 1 and "The disk became full while building flowerbed-runtime:dev" in outcome["error"]


NONE = {"code": 1}
REAL, STAND_IN = (
    "image inspect python:3.11-slim",
    "image inspect flowerbed-base",
)


def bases(docker: Program) -> set[str]:
    """What the images were built from."""
    return {call.split("BASE=")[1].split()[0] for call in builds(docker)}


def test_an_old_stand_in_no_longer_shadows_the_real_base(
    checkout: Checkout, docker: Program, flowerbed: Run
) -> None:
    docker.answer(REAL, out=inspected(**{base_image.STAND_IN_LABEL: "bookworm"}))
    tagged = str(docker.folder / "tagged")
    docker.answer(STAND_IN, needs=tagged, out=inspected())
    docker.answer("tag python:3.11-slim flowerbed-base:bookworm", creates=tagged)
    docker.answer("image rm python:3.11-slim")
    assert flowerbed("build")[0] == 0
    renaming = [call for call in docker.calls if call.startswith(("tag ", "image rm "))]
    assert renaming == ["tag python:3.11-slim flowerbed-base:bookworm", "image rm python:3.11-slim"]
    assert bases(docker) == {"flowerbed-base:bookworm"}


def test_a_base_is_made_under_its_own_name_and_made_anew_when_asked_for(
    checkout: Checkout, docker: Program, flowerbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make() -> None:
        made.append(1)
        docker.answer(STAND_IN, out=inspected())

    monkeypatch.setattr(apt, "is_possible", lambda: True)
    monkeypatch.setattr(base_image, "_make_base", make)
    docker.answer(REAL, **NONE)
    docker.answer(STAND_IN, **NONE)
    docker.answer("pull", code=1, err="no such host\n")
    assert flowerbed("build")[1]["base"] == "made" and bases(docker) == {"flowerbed-base:bookworm"}
    assert flowerbed("build")[1]["base"] == "present" and len(made) == 1
    assert flowerbed("build", "--pull")[1]["base"] == "made" and len(made) == 2
    # Where a registry answers by now, the real one is taken.
    docker.answer("pull")
    assert flowerbed("build", "--pull")[1]["base"] == "pulled" and len(made) == 2


def test_the_real_base_is_pulled_again_when_asked_for_and_never_replaced(
    checkout: Checkout, docker: Program, flowerbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "is_possible", lambda: True)
    monkeypatch.setattr(base_image, "_make_base", lambda: pytest.fail("a stand-in is no newer version"))
    docker.answer("pull")
    assert flowerbed("build")[1]["base"] == "present"
    assert not any(call.startswith("pull") for call in docker.calls)
    assert flowerbed("build", "--pull")[1]["base"] == "pulled"
    docker.answer("pull", code=1, err="no such host\n")
    code, outcome, _ = flowerbed("build", "--pull")
    assert code == 1 and "python:3.11-slim cannot be pulled: no such host" in outcome["error"]


def test_no_registry_and_no_right_to_make_a_base(checkout: Checkout, docker: Program, flowerbed: Run) -> None:
    docker.answer(REAL, **NONE)
    docker.answer(STAND_IN, **NONE)
    docker.answer("pull", code=1, err="dial tcp: lookup registry: no such host\n")
    code, outcome, _ = flowerbed("build")
    assert code == 1 and "no such host" in outcome["error"] and "docker load" in outcome["error"]
    docker.answer("pull")
    assert flowerbed("build")[1]["base"] == "pulled"


# The wheelhouse


def wheel(folder: Path, name: str, *needs: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        text = "Metadata-Version: 2.1\n" + "".join(f"Requires-Dist: {need}\n" for need in needs)
        archive.writestr(f"{name}.dist-info/METADATA", text)


@pytest.fixture
def downloads(docker: Program, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """An empty wheelhouse, and a pip that puts one wheel there for each call."""
    calls: list[list[str]] = []

    def download(architecture: str, folder: Path, options: Any, *size: Any) -> None:
        calls.append(list(options))
        wheel(folder, "torch-2.13.0+cpu" if len(calls) % 2 == 0 else "nvflare-2.9.0", "filelock")

    wheelhouse.WHEELS_STAMP.unlink()
    monkeypatch.setattr(wheelhouse, "download", download)
    return calls


def test_a_full_wheelhouse_is_not_filled_again(docker: Program, downloads: list[list[str]]) -> None:
    assert wheelhouse.fill("amd64") == 2
    assert {path.name for path in wheelhouse.WHEELS.iterdir()} == {
        "nvflare-2.9.0-py3-none-any.whl",
        "torch-2.13.0+cpu-py3-none-any.whl",
        wheelhouse.LOCK,
    }
    assert wheelhouse.fill("amd64") == 0 and len(downloads) == 2
    assert "--require-hashes" in downloads[0] and "--require-hashes" not in downloads[1]
    # For other requirements, or another machine, the old wheels are asked first.
    wheelhouse.fill("arm64")
    assert downloads[2][downloads[2].index("--find-links") + 1] == str(wheelhouse.WHEELS)


def test_a_wheel_that_was_changed_or_that_nobody_fetched_is_refused_by_name(
    docker: Program, downloads: list[list[str]]
) -> None:
    wheelhouse.fill("amd64")
    lock = (wheelhouse.WHEELS / wheelhouse.LOCK).read_text()
    assert "torch==2.13.0+cpu --hash=sha256:" in lock
    app_packages.check_wheels()
    torch = wheelhouse.WHEELS / "torch-2.13.0+cpu-py3-none-any.whl"
    good = torch.read_bytes()
    torch.write_bytes(good + b"!")
    wheel(app_packages.APPS / "wheels", "evil-1.0")
    with pytest.raises(core.Failure, match=torch.name.replace("+", r"\+")):
        app_packages.check_wheels()
    torch.write_bytes(good)
    with pytest.raises(core.Failure, match="evil") as failure:
        app_packages.check_wheels()
    assert failure.value.facts == {"wheels": ["evil-1.0-py3-none-any.whl"]}


def test_a_wheelhouse_without_hashes_gets_them_without_fetching(
    docker: Program, downloads: list[list[str]]
) -> None:
    """An earlier version wrote none."""
    wheelhouse.fill("amd64")
    (wheelhouse.WHEELS / wheelhouse.LOCK).unlink()
    assert not wheelhouse.is_complete("amd64")
    assert wheelhouse.fill("amd64") == 0 and len(downloads) == 2
    app_packages.check_wheels()


def test_wheels_survive_a_fill_that_is_killed(
    docker: Program, downloads: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheelhouse.fill("amd64")
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "wheels.new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        wheelhouse.fill("arm64")
    monkeypatch.setattr(Path, "rename", rename)
    wheelhouse.fill("arm64")
    # The old ones were there again, and were asked first.
    assert downloads[4][downloads[4].index("--find-links") + 1] == str(wheelhouse.WHEELS)
    assert ["--torch-from-here" in options for options in downloads] == [False, True] * 3


def test_torch_for_cuda_is_refused(docker: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    wheelhouse.WHEELS_STAMP.unlink()
    needs = ("filelock", "nvidia-cublas==13.1 ; platform_system == 'Linux'")
    monkeypatch.setattr(
        wheelhouse, "download", lambda a, folder, o, size: wheel(folder, "torch-2.13.0", *needs)
    )
    with pytest.raises(core.Failure, match="CUDA build") as failure:
        wheelhouse.fill("amd64")
    assert wheelhouse.TORCH_CPU_INDEX in str(failure.value)
    assert not wheelhouse.is_complete("amd64")


def test_where_torch_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert wheelhouse.torch_sources() == ["--extra-index-url", wheelhouse.TORCH_CPU_INDEX]
    monkeypatch.setenv("PIP_FIND_LINKS", "/somewhere")
    assert wheelhouse.torch_sources() == []


def test_an_unknown_machine_is_named() -> None:
    with pytest.raises(core.Failure, match="riscv64: expected amd64 or arm64"):
        wheelhouse.download("riscv64", Path("/nonexistent"), [])


# What apps need on top


@pytest.fixture
def app(tmp_path: Path) -> Callable[..., Path]:
    def write(*dependencies: str) -> Path:
        folder = tmp_path / "app"
        folder.mkdir(exist_ok=True)
        (folder / "pyproject.toml").write_text(f"[project]\ndependencies = {json.dumps(dependencies)}\n")
        return folder

    return write


def test_only_what_the_image_lacks(app: Callable[..., Path]) -> None:
    folder = app("flwr[simulation]>=1.26", "Torch", "tqdm>=4", "tomli; python_version < '3.10'")
    assert app_packages.lacking(folder) == ["tqdm>=4"]


def test_what_contradicts_the_image_is_refused_before_any_work(
    checkout: Checkout, docker: Program, flowerbed: Run, app: Callable[..., Path]
) -> None:
    code, outcome, _ = flowerbed("build", "--app", str(app("torch==2.5.1")))
    assert code == 2 and "asks for torch==2.5.1" in outcome["error"] and "2.13.0" in outcome["error"]
    assert docker.calls == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "expected the folder of a Flower app"),
        ("[project", "is not TOML"),
        ("[project]\ndependencies = 3", "expected a list"),
        ("[project]\ndependencies = ['a b']", "'a b' is no requirement"),
    ],
)
def test_a_wrong_pyproject_is_named(
    checkout: Checkout, flowerbed: Run, tmp_path: Path, content: str | None, text: str
) -> None:
    if content is not None:
        (tmp_path / "pyproject.toml").write_text(content)
    code, outcome, _ = flowerbed("build", "--app", str(tmp_path))
    assert code == 2 and text in outcome["error"] and "pyproject.toml" in outcome["error"]


def test_apps_add_up_and_stay(
    checkout: Checkout, flowerbed: Run, app: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(architecture: str, folder: Path, options: list[str], *size: Any) -> None:
        asked.append(options)
        wheel(folder, "tqdm-4.70")
        wheel(folder, "numpy-2.4.6")

    monkeypatch.setattr(wheelhouse, "download", download)
    wheel(wheelhouse.WHEELS, "numpy-2.4.6")
    wheelhouse.write_lock(wheelhouse.WHEELS, wheelhouse.WHEELS.glob("*.whl"))
    assert flowerbed("build", "--app", str(app("tqdm")))[1]["packages"] == ["tqdm"]
    assert flowerbed("build", "--app", str(app("einops")))[1]["packages"] == ["einops", "tqdm"]
    assert flowerbed("build")[1]["packages"] == ["einops", "tqdm"]
    assert len(asked) == 2 and asked[1][-2:] == ["einops", "tqdm"]
    assert "--constraint" in asked[0], "the image's own packages must stay as they are"
    assert (app_packages.APPS / "requirements.txt").read_text() == "einops\ntqdm\n"
    wheels = app_packages.APPS / "wheels"
    assert {path.name for path in wheels.iterdir()} == {"tqdm-4.70-py3-none-any.whl", wheelhouse.LOCK}
    assert (wheels / wheelhouse.LOCK).read_text().startswith("tqdm==4.70 --hash=sha256:")
