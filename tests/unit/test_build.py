"""`flowerbed build`: what it refuses, fetches and asks of the engine. No engine and no network is used."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scripts import apt, base_image, core, images, kit_layer, leftovers, ownership, published, uv, wheelhouse
from scripts.__main__ import main
from scripts.wheelhouse import MLFLOW, MLFLOW_CLIENT, RUNTIME
from tests.unit.faking import Checkout, Program, inspected

Run = Callable[..., tuple[int, dict[str, Any], str]]

APP = """\
[project]
name = "wrong"
version = "1"
license = "Apache-2.0"
dependencies = DEPENDENCIES
[tool.flwr.app]
publisher = "x"
[tool.flwr.app.components]
serverapp = "wrong.app:app"
clientapp = "wrong.app:client"
"""


def complete(wheels: wheelhouse.Wheelhouse, architecture: str = "amd64") -> None:
    """Say that all its wheels are there."""
    wheels.folder.mkdir(parents=True, exist_ok=True)
    (wheels.folder / wheelhouse.STAMP).write_text(wheels._stamp(architecture))


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Set up a healthy engine, an ordinary user, and a full wheelhouse."""
    program = Program(tmp_path / "bin")
    root = tmp_path / "root"
    root.mkdir()
    house = root / ".flowerbed"
    monkeypatch.setenv("PATH", str(program.folder))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(apt, "is_root", lambda: False)
    monkeypatch.setattr(core, "ROOT", root)
    monkeypatch.setattr(wheelhouse, "HOUSE", house / "wheels")
    monkeypatch.setattr(uv, "ENVIRONMENTS", house / "environments")
    (root / "images").mkdir()
    monkeypatch.setattr(wheelhouse, "IMAGES", root / "images")
    for wheels in (RUNTIME, MLFLOW, MLFLOW_CLIENT):
        wheels.requirements.write_text("")
    complete(RUNTIME)
    monkeypatch.delenv("FLOWERBED_BASE", raising=False)
    monkeypatch.delenv("FLOWERBED_RUNTIME", raising=False)
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
    assert len(calls) == 1 and "--tag flowerbed-runtime:dev" in calls[0] and "--network none" in calls[0]
    assert "--target runtime" in calls[0]
    kits = [call for call in docker.calls if call.split()[0] in ("create", "cp", "commit", "rm")]
    assert [call.split()[0] for call in kits] == ["create", "cp", "commit", "rm"] * 3
    assert kits[0] == "create --network none flowerbed-runtime:dev"
    mark = kit_layer.mark(checkout.kits["site-1"])
    assert f"LABEL {kit_layer.KIT}={mark}" in kits[-2] and kits[-2].endswith("c0ffee flowerbed-site-1:dev")
    assert checkout.env.read_text().splitlines()[0] == "MINE=kept"
    assert "FLOWERBED_TAG=dev" in checkout.env.read_text().splitlines()


def test_a_runtime_is_only_built_again_if_it_would_be_another(
    checkout: Checkout, docker: Program, flowerbed: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A builder without its cache makes another image of the same files, and then all containers are new."""
    program = tmp_path / "program"
    (program / "bridge").mkdir(parents=True)
    monkeypatch.setattr(images, "_program", lambda: {"bridge": program / "bridge"})

    def builds_again(*words: str) -> bool:
        before = len(builds(docker))
        assert flowerbed("build", *words)[0] == 0
        if len(builds(docker)) == before:
            return False
        mark = re.search(rf"{images.MADE_FROM}=(\S+)", builds(docker)[-1])
        assert mark is not None
        docker.answer("image inspect flowerbed-runtime:dev", out=inspected(**{images.MADE_FROM: mark[1]}))
        return True

    assert builds_again()
    assert not builds_again() and builds_again("--no-cache") and not builds_again()
    (program / "bridge" / "new.py").write_text("")
    assert builds_again() and not builds_again()
    monkeypatch.setattr(core, "version", lambda: "99.0")
    assert builds_again() and not builds_again()
    docker.answer(REAL, out=json.dumps([{"Id": "sha256:newer", "Config": {}, "Size": 1}]))
    assert builds_again() and not builds_again()
    complete(MLFLOW_CLIENT)
    assert builds_again() and not builds_again()


@pytest.mark.parametrize("works", [True, False])
def test_a_build_that_works_removes_the_kits_of_before(
    checkout: Checkout, docker: Program, flowerbed: Run, works: bool
) -> None:
    """A newer kit stays too, which may be in the making, and so does anything else."""
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


def test_former_participants_are_named_with_their_leftovers(
    checkout: Checkout, docker: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    docker.answer("volume ls", out="server\nsite-9\nsite-8\nmlflow\n\n")
    file = core.ROOT / "workspace" / "flowerbed" / "prod_00" / "compose.yaml"
    file.write_text("volumes: {server: {}, site-1: {}, mlflow: {}}\n")
    (core.ROOT / "data" / "site-8").mkdir(parents=True)
    assert leftovers.tell(file, "flowerbed") == ["site-8", "site-9"]
    said = capsys.readouterr().err.splitlines()
    assert "Its data stays in data/site-8." in said[0] and "rm -r" not in said[0]
    assert said[0].endswith("docker volume rm flowerbed_site-8")
    assert said[1].endswith("docker volume rm flowerbed_site-9")
    assert not any("rm" in call.split()[:2] for call in docker.calls), "they are named, not removed"


@pytest.mark.parametrize("runs", [False, True])
def test_images_with_a_key_that_nobody_needs_are_removed(
    checkout: Checkout, docker: Program, capsys: pytest.CaptureFixture[str], runs: bool
) -> None:
    """Both those of a participant that has left, and those without a name. Not while a container uses
    one."""
    file = core.ROOT / "workspace" / "flowerbed" / "prod_00" / "compose.yaml"
    file.write_text("volumes: {server: {}, site-1: {}}\n")
    ours = f"image ls --filter label={kit_layer.KIT} --filter label={ownership.LABEL}={core.ROOT}"
    names = [
        "flowerbed-server:dev",
        "localhost/flowerbed-site-1:dev",
        "flowerbed-site-9:dev",
        "<none>:<none>",
    ]
    docker.answer(ours, out="".join(f"{number} {name}\n" for number, name in enumerate(names)))
    docker.answer("image rm", code=int(runs), err="conflict: unable to delete\n" * runs)
    gone = leftovers.forget_images(file, "flowerbed", "dev")
    assert gone == ([] if runs else ["flowerbed-site-9:dev", "<none>:<none>"])
    tried = [call for call in docker.calls if call.startswith("image rm")]
    assert tried == ["image rm flowerbed-site-9:dev", "image rm 3"]
    assert ("removed flowerbed-site-9:dev, with its key" in capsys.readouterr().err) is not runs


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
    monkeypatch.setattr(images, "free_gb", lambda path: 2.0)
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
    """Return the bases of the built images."""
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


def test_a_base_is_made_under_its_own_name_and_remade_on_request(
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


# The wheelhouses


def wheel(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-py3-none-any.whl"
    path.write_text(name)
    return path


@pytest.fixture
def downloads(docker: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Set up an empty wheelhouse for two wheels, and a pip that puts both there."""
    calls: list[list[str]] = []
    known = [wheel(tmp_path / "index", name) for name in ("nvflare-2.9.0", "flwr-1.42.0")]
    RUNTIME.requirements.write_text(
        "".join(
            f"{path.name.split('-')[0]}==1 \\\n    --hash=sha256:{wheelhouse.hash_of(path)}\n"
            for path in known
        )
    )

    def download(architecture: str, folder: Path, options: Any, *size: Any) -> None:
        calls.append(list(options))
        folder.mkdir()
        for path in known:
            shutil.copy(path, folder)

    shutil.rmtree(RUNTIME.folder)
    monkeypatch.setattr(wheelhouse, "download", download)
    return calls


def test_two_at_once_fetch_once(downloads: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads take a while: once the second verb took the first one's wheels away."""
    download = wheelhouse.download

    def slow(*words: Any) -> None:
        time.sleep(0.1)  # Long enough for all to have begun.
        download(*words)
        time.sleep(0.1)

    monkeypatch.setattr(wheelhouse, "download", slow)
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(RUNTIME.fill, ["amd64"] * 4)) == [0, 0, 0, 2]
    assert len(downloads) == 1


def test_wheels_that_are_gone_are_fetched_again(downloads: list[list[str]]) -> None:
    RUNTIME.fill("amd64")
    (RUNTIME.folder / "flwr-1.42.0-py3-none-any.whl").unlink()
    assert not RUNTIME.is_complete("amd64"), "whatever its stamp says"
    assert RUNTIME.fill("amd64") == 1 and RUNTIME.is_complete("amd64")


def test_packages_that_pip_left_out_are_named_and_incomplete(
    downloads: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheelhouse, "download", lambda architecture, folder, *more: folder.mkdir())
    with pytest.raises(core.Failure, match="these are missing: nvflare, flwr"):
        RUNTIME.fill("amd64")
    assert not RUNTIME.is_there and not RUNTIME.is_complete("amd64")


def test_a_full_wheelhouse_is_not_filled_again(downloads: list[list[str]]) -> None:
    assert RUNTIME.fill("amd64") == 2
    assert {path.name for path in RUNTIME.folder.iterdir()} == {
        "nvflare-2.9.0-py3-none-any.whl",
        "flwr-1.42.0-py3-none-any.whl",
        wheelhouse.STAMP,
    }
    assert RUNTIME.fill("amd64") == 0 and len(downloads) == 1
    assert "--require-hashes" in downloads[0] and "--no-deps" in downloads[0]
    # For other requirements, or another machine, the old wheels are asked first.
    RUNTIME.fill("arm64")
    assert downloads[1][downloads[1].index("--find-links") + 1] == str(RUNTIME.folder)
    RUNTIME.requirements.write_text(RUNTIME.requirements.read_text() + "# another\n")
    assert not RUNTIME.is_complete("arm64")


def test_a_changed_or_foreign_wheel_is_refused_by_name(
    downloads: list[list[str]],
) -> None:
    RUNTIME.fill("amd64")
    RUNTIME.check()
    flwr = RUNTIME.folder / "flwr-1.42.0-py3-none-any.whl"
    good = flwr.read_bytes()
    flwr.write_bytes(good + b"!")
    wheel(RUNTIME.folder, "evil-1.0")
    with pytest.raises(core.Failure, match=flwr.name):
        RUNTIME.check()
    flwr.write_bytes(good)
    with pytest.raises(core.Failure, match="evil") as failure:
        RUNTIME.check()
    assert failure.value.facts == {"wheels": ["evil-1.0-py3-none-any.whl"]}


def test_a_build_refuses_wheels_it_did_not_fetch(checkout: Checkout, docker: Program, flowerbed: Run) -> None:
    wheel(RUNTIME.folder, "evil-1.0")
    code, outcome, _ = flowerbed("build")
    assert code == 1 and "evil-1.0" in outcome["error"] and not builds(docker)


def test_each_image_has_its_own_list_and_wheels(docker: Program) -> None:
    lists = [wheels.requirements.name for wheels in (RUNTIME, MLFLOW, MLFLOW_CLIENT)]
    assert lists == ["requirements.txt", "requirements-mlflow.txt", "requirements-mlflow-client.txt"]
    assert len({wheels.folder for wheels in (RUNTIME, MLFLOW, MLFLOW_CLIENT)}) == 3
    complete(MLFLOW)
    assert MLFLOW.is_there and not MLFLOW_CLIENT.is_there


def test_mlflows_packages_are_fetched_on_request_and_kept_current(
    checkout: Checkout, docker: Program, flowerbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def download(architecture: str, folder: Path, options: Any, *size: Any) -> None:
        fetched.append(folder.name)
        folder.mkdir()

    monkeypatch.setattr(wheelhouse, "download", download)
    assert flowerbed("build")[0] == 0 and fetched == []
    assert flowerbed("build", "--tracking", "mlflow")[0] == 0
    assert fetched == ["mlflow.new", "mlflow-client.new"]
    MLFLOW_CLIENT.requirements.write_text("# a newer one\n")
    assert flowerbed("build")[0] == 0
    assert fetched[2:] == ["mlflow-client.new"]


def test_wheels_survive_a_fill_that_is_killed(
    downloads: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    RUNTIME.fill("amd64")
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "runtime.new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        RUNTIME.fill("arm64")
    monkeypatch.setattr(Path, "rename", rename)
    RUNTIME.fill("arm64")
    # The old ones were there again, and were asked first.
    assert downloads[2][downloads[2].index("--find-links") + 1] == str(RUNTIME.folder)


def test_an_unknown_machine_is_named() -> None:
    with pytest.raises(core.Failure, match="riscv64: expected amd64 or arm64"):
        wheelhouse.download("riscv64", Path("/nonexistent"), [])


# The environments of apps (the rest: test_environments.py)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "expected the folder of a Flower app"),
        ("[project", "is not valid TOML"),
        (APP.replace("DEPENDENCIES", "3"), "expected a list"),
        (APP.replace("DEPENDENCIES", "['a b']"), "'a b' is not a valid requirement"),
    ],
)
def test_a_wrong_pyproject_is_named_before_any_work(
    checkout: Checkout, docker: Program, flowerbed: Run, tmp_path: Path, content: str | None, text: str
) -> None:
    folder = tmp_path / "app"
    (folder / "wrong").mkdir(parents=True)
    if content is not None:
        (folder / "pyproject.toml").write_text(content)
        (folder / "wrong" / "app.py").write_text("app = client = None\n")
    code, outcome, _ = flowerbed("build", "--app", str(folder))
    assert code == 2 and text in outcome["error"] and "pyproject.toml" in outcome["error"]
    assert not any(call.startswith("run") for call in docker.calls), "no package was asked for"


def test_a_second_app_without_its_option_gets_a_hint(docker: Program, flowerbed: Run) -> None:
    code, outcome, _ = flowerbed("build", "--app", "one", "two", "three")
    assert code == 2 and "(two three)" in outcome["error"]
    assert "build --app APP --app APP" in outcome["error"]


def test_a_job_folder_has_no_environment(
    checkout: Checkout, docker: Program, flowerbed: Run, tmp_path: Path
) -> None:
    (tmp_path / "meta.json").write_text('{"name": "x"}')
    code, outcome, _ = flowerbed("build", "--app", str(tmp_path))
    assert code == 2 and "is a job folder" in outcome["error"] and docker.calls == []


@pytest.mark.parametrize("words", [["--dry-run"], ["--gpu"], ["--apt", "libgomp1"], ["--upgrade"]])
def test_environment_options_need_an_app(
    checkout: Checkout, docker: Program, flowerbed: Run, words: list[str]
) -> None:
    code, outcome, _ = flowerbed("build", *words)
    assert code == 2 and outcome["error"].startswith(f"{words[0]}: expected --app APP")
    assert docker.calls == []


IMAGE = f"registry.example.org/flowerbed-runtime@sha256:{'a' * 64}"


@pytest.fixture
def published_image(docker: Program, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name a published image of this version, which the engine lacks until it is pulled."""
    (core.ROOT / "pyproject.toml").write_text('[project]\nversion = "0.1.0"\n')
    monkeypatch.setenv("FLOWERBED_RUNTIME", IMAGE)
    pulled = core.ROOT / "pulled"
    docker.answer(f"image inspect {IMAGE}", needs=pulled, out=inspected(**{published.VERSION: "0.1.0"}))
    docker.answer(f"pull --quiet {IMAGE}", creates=pulled)
    return IMAGE


def test_a_published_image_is_pulled_once_and_gets_the_kits(
    checkout: Checkout, docker: Program, flowerbed: Run, published_image: str
) -> None:
    shutil.rmtree(RUNTIME.folder)
    for _ in range(2):
        code, outcome, text = flowerbed("build")
        assert code == 0, text
    assert outcome["images"][0] == "flowerbed-runtime:dev" and f"flowerbed-runtime:dev is {IMAGE}" in text
    assert [call for call in docker.calls if call.startswith("pull")] == [f"pull --quiet {IMAGE}"]
    first = builds(docker)[0]
    assert "--target published" in first and f"--label {ownership.LABEL}=" in first
    assert f"--build-arg RUNTIME={IMAGE}" in first
    assert "create --network none flowerbed-runtime:dev" in docker.calls


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({published.VERSION: "0.0.9"}, "expected an image of Flowerbed 0.1.0, which this is, and .* 0.0.9"),
        ({}, "holds no published Flowerbed"),
        (
            {published.VERSION: "0.1.0", base_image.STAND_IN_LABEL: "bookworm"},
            "have Python in two places",
        ),
    ],
)
def test_a_published_image_that_does_not_fit_is_refused(
    checkout: Checkout,
    docker: Program,
    flowerbed: Run,
    published_image: str,
    labels: dict[str, str],
    said: str,
) -> None:
    docker.answer(f"image inspect {IMAGE}", out=inspected(**labels))
    code, outcome, _ = flowerbed("build")
    assert code == 1 and re.search(said, outcome["error"]), outcome
    assert not builds(docker)


def test_a_published_image_without_a_digest_is_not_pulled(
    checkout: Checkout,
    docker: Program,
    flowerbed: Run,
    published_image: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    docker.answer("image inspect registry.example.org/flowerbed-runtime:0.1.0", code=1)
    monkeypatch.setenv("FLOWERBED_RUNTIME", "registry.example.org/flowerbed-runtime:0.1.0")
    code, outcome, _ = flowerbed("build")
    assert code == 2 and "expected an image with its digest, NAME@sha256:" in outcome["error"]
    assert not [call for call in docker.calls if call.startswith("pull")]


def test_a_published_image_has_no_client_of_mlflow(
    checkout: Checkout, docker: Program, flowerbed: Run, published_image: str
) -> None:
    complete(MLFLOW)
    complete(MLFLOW_CLIENT)
    code, outcome, _ = flowerbed("build", "--tracking", "mlflow")
    assert code == 2 and "lacks MLflow's client" in outcome["error"] and not builds(docker)
