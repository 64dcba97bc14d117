"""`pip install .`: the command, `flowerbed init`, and `FlowerRecipe` with its types."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from provisioning import dotenv, places
from scripts import core, images, init
from scripts.core import ROOT
from tests.installed import Installed, install


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("anywhere"))


@pytest.fixture(scope="module")
def laid(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay a federation out. Tests may only copy it."""
    folder = tmp_path_factory.mktemp("laid")
    assert installed.verb("init", "labs", folder=folder).code == 0
    return folder / "labs"


@pytest.fixture
def labs(laid: Path, tmp_path: Path) -> Path:
    """Copy it."""
    return Path(shutil.copytree(laid, tmp_path / "labs"))


def test_the_version_is_the_one_in_pyproject(installed: Installed) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert installed.run("--version").stdout.strip() == f"flowerbed {version}"
    here = [sys.executable, "-P", "-m", "scripts", "--version"]
    said = subprocess.run(here, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert said.stdout.strip() == f"flowerbed {version}"
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_no_package_has_a_name_that_others_may_use(installed: Installed) -> None:
    found = {path.name for path in installed.packages.iterdir() if not path.name.endswith(".dist-info")}
    assert found == {"bin", "bridge", "flowerbed"}


def test_developers_tools_and_tests_stay_out(installed: Installed) -> None:
    assert not list(installed.packages.rglob("test_*.py"))
    shown = installed.run("--help").stdout
    assert "quickstart" in shown and "bench" not in shown and "Developers" not in shown
    assert not (installed.packages / "flowerbed" / "program" / "dev").exists()


def test_it_asks_for_what_the_checkouts_verbs_need() -> None:
    """The same as requirements/host.in, with pip, which a checkout's own environment has."""
    lines = (ROOT / "requirements" / "host.in").read_text().splitlines()
    wanted = {re.split(r"[<>=!~;\[ ]", line)[0] for line in lines if line and line[0] not in "#-"} | {"pip"}
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[<>=!~;\[ ]", line)[0] for line in stated} == wanted


def test_without_a_federation_each_verb_says_how_to_make_one(installed: Installed) -> None:
    for verb in ("jobs", "up", "provision", "quickstart"):
        outcome = installed.verb(verb)
        assert outcome.code == 2 and "lay one out: flowerbed init DIR" in outcome.value["error"]
        assert "./flowerbed" not in outcome.text
    assert installed.run("submit", "--help").returncode == 0


def test_init_lays_a_federation_out(installed: Installed, tmp_path: Path) -> None:
    outcome = installed.verb("init", "My Labs", "--port", "8123", folder=tmp_path)
    assert outcome.code == 0, outcome.text
    folder = tmp_path / "My Labs"
    assert outcome.value["name"] == "my-labs" and outcome.value["folder"] == str(folder)
    assert init.JSON.problems(outcome.value) == []
    content = yaml.safe_load((folder / "project.yml").read_text())
    assert content == yaml.safe_load((ROOT / "project.yml").read_text()) | {"name": "my-labs"}
    assert dotenv.read(folder / ".env") == {places.MARK: places.PROGRAM, "FLOWERBED_PORT": "8123"}
    for name in outcome.value["written"]:
        assert (folder / name).exists()
    written = [path for path in folder.rglob("*") if path.is_file() and "apps" not in path.parts]
    assert len(written) >= 12 and not [path for path in written if "./flowerbed" in path.read_text()]
    # Verbs find it in the folder, and from one below it.
    for place in (folder, folder / "apps"):
        outcome = installed.verb("jobs", folder=place)
        assert (
            outcome.code == 1
            and "Nothing is provisioned yet: run flowerbed provision" in outcome.value["error"]
        )


def test_provisioning_works_there_and_writes_nothing_into_the_program(
    installed: Installed, tmp_path: Path
) -> None:
    before = _state(installed.packages)
    assert installed.verb("init", "labs", folder=tmp_path).code == 0
    outcome = installed.verb("provision", folder=tmp_path / "labs")
    assert outcome.code == 0, outcome.text
    assert (tmp_path / "labs" / outcome.value["kits"]["site-1"] / "startup" / "client.key").is_file()
    assert "Next: flowerbed build" in outcome.text and "./flowerbed" not in outcome.text
    assert _state(installed.packages) == before


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    files = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {str(path): (found.st_size, found.st_mtime_ns) for path, found in files.items()}


def test_flares_own_command_works_there(installed: Installed, tmp_path: Path, labs: Path) -> None:
    """As docs/how-to/install.md says it."""
    code = "import flowerbed; print(flowerbed.PROGRAM)"
    program = subprocess.run(
        [sys.executable, "-c", code], env=installed.env, cwd=tmp_path, capture_output=True, text=True
    ).stdout.strip()
    words = ["-P", "-m", "nvflare.cli", "provision", "-p", "project.yml"]
    env = {**installed.env, "PYTHONPATH": f"{program}{os.pathsep}{installed.packages}"}
    done = subprocess.run(
        [sys.executable, *words], cwd=labs, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert (labs / "workspace" / "labs" / "prod_00" / "compose.yaml").is_file()


@pytest.mark.parametrize(
    "name",
    [
        *("project.yml", "compose.yaml", "compose", ".env", ".dockerignore", "workspace", ".flowerbed"),
        *("compose.override.yaml", "docker-compose.yml"),
    ],
)
def test_init_overwrites_and_adopts_nothing(installed: Installed, tmp_path: Path, name: str) -> None:
    (tmp_path / "labs").mkdir()
    (tmp_path / "labs" / name).write_text("mine")
    outcome = installed.verb("init", "labs", folder=tmp_path)
    assert outcome.code == 2 and f"labs already has {name}" in outcome.value["error"]
    assert [path.name for path in (tmp_path / "labs").iterdir()] == [name]
    assert (tmp_path / "labs" / name).read_text() == "mine"


def test_a_name_that_compose_refuses_is_refused(installed: Installed, tmp_path: Path) -> None:
    for words in (("labs", "--name", "My Labs"), ("___",)):
        outcome = installed.verb("init", *words, folder=tmp_path)
        assert outcome.code == 2 and "expected a-z, 0-9, - and _" in outcome.value["error"], words


def test_update_renews_our_files_and_keeps_edits(installed: Installed, tmp_path: Path, labs: Path) -> None:
    fragment = labs / "compose" / "site.yaml"
    as_written = fragment.read_text()
    (labs / "project.yml").write_text((labs / "project.yml").read_text() + "# mine\n")
    assert installed.verb("init", "labs", "--update", folder=tmp_path).value["written"] == []
    fragment.write_text(as_written + "# mine\n")
    (labs / "compose" / "relay.yaml").unlink()
    outcome = installed.verb("init", "labs", "--update", folder=tmp_path)
    assert outcome.code == 0, outcome.text
    assert sorted(outcome.value["written"]) == ["compose/relay.yaml", "compose/site.yaml"]
    assert outcome.value["before"] == ["compose/site.yaml.before"]
    assert fragment.read_text() == as_written
    assert fragment.with_name("site.yaml.before").read_text() == as_written + "# mine\n"
    assert (labs / "project.yml").read_text().endswith("# mine\n")
    refused = installed.verb("init", ".", "--update", folder=tmp_path)
    assert refused.code == 2 and "no federation that was laid out" in refused.value["error"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("planted", [".", ".env", "compose.yaml", "project.yml"])
def test_a_federation_of_another_user_is_not_used(installed: Installed, labs: Path, planted: str) -> None:
    """As in /tmp, where anybody can put a compose.yaml above somebody's working directory."""
    os.chown(labs / planted, 12345, 12345)
    below = labs / "mine"
    below.mkdir()
    for folder in (labs, below):
        outcome = installed.verb("jobs", folder=folder)
        assert outcome.code == 2 and "belongs to another user" in outcome.value["error"]


@pytest.mark.parametrize(("file", "mode"), [(".", 0o777), (".env", 0o666), ("project.yml", 0o646)])
def test_a_federation_that_others_may_write_is_not_used(
    installed: Installed, labs: Path, file: str, mode: int
) -> None:
    (labs / file).chmod(mode)
    outcome = installed.verb("jobs", folder=labs)
    assert outcome.code == 2 and "may be written by other users" in outcome.value["error"]


def test_a_federation_of_links_is_not_used(installed: Installed, tmp_path: Path, labs: Path) -> None:
    """Links to somebody's own files would pass for that person's."""
    (tmp_path / "planted").mkdir()
    for name in (".env", "compose.yaml"):
        (tmp_path / "planted" / name).symlink_to(labs / name)
    outcome = installed.verb("jobs", folder=tmp_path / "planted")
    assert outcome.code == 2 and "is a link" in outcome.value["error"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_init_fills_no_folder_of_another_user(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "labs").mkdir()
    os.chown(tmp_path / "labs", 12345, 12345)
    outcome = installed.verb("init", "labs", folder=tmp_path)
    assert outcome.code == 2 and "belongs to another user" in outcome.value["error"]
    assert list((tmp_path / "labs").iterdir()) == []


def test_a_checkouts_command_acts_on_the_federation_it_is_called_in(
    installed: Installed, tmp_path: Path, labs: Path
) -> None:
    """Elsewhere it acts on the checkout, wherever it is called."""
    code = "from scripts import core; print(core.ROOT)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for folder, root in ((tmp_path, ROOT), (labs, labs)):
        words = [sys.executable, "-P", "-c", code]
        said = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True).stdout
        assert said.strip() == str(root)


def test_images_are_made_from_a_copy_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert images.lay_program() == "."  # In a checkout there is nothing to copy.
    monkeypatch.setattr(core, "ROOT", tmp_path)
    monkeypatch.setattr(places, "ROOT", tmp_path)
    assert images.lay_program() == places.PROGRAM
    copy = tmp_path / places.PROGRAM
    assert (copy / "images" / "Dockerfile").is_file() and (copy / "bridge" / "__init__.py").is_file()
    assert not list(copy.rglob("__pycache__"))
    as_written = (copy / "images").stat().st_ino
    images.lay_program()
    assert (copy / "images").stat().st_ino == as_written, "it was copied again"
    # Whatever changed there, images are made from the program.
    (copy / "images" / "Dockerfile").write_text("FROM planted")
    images.lay_program()
    assert (copy / "images" / "Dockerfile").read_text() == (ROOT / "images" / "Dockerfile").read_text()
    copy.rename(tmp_path / "elsewhere")
    copy.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(core.Failure, match="is a link"):
        images.lay_program()


def test_the_recipe_has_its_types(installed: Installed, tmp_path: Path) -> None:
    assert (installed.packages / "flowerbed" / "py.typed").is_file()
    assert (installed.packages / "bridge" / "py.typed").is_file()
    (tmp_path / "user.py").write_text(
        "from flowerbed import FlowerRecipe\n"
        'FlowerRecipe(flower_content="app", min_clients=2)\n'
        'FlowerRecipe(flower_content="app", min_clients="two")\n'
    )
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    for name in ("flowerbed", "bridge"):
        (site / name).symlink_to(installed.packages / name)
    mypy = [sys.executable, "-m", "mypy", "--config-file=", "--python-executable", str(python), "user.py"]
    said = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True, timeout=120).stdout
    (error,) = (line for line in said.splitlines() if "error:" in line)
    assert error.startswith("user.py:3:") and '"str"; expected "int"' in error


def test_the_recipe_is_imported_on_use(installed: Installed) -> None:
    code = (
        "import sys, flowerbed; assert 'nvflare' not in sys.modules; print(flowerbed.FlowerRecipe.__name__)"
    )
    said = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=installed.env,
        cwd=installed.folder,
        capture_output=True,
        text=True,
    )
    assert said.stdout.strip() == "FlowerRecipe", said.stderr
