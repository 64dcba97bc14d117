"""`flowerbed doctor`: each check can pass and fail, and says how to mend. No engine is used."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.common import readable
from bridge.common.ports import free_port
from provisioning import site_files, state
from scripts import (
    apt,
    core,
    doctor,
    engine,
    images,
    provision,
    results,
    site_checks,
    wheelhouse,
)
from scripts.__main__ import main
from scripts.wheelhouse import RUNTIME
from tests.unit.faking import Authority, Checkout, Program, versions

READ_ENGINE_CLOCK = doctor._engine_clock
Examine = Callable[[], tuple[int, dict[str, dict[str, str]], str]]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """Set up a federation that is provisioned and built, on a healthy engine."""
    root = tmp_path / "root"
    root.mkdir()
    docker = Program(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(docker.folder))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(apt, "is_root", lambda: False)
    monkeypatch.delenv("FLOWERBED_BASE", raising=False)
    monkeypatch.setattr(core, "ROOT", root)
    monkeypatch.setattr(wheelhouse, "HOUSE", root / "wheels")
    (root / "images").mkdir()
    monkeypatch.setattr(wheelhouse, "IMAGES", root / "images")
    RUNTIME.requirements.touch()
    people = [{"name": name} for name in ("server", "site-1", "admin@x.example")]
    content = {"name": "flowerbed", "participants": people}
    monkeypatch.setattr(provision, "load", lambda project: content)
    monkeypatch.setattr(doctor, "_engine_clock", time.time)
    return Checkout(root, docker, free_port())


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> Examine:
    """Run the verb: exit code, the findings by check (the worst of each), and what it told people."""

    def call() -> tuple[int, dict[str, dict[str, str]], str]:
        code = main(["doctor", "--format", "json"])
        captured = capsys.readouterr()
        checks = json.loads(captured.out.splitlines()[-1])["checks"]
        order = ("ok", "warn", "fail")
        worst = sorted(checks, key=lambda finding: order.index(finding["level"]))
        return code, {finding["check"]: finding for finding in worst}, captured.err

    return call


def fetched(architecture: str) -> None:
    """Say that all wheels of the runtime image are there."""
    RUNTIME.folder.mkdir(parents=True)
    (RUNTIME.folder / wheelhouse.STAMP).write_text(RUNTIME._stamp(architecture))


def levels(found: dict[str, dict[str, str]]) -> dict[str, str]:
    return {check: finding["level"] for check, finding in found.items() if finding["level"] != "ok"}


def test_a_machine_that_is_well(checkout: Checkout, examine: Examine) -> None:
    fetched("amd64")
    code, found, told = examine()
    assert code == 0 and levels(found) == {}, told
    wanted = {"engine", "compose", "builder", "disk", "base image", "wheels", "project.yml", "certificates"}
    assert set(found) == wanted | {"name", "data", "images", "port", "clocks", "results"}
    assert all(finding["mend"] == "" for finding in found.values())


def test_a_container_without_a_kit_is_left_alone(checkout: Checkout, examine: Examine) -> None:
    """Flower's command line comes in through one."""
    config = json.loads(checkout.docker.answers["compose config"]["out"])
    config["services"]["flwr.admin"] = {"image": "flowerbed-runtime:dev", "volumes": []}
    checkout.docker.answer("compose config", out=json.dumps(config))
    fetched("amd64")
    code, found, told = examine()
    assert code == 0 and found["certificates"]["level"] == "ok", told


def test_without_an_engine_the_rest_is_still_checked(checkout: Checkout, examine: Examine) -> None:
    checkout.docker.answer("version --format", needs="/nonexistent")
    code, found, told = examine()
    assert code == 1 and levels(found) == {"engine": "fail"}
    assert "Cannot connect" in found["engine"]["found"] and "./flowerbed up" in found["engine"]["mend"]
    assert f"-> {found['engine']['mend']}" in told
    assert "certificates" in found, "what needs no engine is still examined"


def test_nothing_at_all(checkout: Checkout, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    checkout.env.unlink()
    code, found, _ = examine()
    assert code == 1 and levels(found) == {"engine": "fail", "compose": "fail", "kits": "warn"}
    assert found["kits"]["mend"] == "./flowerbed provision"


@pytest.mark.parametrize(
    ("call", "answer", "check", "level", "text"),
    [
        ("compose version", {"out": "2.10.2\n"}, "compose", "fail", "2.10.2, but 2.20 or newer"),
        ("compose version", {"code": 1}, "compose", "fail", "no plugin"),
        ("version --format", {"out": versions("26.1.5")}, "builder", "fail", "BuildKit"),
        ("image inspect python:3.11-slim", {"code": 1}, "base image", "warn", "no python"),
        (
            "image inspect flowerbed-admin:dev",
            {"code": 1},
            "images",
            "warn",
            "flowerbed-admin:dev",
        ),
        ("compose config", {"code": 1, "err": "yaml: line 3"}, "compose file", "fail", "yaml: line 3"),
    ],
)
def test_what_the_engine_lacks(
    checkout: Checkout,
    examine: Examine,
    call: str,
    answer: dict[str, Any],
    check: str,
    level: str,
    text: str,
) -> None:
    checkout.docker.answer(call, **answer)
    code, found, _ = examine()
    assert code == (level == "fail")
    assert found[check]["level"] == level and text in found[check]["found"] and found[check]["mend"]


def test_wheels_that_are_not_all_there(checkout: Checkout, examine: Examine) -> None:
    assert examine()[1]["wheels"]["level"] == "warn"
    fetched("arm64")
    assert examine()[1]["wheels"]["level"] == "warn", "another machine's are of no use"
    (RUNTIME.folder / wheelhouse.STAMP).write_text(RUNTIME._stamp("amd64"))
    assert examine()[1]["wheels"]["level"] == "ok"
    RUNTIME.requirements.write_text("flwr==1.42.0 \\\n    --hash=sha256:aa\n")
    (RUNTIME.folder / wheelhouse.STAMP).write_text(RUNTIME._stamp("amd64"))
    assert examine()[1]["wheels"]["level"] == "warn", "whatever the stamp says, a wheel is gone"


@pytest.mark.parametrize(("free", "level"), [(0.4e9, "fail"), (1.5e9, "warn"), (9e9, "ok")])
def test_disk(
    checkout: Checkout, examine: Examine, monkeypatch: pytest.MonkeyPatch, free: float, level: str
) -> None:
    monkeypatch.setattr(images, "free_gb", lambda path: free / 1e9)
    code, found, _ = examine()
    assert found["disk"]["level"] == level and code == (level == "fail")
    assert f"{free / 1e9:.1f} GB free" in found["disk"]["found"]


@pytest.mark.parametrize(("days", "level"), [(-3, "fail"), (20, "warn"), (100, "warn"), (250, "ok")])
def test_expiry(checkout: Checkout, examine: Examine, days: float, level: str) -> None:
    checkout.authority.kit(checkout.kits["site-1"], days=days)
    code, found, _ = examine()
    assert found["certificates"]["level"] == level and code == (level == "fail")
    if level != "ok":
        assert "site-1" in found["certificates"]["found"]
        assert "./flowerbed renew" in found["certificates"]["mend"]


def test_a_kit_that_does_not_hold_together(checkout: Checkout, examine: Examine) -> None:
    startup = checkout.kits["site-1"] / "startup"
    shutil.copy(checkout.kits["admin"] / "startup" / "client.key", startup)
    code, found, _ = examine()
    assert code == 1 and "client.key is not the key of client.crt" in found["kits"]["found"]

    Authority("flowerbed").kit(checkout.kits["site-1"])
    shutil.copy(checkout.kits["admin"] / "startup" / "rootCA.pem", startup)
    code, found, _ = examine()
    assert code == 1 and "not signed by its CA" in found["kits"]["found"]

    (startup / "client.crt").write_text("no certificate")
    assert examine()[1]["kits"]["level"] == "fail"

    shutil.rmtree(startup)
    code, found, _ = examine()
    assert code == 1 and "site-1" in found["kits"]["found"]


def test_a_project_that_changed_since(
    checkout: Checkout, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = [{"name": name} for name in ("server", "site-1", "site-9", "admin@x.example")]
    monkeypatch.setattr(provision, "load", lambda project: {"name": "flowerbed", "participants": people})
    code, found, _ = examine()
    assert code == 0 and found["project.yml"]["level"] == "warn"
    assert "new: site-9" in found["project.yml"]["found"]

    known: dict[str, Any] = {"root_cert": ""}
    for name, days in (("site-2", 9), ("site-3", 9), ("site-4", -9)):
        checkout.authority.kit(checkout.root / name, days=days)
        known[name] = {"cert": (checkout.root / name / "startup" / "client.crt").read_text()}
    monkeypatch.setattr(state, "read", lambda folder: known)
    now = {"name": "flowerbed", "participants": [*people[:2], people[3]], "revoked": ["site-3"]}
    monkeypatch.setattr(provision, "load", lambda project: now)
    code, found, _ = examine()
    assert code == 0 and found["project.yml"]["level"] == "warn"
    assert "site-2 can still take part" in found["project.yml"]["found"]
    assert "revoked: [site-2]" in found["project.yml"]["mend"]

    def wrong(project: Path) -> None:
        raise core.UsageError("project.yml line 3: this is not YAML")

    monkeypatch.setattr(provision, "load", wrong)
    code, found, _ = examine()
    assert code == 1 and "line 3" in found["project.yml"]["found"]


def test_a_site_without_data(checkout: Checkout, examine: Examine) -> None:
    (checkout.root / "data" / "site-1").rmdir()
    code, found, _ = examine()
    assert code == 0 and found["data"]["level"] == "warn" and "site-1" in found["data"]["found"]


def test_a_port_that_another_program_has(checkout: Checkout, examine: Examine) -> None:
    config = json.loads(checkout.docker.answers["compose config"]["out"])
    port = int(config["services"]["server"]["ports"][0]["published"])
    with socket.create_server(("127.0.0.1", port)):
        code, found, _ = examine()
        assert code == 1 and f":{port} is taken" in found["port"]["found"] and found["port"]["mend"]
        checkout.running(server="healthy")
        checkout.docker.answer("exec", out=f"{time.time()}\n")
        assert "is the server's" in examine()[1]["port"]["found"]


def test_a_container_that_does_not_run(checkout: Checkout, examine: Examine) -> None:
    checkout.docker.answer("exec", out=f"{time.time()}\n")
    checkout.docker.answer("exec --interactive", out=answer(data={}))
    checkout.running(**{"server": "healthy", "admin": ""})
    code, found, _ = examine()
    assert code == 1 and found["containers"]["found"] == "site-1 not running"
    assert found["containers"]["mend"] == "./flowerbed up"
    checkout.running(**{"server": "healthy", "site-1": "unhealthy", "admin": ""})
    code, found, _ = examine()
    assert code == 1 and found["containers"]["found"] == "unhealthy: site-1"
    assert "a-site-does-not-register" in found["containers"]["mend"]


PEOPLE = [
    {"name": "server", "type": "server", "default_host": "fl.example", "sandbox": "off"},
    {"name": "site-1", "type": "client", "sandbox": "off"},
    {"name": "admin@x.example", "type": "admin", "role": "project_admin"},
]


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_site_that_is_not_registered(
    checkout: Checkout, examine: Examine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(provision, "load", lambda project: {"name": "flowerbed", "participants": PEOPLE})
    checkout.docker.answer("exec", out=f"{time.time()}\n")
    checkout.docker.answer("exec --interactive", out=answer(data={}))
    ask = "exec -i flowerbed-admin-1"
    checkout.docker.answer(ask, out='{"sites": [{"name": "site-1", "last_seen_seconds": 1}], "jobs": []}\n')
    up = {"server": "healthy", "site-1": "healthy", "admin": ""}
    checkout.running(**up)
    assert examine()[1]["sites"]["found"] == "1 registered"
    checkout.docker.answer(ask, out='{"sites": [], "jobs": []}\n')
    if where == "elsewhere":
        del up["site-1"]
        checkout.running(**up)
    code, found, _ = examine()
    assert found["sites"]["level"] == ("fail" if where == "here" else "warn") and code == 1
    assert found["sites"]["found"] == "site-1 not registered. Sites dial fl.example:8002"
    checkout.docker.answer(ask, err="no answer", code=1)
    assert "could not ask the server" in examine()[1]["sites"]["found"]


def test_a_site_that_cannot_follow_the_server_before_up(
    checkout: Checkout, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "load", lambda project: {"name": "flowerbed", "participants": PEOPLE})
    checkout.docker.answer("exec", out=f"{time.time()}\n")
    checkout.docker.answer("exec --interactive", out=answer(data={}))
    config = json.loads(checkout.docker.answers["compose config"]["out"])
    port = int(config["services"]["server"]["ports"][0]["published"])
    today = checkout.root / "workspace" / "flowerbed" / "renewed" / "site-1" / "server.json"
    today.parent.mkdir(parents=True)
    today.write_text(json.dumps({"host": "fl.example", "port": port}))
    report = {"dialled": "fl.example:8002", "known_address": f"fl.example:{port}"}
    reports = [{"name": "site-1", "reported_seconds": 1, "report": report}]
    told = {"sites": [{"name": "site-1", "last_seen_seconds": 1}], "jobs": [], "reports": reports}
    checkout.docker.answer("exec -i flowerbed-admin-1", out=json.dumps(told) + "\n")
    checkout.running(**{"server": "healthy", "site-1": "healthy", "admin": ""})
    assert examine()[1]["address"]["mend"].startswith("./flowerbed build, then up")


@pytest.mark.parametrize("is_provisioned", [True, False])
def test_a_name_and_a_port_that_another_federation_has(
    checkout: Checkout, examine: Examine, tmp_path: Path, is_provisioned: bool
) -> None:
    first = tmp_path / "first"
    first.mkdir()
    (first / "project.yml").touch()
    label = "ps --all --filter label=com.docker.compose.project=flowerbed"
    checkout.docker.answer(label, out=f"{first}\n")
    checkout.running(**{"server": "healthy", "site-1": "unhealthy", "admin": ""})
    port = free_port()
    text = checkout.env.read_text() if is_provisioned else ""
    checkout.env.write_text(f"{text}FLOWERBED_PORT={port}\n")
    code, found, _ = examine()
    assert code == 1 and found["name"]["level"] == "fail"
    assert str(first) in found["name"]["found"] and found["name"]["mend"].startswith("give one of the two")
    assert not {"containers", "sites", "sandbox"} & set(found), "the other's are not examined"
    if not is_provisioned:
        assert found["port"]["found"] == f"127.0.0.1:{port} is free for the server"
        with socket.create_server(("127.0.0.1", port)):
            assert "taken" in examine()[1]["port"]["found"]


@pytest.mark.parametrize(("ahead", "level"), [(60.0, "fail"), (-60.0, "fail"), (2.5, "warn"), (-2.5, "warn")])
def test_clocks(
    checkout: Checkout, examine: Examine, monkeypatch: pytest.MonkeyPatch, ahead: float, level: str
) -> None:
    checkout.running(**{"server": "healthy", "site-1": "healthy", "admin": ""})
    skews = {"flowerbed-server-1": 0.0, "flowerbed-admin-1": 0.0, "flowerbed-site-1-1": ahead}
    monkeypatch.setattr(doctor, "_clock_of", lambda name: time.time() + skews[name])
    code, found, _ = examine()
    assert found["clocks"]["level"] == level and code == (level == "fail")
    assert "site-1" in found["clocks"]["found"]
    assert ("ahead" if ahead > 0 else "behind") in found["clocks"]["found"]


GB = 2**30


def usage(**more: Any) -> dict[str, Any]:
    use = {
        "disk": {"total": 100 * GB, "free": 60 * GB},
        "uses": [],
        "store": GB,
        "jobs_left": 3,
        "kept_jobs": 50,
    }
    return {**use, **more}


@pytest.mark.parametrize(
    ("answer", "level", "said"),
    [
        (usage(), "ok", "The job store has"),
        (usage(disk={"total": 100 * GB, "free": 15 * GB}), "warn", "its disk has 85 GB of 100 GB (85%)"),
        (usage(uses=[{"what": "files of job j", "used": 9, "limit": 10}]), "warn", "files of job j has"),
        (usage(uses=[{"what": "files of job j", "used": 7, "limit": 10}]), "ok", "no participant"),
        (None, "warn", "could not ask"),
    ],
)
def test_limits_are_warned_of_before_they_are_met(
    checkout: Checkout,
    examine: Examine,
    monkeypatch: pytest.MonkeyPatch,
    answer: dict[str, Any] | None,
    level: str,
    said: str,
) -> None:
    checkout.running(**{"server": "healthy", "site-1": "healthy"})
    monkeypatch.setattr(doctor, "_clock_of", lambda name: time.time())
    command = "exec flowerbed-{} python -P -m bridge.flare.usage"
    good = json.dumps(usage()) + "\n"
    checkout.docker.answer(command.format("server-1"), out=good)
    if answer is not None:
        checkout.docker.answer(command.format("site-1-1"), out=f"hello\n{json.dumps(answer)}\n")
    _, found, _ = examine()
    assert (found["limits"]["level"], said in found["limits"]["found"]) == (level, True), found["limits"]
    assert level == "ok" or "site-1" in found["limits"]["found"]


def test_results_are_warned_of_before_they_are_full(
    checkout: Checkout, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RESULTS", checkout.root / "results")
    monkeypatch.setenv(results.LIMIT, "1MB")
    assert examine()[1]["results"]["level"] == "ok"
    (checkout.root / "results").mkdir()
    (checkout.root / "results" / "x").write_bytes(b"x" * 900 * 1024)
    assert examine()[1]["results"]["level"] == "warn"
    monkeypatch.setenv(results.LIMIT, "much")
    assert examine()[1]["results"]["level"] == "fail"


def test_how_clocks_are_read(checkout: Checkout) -> None:
    checkout.docker.answer("exec flowerbed-site-1-1 date +%s.%N", out="1700000000.123456789\n")
    assert doctor._clock_of("flowerbed-site-1-1") == pytest.approx(1700000000.123, abs=0.001)
    # As the engine prints it, with nine digits of the second.
    checkout.docker.answer("info --format", out='{"SystemTime": "2023-11-14T22:13:20.123456789Z"}')
    assert READ_ENGINE_CLOCK() == pytest.approx(1700000000.123, abs=0.001)


def test_a_remote_engine_is_not_measured_here(
    checkout: Checkout, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://far.example")
    (checkout.root / "data" / "site-1").rmdir()
    assert engine.is_remote() and images.storage() is None
    assert "data" not in examine()[1]


def test_a_container_says_how_full_it_is_without_flare() -> None:
    """Each container starts a process, and FLARE takes most of a second to import."""
    program = "import sys, bridge.flare.usage; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "nvflare" not in done.stdout.split()


# Sites' gifts to apps.


def answer(**by_folder: object) -> str:
    whole = {"files": 3, "closed": 0, "first": "", "why": ""}
    return json.dumps({f"/{name}": {**whole, **dict(found)} for name, found in by_folder.items()})  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("found", "level", "text"),
    [
        ({}, "ok", "read as the containers' user: site-1"),
        (
            {"files": 0, "closed": 1, "first": "/data", "why": "Permission denied"},
            "fail",
            "site-1: user 10001 of its container cannot read",
        ),
        (
            {"files": 9, "closed": 2, "first": "/data/a/x.csv", "why": "Permission denied"},
            "warn",
            "cannot read 2 of the files and folders of",
        ),
    ],
)
def test_data_is_read_as_the_containers_user(
    checkout: Checkout,
    examine: Examine,
    monkeypatch: pytest.MonkeyPatch,
    found: dict[str, object],
    level: str,
    text: str,
) -> None:
    monkeypatch.setattr(doctor, "_clock_of", lambda container: time.time())
    checkout.running(**{"site-1": "healthy"})
    checkout.docker.answer("exec --interactive flowerbed-site-1-1 python -I -S -", out=answer(data=found))
    _, findings, _ = examine()
    data = findings["data"]
    assert data["level"] == level and text in data["found"]
    if found:
        place = str(found["first"]).replace("/data", str(checkout.root / "data/site-1"))
        assert f"({place}: Permission denied)" in data["found"]
        assert 0 < data["mend"].index("group: GROUP") < data["mend"].index("chmod -R o+rX")


def test_settings_are_shown_without_their_secrets(
    checkout: Checkout, examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = {
        "node_config": {"db-url": "hush", "n": 3},
        "data": {"a": "/usr", "b": {"folder": "/usr/share", "group": 0o1234}},
        "environment": {"TOKEN": "hush"},
        "proxy": "http://me:hush@p.example:3128",
        "share_logs": False,
    }
    gone = {"data": "/no/such/folder"}
    people: list[dict[str, Any]] = [
        {"name": "site-1", "type": "client", **given},
        {"name": "site-2", "type": "client", **gone},
        {"name": "site-3", "type": "client", "elsewhere": True, **gone},
    ]
    monkeypatch.setattr(provision, "load", lambda project: {"name": "flowerbed", "participants": people})
    monkeypatch.setattr(provision, "changes", lambda: "")
    monkeypatch.setattr(site_files, "ROOT", tmp_path)
    _, found, told = examine()
    assert found["settings"]["level"] == "fail"
    assert "site-2: data: /no/such/folder does not exist" in found["settings"]["found"]
    assert "project.yml or sites/site-2.yml" in found["settings"]["mend"]
    checks = list(site_checks.check_settings(people[:1]))
    assert [check.found for check in checks] == [
        "site-1: node_config db-url, n; share_logs false; data /usr at /data/a, /usr/share at /data/b (group "
        "668); environment TOKEN; proxy p.example:3128"
    ]
    assert "hush" not in told and "site-3" not in found["settings"]["found"]


def test_a_look_finds_unreadable_files(tmp_path: Path) -> None:
    """The very file that containers run, as it is run there."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open/a.csv").write_text("x")
    (tmp_path / "open/link").symlink_to("/nowhere/b.csv")
    os.mkfifo(tmp_path / "open/pipe")
    source = Path(readable.__file__).read_bytes()
    folders = [str(tmp_path / name) for name in ("open", "gone")]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-", *folders], input=source, capture_output=True, timeout=20, check=True
    )
    found = json.loads(done.stdout)
    first = {"first": f"{tmp_path}/open/link", "why": "No such file or directory"}
    assert found[folders[0]] == {"files": 1, "closed": 1, **first}
    assert found[folders[1]]["closed"] == 1 and found[folders[1]]["first"] == folders[1]


@pytest.mark.parametrize(
    ("answered", "level", "text"),
    [
        ({"out": "NVIDIA H100\nNVIDIA H100\n"}, "ok", "site-1: 2, NVIDIA H100"),
        (
            {"code": 127, "err": "nvidia-smi: not found"},
            "fail",
            "finds none in its container (nvidia-smi: not",
        ),
    ],
)
def test_a_container_that_is_to_have_gpus_sees_some(
    checkout: Checkout, answered: dict[str, Any], level: str, text: str
) -> None:
    gpu = {"deploy": {"resources": {"reservations": {"devices": [{"driver": "nvidia"}]}}}}
    checkout.docker.answer("exec flowerbed-site-1-1 nvidia-smi", **answered)
    running = {"site-1": "flowerbed-site-1-1", "site-2": "flowerbed-site-2-1"}
    (found,) = site_checks.check_gpus({"services": {"site-1": gpu, "site-2": {}}}, running)
    assert (found.level, text in found.found) == (level, True), found
