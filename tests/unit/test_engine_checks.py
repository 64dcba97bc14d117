"""Engines that are rootless, in a virtual machine, elsewhere, or Podman. Uses no engine.

`docs/how-to/other-engines.md` says on which of these it was tried.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from provisioning import here
from scripts import apt, compose, core, engine, engine_checks, engine_view, images, uv
from tests.unit.faking import HEALTHY, Program, versions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Make a machine with a healthy engine, an ordinary user and an empty checkout."""
    root = tmp_path / "root"
    root.mkdir()
    (root / engine_view.PROJECT).write_text("name: flowerbed\n")
    program = Program(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(program.folder))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "FLOWERBED_BASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(apt, "is_root", lambda: False)
    monkeypatch.setattr(core, "ROOT", root)
    engine_view._maps_users.cache_clear()
    return program


@pytest.fixture
def podman(docker: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Make the engine a rootless Podman that has all it needs."""
    docker.answer("version --format", out=podman_version("5.4.2"))
    docker.answer("info --format", out=json.dumps({"SecurityOptions": ["name=rootless"]}))
    docker.answer("run --rm --init")
    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd" / "private").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(engine_checks, "NAME_SERVERS", (tmp_path / "systemd",))
    return docker


def podman_version(version: str) -> str:
    told = json.loads(versions())
    told["Server"] |= {"Version": version, "Components": [{"Name": "Podman Engine", "Version": version}]}
    return json.dumps(told)


def findings() -> dict[str, tuple[str, str, str]]:
    """Return level, text and fix of each finding by its name, except those that are ok."""
    found = engine_checks.check(engine.ask())
    return {f.check: (f.level, f.found, f.mend) for f in found if f.level != "ok"}


def context(docker: Program, host: str, name: str = "far") -> None:
    """Choose a context of the docker command."""
    config = docker.folder.parent / "docker"
    meta = config / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))
    (config / "config.json").write_text(json.dumps({"currentContext": name}))


# Where the engine is.


def test_the_address_is_that_of_the_chosen_context(docker: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    assert here.engine_address() == "" and not engine.is_remote()
    context(docker, "ssh://far.example")
    assert here.engine_address() == "ssh://far.example" and engine.is_remote()
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    assert not engine.is_remote()
    monkeypatch.setenv("DOCKER_HOST", "tcp://other.example:2376")
    assert here.engine_address() == "tcp://other.example:2376"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"currentContext": 3}', '{"currentContext": "gone"}'])
def test_a_docker_configuration_that_names_no_context(docker: Program, text: str) -> None:
    folder = docker.folder.parent / "docker"
    folder.mkdir()
    (folder / "config.json").write_text(text)
    assert here.engine_address() == ""


@pytest.mark.parametrize(
    ("platform", "host", "local"),
    [
        ("linux", "", True),
        ("linux", "unix:///run/user/1000/podman/podman.sock", True),
        ("linux", "unix:///home/ann/.docker/desktop/docker.sock", False),
        ("linux", "ssh://far.example", False),
        ("darwin", "", False),
        ("darwin", "unix:///Users/ann/.docker/run/docker.sock", False),
    ],
)
def test_containers_see_this_machine_only_on_linux_with_its_own_engine(
    docker: Program, monkeypatch: pytest.MonkeyPatch, platform: str, host: str, local: bool
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("DOCKER_HOST", host)
    assert here.is_local_linux() is local


# What an engine elsewhere sees.


def test_an_engine_elsewhere_that_does_not_see_the_checkout_is_named(
    docker: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://far.example")
    docker.answer("run --rm --network none --mount", code=125, err="bind source path does not exist: /x\n")
    level, found, mend = findings()["mounts"]
    assert level == "fail" and "ssh://far.example does not see" in found and str(core.ROOT) in found
    assert "docker context use" in mend
    with pytest.raises(core.Failure, match=r"ssh://far\.example does not see[^$]*To mend it, run flowerbed"):
        engine_view.check(core.ROOT)


def test_another_checkout_at_the_same_path_elsewhere_is_not_this_one(
    docker: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://far.example")
    docker.answer("run --rm --network none --mount", out="name: theirs\n")
    assert findings()["mounts"][0] == "fail"
    docker.answer("run --rm --network none --mount", out="name: flowerbed\n")
    assert "mounts" not in findings()
    engine_view.check(core.ROOT)


def test_a_virtual_machine_that_lacks_the_folder_is_named(
    docker: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    docker.answer("run --rm --network none --mount", code=125, err="Mounts denied\n")
    level, found, mend = findings()["mounts"]
    assert level == "fail" and "virtual machine does not see" in found and "File sharing" in mend


def test_nothing_is_asked_of_an_engine_of_this_machine(docker: Program) -> None:
    assert findings() == {}
    engine_view.check(core.ROOT)
    assert not any(call.startswith("run") for call in docker.calls)


def test_a_folder_that_the_other_machine_lacks_is_named(
    docker: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "Error response: invalid mount config: bind source path does not exist: /home/ann/jobs"
    with pytest.raises(core.Failure, match="docker compose up failed"):
        compose.explain("docker compose up", said)
    monkeypatch.setenv("DOCKER_HOST", "ssh://far.example")
    with pytest.raises(core.Failure, match=r"no folder /home/ann/jobs[^$]*ssh://far\.example"):
        compose.explain("docker compose up", said)


# Rootless engines.


def test_limits_that_have_no_effect_are_named(docker: Program) -> None:
    info = {"SecurityOptions": ["name=rootless"], "CgroupDriver": "none", "CgroupVersion": "1"}
    docker.answer("info --format", out=json.dumps(info))
    level, found, mend = findings()["cgroups"]
    assert level == "warn" and "memory, the number of processes, processor cores" in found
    assert "cgroup v2" in mend
    docker.answer("info --format", out='{"MemoryLimit": true, "PidsLimit": false, "CpuCfsQuota": true}')
    level, found, mend = findings()["cgroups"]
    assert "memory" not in found and "processes" in found and "kernel" in mend


def test_a_rootless_engines_root_owns_what_a_build_writes(
    docker: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uv, "ENVIRONMENTS", tmp_path)
    assert any(word.startswith("--user") for word in uv._as_owner())
    docker.answer("info --format", out=json.dumps({"SecurityOptions": ["name=seccomp", "name=rootless"]}))
    assert engine_view.is_rootless() and not any(word == "--user" for word in uv._as_owner())


def test_podman_that_does_not_say_that_it_is_rootless(podman: Program) -> None:
    podman.answer("info --format", out=json.dumps({"SecurityOptions": ["name=seccomp,profile=default"]}))
    podman.answer("run --rm --network none", out="         0       1001          1\n")
    assert engine_view.is_rootless()
    engine_view._maps_users.cache_clear()
    podman.answer("run --rm --network none", out="         0          0 4294967295\n")
    assert not engine_view.is_rootless()


def test_only_some_engines_give_this_machines_network(
    docker: Program, podman: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_view.check_host_network("flwr-api")
    docker.answer("version --format", out=versions())
    with pytest.raises(core.Failure, match=r"flwr-api needs an engine[^$]*flwr-config"):
        engine_view.check_host_network("flwr-api")
    docker.answer("info --format", out="{}")
    engine_view.check_host_network("flwr-api")
    monkeypatch.setenv("DOCKER_HOST", "ssh://far.example")
    with pytest.raises(core.Failure, match="needs an engine"):
        engine_view.check_host_network("flwr-api")


# Podman.


def test_podman_that_has_all(podman: Program) -> None:
    assert findings() == {}
    found = engine_checks.check_engine(engine.ask())
    assert found.found == "Podman 5.4.2 (amd64)"


def test_podman_builds_without_buildkit(podman: Program) -> None:
    podman.answer("buildx version", out="github.com/docker/buildx v0.16.1\n")
    assert engine.builder() == ([str(podman.folder / "docker"), "build"], {"DOCKER_BUILDKIT": "0"})
    assert "Podman's own builder" in engine_checks.check_builder(engine.ask()).found
    podman.answer("build --network none --file", out="STEP 1/1: FROM x\n")
    images.build("runtime", "flowerbed-runtime:dev")
    assert not any("--progress" in call for call in podman.calls), "its builder has no such option"


def test_podmans_names_of_images_are_docker_s(podman: Program) -> None:
    tags = ["localhost/flowerbed-server:dev", "docker.io/library/flowerbed-site-1:dev"]
    told = [{"RepoTags": [tag], "Config": {"Labels": {"a": "b"}}} for tag in tags]
    podman.answer("image inspect flowerbed", out=json.dumps(told))
    names = ["flowerbed-server:dev", "flowerbed-site-1:dev"]
    assert engine.labels(names, "a") == dict.fromkeys(names, "b")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda docker, folder: docker.answer("version --format", out=podman_version("4.3.1")),
            "by its name",
        ),
        (lambda docker, folder: docker.answer("version --format", out=podman_version("dev")), "by its name"),
        (lambda docker, folder: (folder / "systemd" / "private").unlink(), "no systemd runs"),
        (
            lambda docker, folder: docker.answer(
                "run --rm --init", code=125, err="no container-init binary\n"
            ),
            "no container-init binary",
        ),
        (
            lambda docker, folder: (
                (folder / "systemd" / "private").unlink(),
                (folder / "systemd").rmdir(),
            ),
            "find each other by name",
        ),
    ],
)
def test_what_podman_lacks(
    podman: Program, tmp_path: Path, change: Callable[[Program, Path], Any], text: str
) -> None:
    change(podman, tmp_path)
    found = [f for f in engine_checks.check(engine.ask()) if f.level == "fail"]
    assert any(text in f.found and f.mend for f in found)


def test_podman_without_root_on_the_old_cgroups_limits_nothing(podman: Program) -> None:
    info = {"SecurityOptions": ["name=rootless"], "MemoryLimit": True, "CgroupVersion": "1"}
    podman.answer("info --format", out=json.dumps(info))
    assert findings()["cgroups"][0] == "warn"


def test_podman_without_a_controller_of_cgroup_v2_starts_nothing(podman: Program) -> None:
    info = {"SecurityOptions": ["name=rootless"], "MemoryLimit": False, "CgroupVersion": "2"}
    podman.answer("info --format", out=json.dumps(info))
    level, found, mend = findings()["cgroups"]
    assert level == "fail" and "starts no container" in found and "cgroup v2" in mend


def test_podmans_ps_shows_no_health_and_inspect_does(podman: Program) -> None:
    lines = [
        {"Service": name, "Name": f"x-{name}-1", "State": "running", "Status": "Up 2 minutes"}
        for name in ("server", "console")
    ]
    podman.answer("ps --all", out="".join(json.dumps(line) + "\n" for line in lines))
    podman.answer("inspect --format", out="x-server-1 starting\n/x-console-1 \n")
    found = compose.containers()
    assert {c["Service"]: c["Health"] for c in found} == {"server": "starting", "console": ""}


def test_podman_as_root_is_warned_of(
    podman: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    podman.answer("info --format", out="{}")
    podman.answer("run --rm --network none", out="0 0 4294967295\n")
    monkeypatch.setattr(engine, "SYSTEMD", tmp_path)
    level, found, _ = findings()["podman"]
    assert level == "warn" and "as root" in found


# macOS.


@pytest.fixture
def mac(docker: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Make the machine a Mac where no engine answers."""
    monkeypatch.setattr(sys, "platform", "darwin")
    docker.answer("version --format", needs="/nonexistent")
    return docker


def test_on_macos_the_engine_is_to_be_started(mac: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "is_root", lambda: True)
    Program(mac.folder, "apt-get", {})
    Program(mac.folder, "dockerd", {})
    with pytest.raises(core.Failure, match=r"Start Docker Desktop[^$]*Debian and Ubuntu only"):
        engine.ensure()
    assert not apt.is_possible() and not list(mac.folder.glob("apt-get.calls"))
    assert "Docker Desktop" in engine_checks.check_engine(engine.ask()).mend


def test_windows_is_referred_to_wsl() -> None:
    code = "import sys; sys.platform = 'win32'; import scripts"
    process = subprocess.run(
        [sys.executable, "-P", "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert process.returncode == 1 and "WSL only" in process.stderr and "Traceback" not in process.stderr


WITHOUT_LINUX = """\
import os, sys, sysconfig
sysconfig.get_config_vars()  # From a file that is here for Linux only.
sys.modules["_scproxy"] = type(sys)("_scproxy")  # A part of macOS's Python.
sys.modules["_scproxy"]._get_proxy_settings = sys.modules["_scproxy"]._get_proxies = dict
sys.platform = "darwin"
for name in dir(os):
    if name.startswith(("sched_", "pidfd_", "memfd_", "eventfd", "splice", "POSIX_FADV")):
        delattr(os, name)
for name in ("getxattr", "listxattr", "setxattr", "setns", "unshare", "O_PATH", "O_TMPFILE", "getresuid"):
    if hasattr(os, name):
        delattr(os, name)
import fcntl, signal, socket
for module, names in (
    (fcntl, ("F_ADD_SEALS", "F_OFD_SETLK", "F_SETPIPE_SZ")),
    (socket, ("SO_PEERCRED", "SO_PASSCRED", "AF_NETLINK", "AF_VSOCK")),
    (signal, ("sigwaitinfo", "sigtimedwait", "SIGRTMIN", "pidfd_send_signal")),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

def refuse(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        name = os.fsdecode(args[0])
        if name.startswith(("/proc", "/sys")):
            raise FileNotFoundError(2, "there is none on macOS", name)
    if event == "ctypes.dlsym" and args[1] in ("prctl", "syscall", "unshare"):
        raise AttributeError(args[1])

sys.addaudithook(refuse)
"""
"""A program that takes away what macOS lacks."""


def test_every_verb_is_imported_without_what_macos_lacks() -> None:
    names = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem[0] != "_")
    names = [f"scripts.{name}" for name in [*names, "__main__"]]
    names += [f"provisioning.{path.stem}" for path in sorted((ROOT / "provisioning").glob("*.py"))]
    imports = "".join(f"import {name.removesuffix('.__init__')}\n" for name in names)
    # Packages of others choose their code by the platform, and only Linux's is here.
    code = f"import nvflare, psutil\n{WITHOUT_LINUX}{imports}import bridge.flare.recipe\n"
    command = [sys.executable, "-P", "-c", code]
    process = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("words", [["--help"], ["status"], ["doctor"], ["up"], ["down"]])
def test_verbs_answer_without_what_macos_lacks(tmp_path: Path, words: list[str]) -> None:
    program = Program(tmp_path / "bin", answers={**HEALTHY, "version --format": {"needs": "/nonexistent"}})
    code = f"""\
{WITHOUT_LINUX}
from pathlib import Path
from scripts import compose, core
core.ROOT = Path({str(tmp_path)!r})
from scripts.__main__ import main
sys.exit(main({words!r}))
"""
    process = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={"PYTHONPATH": str(ROOT), "PATH": str(program.folder), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode in (0, 1) and "Traceback" not in process.stderr, process.stderr
