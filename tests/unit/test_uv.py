"""uv's calls: its sources of packages, its container's view, and who sees passwords."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts import base_image, core, engine, engine_view, images, progress, source_builds, uv, wheelhouse

SECRET = "hunter2"  # Not one.
FIRST = "https://ann:hunter2@index.example/simple"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of this machine's, and folders of the test's own."""
    for name in [name for name in os.environ if uv.PASSED_ON.fullmatch(name) or name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(uv, "ENVIRONMENTS", tmp_path / "environments")
    uv.prepare()
    uv.sources.cache_clear()
    yield
    uv.sources.cache_clear()


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says what `pip config list` prints."""

    def says(*lines: str) -> None:
        printed = "".join(f"{line}\n" for line in lines).encode()
        answer = subprocess.CompletedProcess([], 0, printed, b"")
        monkeypatch.setattr(core, "run", lambda command, **options: answer)
        uv.sources.cache_clear()

    says()
    return says


class Engine:
    """Takes the place of `docker run`: notes commands and variables, and answers in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.commands: list[list[str]] = []
        self.variables: list[dict[str, str]] = []
        self.answers: list[tuple[int, str]] = []
        self.built: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(progress, "follow", self.follow)
        monkeypatch.setattr(engine, "docker", lambda: "docker")
        monkeypatch.setattr(engine, "info", dict)
        monkeypatch.setattr(engine_view, "is_rootless", lambda: False)
        monkeypatch.setattr(engine, "has", lambda image: False)
        monkeypatch.setattr(base_image, "name", lambda: "the-base")
        monkeypatch.setattr(uv, "program", lambda: tmp_path / "uv")
        monkeypatch.setattr(source_builds, "_reaches", lambda network, places: True)
        monkeypatch.setattr(images, "build", lambda target, name, **how: self.built.append((target, how)))

    def follow(
        self, command: list[str], tell: Any, *, timeout: float, env: dict[str, str]
    ) -> tuple[int, str]:
        self.commands.append(command)
        self.variables.append(env)
        return self.answers.pop(0) if self.answers else (0, "")


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    return Engine(monkeypatch, tmp_path)


def test_uv_gets_pips_settings(pip: Any) -> None:
    pip(
        "global.index-url='https://index.example/simple'",
        "global.extra-index-url='\\nhttps://a.example/simple\\nhttps://b.example/simple'",
        "install.find-links='https://c.example/wheels https://d.example/wheels'",
        "global.trusted-host='index.example'",
        "global.timeout='60'",
        "list.format='columns'",
    )
    assert uv.sources().variables == {
        "UV_DEFAULT_INDEX": "https://index.example/simple",
        "UV_INDEX": "https://a.example/simple https://b.example/simple",
        # Like pip: the newest version from any index.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "https://c.example/wheels,https://d.example/wheels",
        "UV_INSECURE_HOST": "index.example",
    }
    assert uv.sources().are_named


def test_pips_settings_have_the_same_precedence_as_for_pip(pip: Any) -> None:
    """pip lists settings by name, and takes a variable before its files."""
    pip(
        ":env:.index-url='https://variable.example/simple'",
        "global.index-url='https://file.example/simple'",
        "install.index-url='https://install.example/simple'",
        "wheel.no-index='true'",
    )
    assert uv.sources().variables == {"UV_DEFAULT_INDEX": "https://variable.example/simple"}


def test_uvs_own_variables_count_before_pips(pip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pip("global.index-url='https://pip.example/simple'")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv.example/simple")
    monkeypatch.setenv("UV_INDEX_PRIVATE_PASSWORD", SECRET)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    # None of these says where packages are, and one would replace the container's own.
    for name in ("UV_PYTHON", "UV_CACHE_DIR", "PATH", "UV_LINK_MODE", "PYTHONPATH"):
        monkeypatch.setenv(name, "/mine")
    assert uv.sources().variables == {
        "UV_DEFAULT_INDEX": "https://uv.example/simple",
        "UV_INDEX_PRIVATE_PASSWORD": SECRET,
        "HTTPS_PROXY": "http://proxy.example:3128",
    }


def test_pip_itself_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "find-links" in uv.FROM_PIP
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    uv.sources.cache_clear()
    assert uv.sources().variables["UV_FIND_LINKS"] == str(tmp_path)
    assert str(tmp_path) in uv.sources().mounts


def test_a_proxy_or_certificate_names_no_source(pip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not uv.sources().are_named and uv.sources().mounts == ()
    pip("global.proxy='http://proxy.example:3128'", "global.cert='/nowhere/ca.pem'")
    assert not uv.sources().are_named, "these say not where packages are"


def test_folders_of_this_machine_are_mounted_to_read(pip: Any, docker: Engine, tmp_path: Path) -> None:
    wheels, index, inside = (tmp_path / name for name in ("wheels", "mirror/simple", "wheels/more"))
    for folder in (wheels, index, inside):
        folder.mkdir(parents=True)
    certificate = tmp_path / "ca.pem"
    certificate.touch()
    pip(
        f"global.find-links='{wheels} {inside}'",
        f"global.index-url='file://{index}'",
        f"global.cert='{certificate}'",
    )
    # An index's pages name files beside its folder. Of two folders one in the other, one is enough.
    expected = sorted(map(str, (certificate, tmp_path / "mirror", wheels)))
    assert list(uv.sources().mounts) == expected
    uv.call(["pip", "compile"])
    [command] = docker.commands
    for path in expected:
        assert f"{path}:{path}:ro" in command


def test_no_password_is_on_a_command_line_or_with_what_builds(
    pip: Any, docker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip(f"global.index-url='{FIRST}'", "global.proxy='http://ann:hunter2@proxy.example'")
    monkeypatch.setenv("UV_INDEX_PRIVATE_PASSWORD", SECRET)
    uv.call(["pip", "compile"])
    docker.answers = [(1, "error: Failed to build `a==1.0`")]
    said = built(["pip", "install"]).stdout
    assert f"{source_builds.PASSWORDS}=1" in said and "UV_FIND_LINKS" in said
    monkeypatch.setenv(source_builds.PASSWORDS, "1")
    docker.answers = [(1, "error: Failed to build `a==1.0`")]
    assert source_builds.PASSWORDS not in built(["pip", "install"]).stdout
    given = [variables.get("UV_INDEX_PRIVATE_PASSWORD") for variables in docker.variables]
    assert given == [SECRET, None, SECRET]
    assert [variables["UV_DEFAULT_INDEX"] for variables in docker.variables] == [
        FIRST,
        "https://index.example/simple",
        FIRST,
    ]
    assert docker.variables[1]["ALL_PROXY"] == "http://proxy.example"
    for command in docker.commands:
        assert SECRET not in " ".join(command) and {"UV_DEFAULT_INDEX", "ALL_PROXY"} <= set(command)
    assert SECRET not in json.dumps(docker.built)


def volumes(command: list[str]) -> list[str]:
    """Return the mounts of a container."""
    return [command[number + 1] for number, word in enumerate(command) if word == "--volume"]


def test_the_container_sees_environments_and_nothing_else(pip: Any, docker: Engine, tmp_path: Path) -> None:
    uv.call(["pip", "sync"])
    [command] = docker.commands
    program = f"{tmp_path / 'uv'}:/usr/local/bin/uv:ro"
    assert volumes(command) == [f"{uv.ENVIRONMENTS}:/environments", program]
    assert command[command.index("--cap-drop") + 1] == "ALL" and "no-new-privileges" in command
    owner = uv.ENVIRONMENTS.stat()
    assert command[command.index("--user") + 1] == f"{owner.st_uid}:{owner.st_gid}"
    assert "--privileged" not in command and command[-4:] == ["the-base", "uv", "pip", "sync"]
    assert docker.variables[0]["PYTHONHOME"] == "/nonexistent", "no package's code starts"
    uv.call(["pip", "compile"], folder=uv.ENVIRONMENTS / "one")
    seen = [f"{uv.ENVIRONMENTS}/{name}:/environments/{name}" for name in (".cache", "one")]
    assert volumes(docker.commands[1]) == [*seen, program]


def test_a_build_sees_only_its_own_cache(pip: Any, docker: Engine, tmp_path: Path) -> None:
    built(["pip", "install"])
    [command] = docker.commands
    seen = [f"{uv.ENVIRONMENTS}/{name}:/environments/{name}" for name in (".building/cache", "one")]
    assert volumes(command) == [*seen, f"{tmp_path / 'uv'}:/usr/local/bin/uv:ro"]
    assert command[command.index("--cap-drop") + 1] == "ALL" and "no-new-privileges" in command
    assert docker.variables[0]["UV_CACHE_DIR"] == "/environments/.building/cache"
    assert (uv.ENVIRONMENTS / ".building").stat().st_mode & 0o777 == 0o700, "apps that run see its folder"
    assert "PYTHONHOME" not in docker.variables[0]


def built(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return source_builds.call(words, uv.ENVIRONMENTS / "one", **options)


@pytest.mark.parametrize(
    ("told", "reached", "network", "asked"),
    [
        ([], ["bridge"], "bridge", ["pypi.org:443"]),
        ([], ["host"], "host", ["pypi.org:443"]),
        ([], [], "bridge", ["pypi.org:443"]),
        (["global.index-url='http://127.0.0.1:3141/root'"], ["bridge"], "host", []),
        (["global.index-url='https://u:p@[::1]/root'"], ["bridge"], "host", []),
        (["global.proxy='http://localhost:3128'"], ["bridge"], "host", []),
        (["global.proxy='http://p.example:3128'"], ["bridge"], "bridge", ["p.example:3128"]),
        (["global.index-url='http://a.example'"], ["bridge"], "bridge", ["a.example:80"]),
        (["global.no-index='1'", "global.find-links='/wheels'"], ["host"], "bridge", []),
    ],
)
def test_a_build_uses_this_machines_network_only_if_it_must(
    pip: Any,
    monkeypatch: pytest.MonkeyPatch,
    told: list[str],
    reached: list[str],
    network: str,
    asked: list[str],
) -> None:
    pip(*told)
    assert uv.sources()
    found: list[str] = []

    def reaches(network: str, places: Sequence[str]) -> bool:
        found[:] = list(places)
        return network in reached

    monkeypatch.setattr(source_builds, "_reaches", reaches)
    assert (source_builds.network(), found) == (network, asked)


def test_without_an_index_none_is_asked(pip: Any, docker: Engine) -> None:
    """uv has an option for that, and no variable."""
    pip("global.no-index='true'")
    uv.call(["pip", "sync"])
    uv.call(["venv"])
    built(["pip", "install"], collect=True)
    assert [command[-1] == "--no-index" for command in docker.commands] == [True, False, True]


def test_imports_are_tried_without_a_network(monkeypatch: pytest.MonkeyPatch, docker: Engine) -> None:
    """This container runs the packages' code: it sees one environment to read, and it reaches nobody."""
    commands: list[list[str]] = []
    monkeypatch.setattr(core, "run", lambda command, **options: commands.append(command))
    script, folder = Path("/checkout/images/try_imports.py"), uv.ENVIRONMENTS / "x"
    uv.python(folder, ["python", "numpy"], script=script, variables={"LD_LIBRARY_PATH": "/a:/b"})
    uv.python(folder / "venv", ["python"], writes=True)
    for command in commands:
        assert command[command.index("--network") + 1] == "none" and "--read-only" in command
        assert command[command.index("--cap-drop") + 1] == "ALL"
    assert volumes(commands[0]) == [f"{folder}:/environments/x:ro", f"{script}:{script}:ro"]
    assert volumes(commands[1]) == [f"{folder}/venv:/environments/x/venv"]
    assert "--env=LD_LIBRARY_PATH=/a:/b" in commands[0]


def test_containers_as_root_see_one_new_folder_or_none(
    pip: Any, monkeypatch: pytest.MonkeyPatch, docker: Engine
) -> None:
    commands: list[list[str]] = []
    assert uv.sources().mounts == ()
    monkeypatch.setattr(core, "run", lambda command, **options: commands.append(command))
    folder = uv.ENVIRONMENTS / "x" / "system"
    uv.as_root("ldconfig -p")
    uv.as_root("dpkg-deb", folder=folder, network="host")
    assert [volumes(command) for command in commands] == [[], [f"{folder}:/environments/x/system"]]
    assert [command[command.index("--network") + 1] for command in commands] == ["none", "host"]


def test_a_lock_is_installed_as_it_is(pip: Any, docker: Engine, tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").touch()
    pip(f"global.constraint='{tmp_path}/constraints.txt'")
    uv.call(["pip", "compile"])
    uv.call(["pip", "sync"])
    assert ["UV_CONSTRAINT" in variables for variables in docker.variables] == [True, False]


@pytest.mark.parametrize(
    "said",
    [
        "error: command 'gcc' failed: No such file or directory",
        "error: [Errno 2] No such file or directory: 'x86_64-linux-gnu-gcc'",
        "error: command 'x86_64-linux-gnu-gcc' failed with exit code 1",
        "src/a.c:1:10: fatal error: Python.h: No such file or directory",
        "FileNotFoundError: [Errno 2] No such file or directory: 'make'",
        "Git executable not found. Ensure that Git is installed and available.",
        "ERROR: Unknown compiler(s): [['cc'], ['gcc'], ['clang']]",
        "error: linker `cc` not found",
    ],
)
def test_needed_builds_are_recognized_with_any_tool_output(said: str) -> None:
    begins = "" if said.startswith("Git") else "error: Failed to build `a==1.0`\n"
    assert source_builds.NOT_BUILT.search(begins + said)
    assert not source_builds.NOT_BUILT.search("No solution found when resolving dependencies")


def test_it_is_built_in_an_image_with_a_compiler(pip: Any, docker: Engine) -> None:
    assert built(["pip", "install"]).returncode == 0
    assert docker.commands[0][-4] == "flowerbed-compiler"
    assert docker.built == [("compiler", {"network": "host", "arguments": {"APT": ""}})]


def test_debian_packages_are_in_the_image_that_builds(pip: Any, docker: Engine) -> None:
    built(["pip", "install"], packages=["libpq-dev", "libgomp1"])
    assert docker.built[0][1]["arguments"] == {"APT": "libgomp1 libpq-dev"}
    assert docker.commands[0][-4] == "flowerbed-compiler-libgomp1-libpq-dev"
    assert source_builds.compiler_image(["UPPER/x:y"]) == "flowerbed-compiler-upper-x-y"


def test_the_cache_is_the_owners_and_the_environments_are_for_all() -> None:
    assert uv.ENVIRONMENTS.stat().st_mode & 0o777 == 0o755
    assert (uv.ENVIRONMENTS / uv.CACHE).stat().st_mode & 0o777 == 0o700


def test_the_program_is_taken_out_of_its_wheel_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheelhouse, "HOUSE", tmp_path / "wheels")
    monkeypatch.setattr(uv, "PROGRAM", tmp_path / "uv")
    wheelhouse.RUNTIME.folder.mkdir(parents=True)
    wheel = wheelhouse.RUNTIME.folder / "uv-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("uv-1.0.data/scripts/uv", b"program")
        archive.writestr("uv-1.0.data/scripts/uvx", b"another")
    program = uv.program()
    assert program.read_bytes() == b"program" and program.stat().st_mode & 0o777 == 0o755
    inode = program.stat().st_ino
    assert uv.program().stat().st_ino == inode
    # With a newer one, that.
    wheel.rename(wheel.with_name("uv-2.0-py3-none-any.whl"))
    assert uv.program() != program
