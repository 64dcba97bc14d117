"""The preflight names what is wrong with a site's machine and kit, each with what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.common import readable, server_address
from bridge.common.finding import Finding
from bridge.launch import sandbox
from bridge.preflight import data, machine
from bridge.preflight import kit as kits
from scripts import engine
from scripts.core import ROOT
from tests.unit import faking
from tests.unit.faking import Authority, Program
from tests.unit.preflighting import answering, context, examine, in_tls, read, write_kit


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def kit(tmp_path: Path, authority: Authority) -> Path:
    return write_kit(tmp_path, "127.0.0.1:1", authority=authority)


def failed(finding: Finding, *words: str) -> None:
    """Check that a finding is a failure with these words, which says what to do."""
    assert finding.level == "fail" and finding.mend
    assert all(word in f"{finding.found} {finding.mend}" for word in words), finding


# The kit


def test_a_good_kit(kit: Path) -> None:
    found = examine(kit)
    assert {found[name].level for name in ("certificate", "CA")} == {"ok"}
    assert found["certificate"].found.startswith("site-1's expires in 299 days")


def test_no_kit(tmp_path: Path) -> None:
    failed(examine(tmp_path)["kit"], "expected one of fed_client.json", "new join file")


def test_a_kit_that_is_no_json(kit: Path) -> None:
    (kit / "startup" / "fed_client.json").write_text("{")
    failed(examine(kit)["kit"], "fed_client.json is not FLARE's, or lacks a part", "new join file")


def test_a_certificate_that_is_not_there(kit: Path) -> None:
    """As a renewed one is, if its folder is not mounted."""
    (kit / "startup" / "rootCA.pem").unlink()
    (kit / "startup" / "rootCA.pem").symlink_to("/nowhere/rootCA.pem")
    failed(examine(kit)["kit"], "rootCA.pem cannot be read: No such file")


def test_a_site_whose_request_has_no_answer_sees_its_way(tmp_path: Path, authority: Authority) -> None:
    """A firewall takes longest to be opened."""
    authority.kit(tmp_path / "server", "server")
    with answering(in_tls(context(tmp_path / "server"))) as port:
        kit = write_kit(tmp_path, f"127.0.0.1:{port}", authority=authority)
        (kit / "startup" / "client.crt").unlink()
        (kit / "startup" / "client.crt").symlink_to("/renewed/client.crt")
        found = examine(kit)
    failed(found["kit"], "its request has no answer yet", "./site join ANSWER")
    assert found["tls"].level == "ok" and "admission" not in found


def test_a_kit_of_another_site(kit: Path, authority: Authority) -> None:
    authority.kit(kit.parent / "site-2")
    for file in ("client.crt", "client.key"):
        (kit.parent / "site-2" / "startup" / file).replace(kit / "startup" / file)
    failed(examine(kit)["kit"], "the kit is for site-1, and its certificate is for site-2")


def test_a_key_of_another_certificate(kit: Path, authority: Authority) -> None:
    authority.kit(kit.parent / "site-2")
    (kit.parent / "site-2" / "startup" / "client.key").replace(kit / "startup" / "client.key")
    failed(examine(kit)["kit"], "client.key is not the key of client.crt")


def test_what_answers_is_seen_without_a_usable_key(kit: Path, tmp_path: Path, authority: Authority) -> None:
    authority.kit(tmp_path / "server", "server")
    authority.kit(kit.parent / "site-2")
    (kit.parent / "site-2" / "startup" / "client.key").replace(kit / "startup" / "client.key")
    with answering(in_tls(context(tmp_path / "server"))) as port:
        found = examine(write_kit(tmp_path, f"127.0.0.1:{port}"))
    failed(found["kit"], "client.key is not the key of client.crt")
    assert found["tls"].level == "ok" and "admission" not in found


def test_a_certificate_of_another_ca(kit: Path) -> None:
    Authority("other").kit(kit.parent / "other")
    (kit.parent / "other" / "startup" / "rootCA.pem").replace(kit / "startup" / "rootCA.pem")
    failed(examine(kit)["kit"], "signed by flowerbed, and not by a CA in rootCA.pem")


def test_during_a_change_of_the_ca_both_count(kit: Path) -> None:
    Authority("next").kit(kit.parent / "next")
    bundle = kit / "startup" / "rootCA.pem"
    bundle.write_bytes((kit.parent / "next" / "startup" / "rootCA.pem").read_bytes() + bundle.read_bytes())
    assert [found.level for found in kits.check(read(kit), kits.utc_now()) if found.check == "CA"] == ["ok"]
    assert examine(kit)["kit"].level != "fail"


def test_a_key_that_everybody_may_use(kit: Path) -> None:
    (kit / "startup" / "client.key").chmod(0o644)
    found = [one for one in kits.check(read(kit), kits.utc_now()) if "every user" in one.found]
    assert found[0].level == "warn" and "mode 644" in found[0].found


def test_a_certificate_that_has_ended(kit: Path, authority: Authority) -> None:
    authority.kit(kit, days=-1)
    failed(examine(kit)["certificate"], "site-1's expired on", "./flowerbed renew", "./site update FILE")


def test_a_certificate_that_is_overdue(kit: Path, authority: Authority) -> None:
    authority.kit(kit, days=20)
    found = examine(kit)["certificate"]
    assert found.level == "warn" and "expires in 19 days" in found.found and "renew" in found.mend


def test_a_clock_before_the_kit_was_made(kit: Path, authority: Authority) -> None:
    authority.kit(kit, since=-1)
    failed(examine(kit)["clock"], "begins at", "set this machine's clock")


def test_a_site_behind_a_relay_dials_the_relay(kit: Path) -> None:
    upstream = {"identity": "relay-1", "scheme": "grpc", "address": "relay.example.org:8003"}
    (kit / "local" / kits.RELAY).write_text(json.dumps({"relay_config": upstream}))
    found = read(kit)
    assert (found.upstream, found.scheme, str(found.addresses[0])) == (
        "relay-1",
        "grpc",
        "relay.example.org:8003",
    )


def test_relays_and_consoles_have_a_way_too(kit: Path) -> None:
    (kit / "startup" / "fed_client.json").unlink()
    upstream = {"identity": "server", "scheme": "tcp", "address": "[::1]:8002"}
    (kit / "startup" / "fed_relay.json").write_text(
        json.dumps({"identity": "site-1", "connect_to": upstream})
    )
    found = read(kit)
    assert (found.name, found.addresses[0].host, str(found.addresses[0])) == ("site-1", "::1", "[::1]:8002")
    (kit / "startup" / "fed_relay.json").unlink()
    admin = {"username": "site-1", "server_identity": "server", "scheme": "tcp", "host": "h", "port": 8002}
    (kit / "startup" / "fed_admin.json").write_text(json.dumps({"admin": admin}))
    found = read(kit)
    assert str(found.addresses[0]) == "h:8002" and not found.is_site


def test_a_newer_address_comes_first(kit: Path, tmp_path: Path) -> None:
    (tmp_path / server_address.FILE).write_text(json.dumps({"host": "new.example.org", "port": 443}))
    assert [str(one) for one in read(kit, tmp_path).addresses] == ["new.example.org:443", "127.0.0.1:1"]


# The machine


def test_engine_and_compose() -> None:
    assert machine.check_engine("20.10.24+dfsg1").level == "ok"
    failed(machine.check_engine("19.03.1"), "expected 20.10 or newer")
    assert machine.check_engine("").level == "warn"
    assert machine.check_compose("v2.29.1").level == "ok"
    assert machine.check_compose("2.20.0").level == "warn"
    failed(machine.check_compose("2.19"), "expected 2.20 or newer")
    failed(machine.check_compose(""), "unknown")
    assert engine.OLDEST_COMPOSE.release == machine.OLDEST_COMPOSE


def test_another_image_than_the_join_files() -> None:
    assert machine.check_image("sha256:1", "sha256:1").level == "ok"
    failed(machine.check_image("sha256:" + "1" * 64, "sha256:" + "2" * 64), "111111111111", "222222222222")


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        (
            "Error response from daemon: invalid mount config: bind source path does not exist: /srv/x",
            "data:",
        ),
        (
            'Error: could not select device driver "nvidia" with capabilities: [[gpu]]',
            "NVIDIA Container Toolkit",
        ),
        ("env file /etc/own.env not found: stat /etc/own.env", "env_file:"),
        ("something new", "correct site.yml"),
        ("settings of x: unknown key y\nsite: site.yml is wrong: see above.", "correct site.yml"),
    ],
)
def test_a_container_that_does_not_start(said: str, mend: str) -> None:
    failed(machine.check_start(f"a line before\n{said}\n"), said.partition("\n")[0], mend)


def test_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    for free in (100.0, 5.0, 0.5):
        monkeypatch.setattr(machine, "_free", lambda _, free=free: free)
        levels.append(machine.check_disk().level)
    assert levels == ["ok", "warn", "fail"]
    failed(machine.check_disk(), "0.5 GB free", "docker system df")


@pytest.mark.parametrize(
    ("total", "free", "limit", "level", "said"),
    [
        (16, 12, 6, "ok", "12.0 of 16.0 GB free, the site may take 6.0"),
        (4, 3, 6, "warn", "more than there is"),
        (4, 1, 3, "warn", "A job needs about 2 GB"),
        (4, 0.25, 3, "fail", "Expected 0.5 GB or more"),
        (16, 12, 0.25, "fail", "Expected 0.5 GB or more"),
    ],
)
def test_memory(total: float, free: float, limit: float, level: str, said: str, tmp_path: Path) -> None:
    kib = 1 << 20
    (tmp_path / "meminfo").write_text(f"MemTotal: {total * kib:.0f} kB\nMemAvailable: {free * kib:.0f} kB\n")
    (tmp_path / "memory.max").write_text(f"{int(limit * machine.GB)}\n")
    found = machine.check_memory(tmp_path, tmp_path)
    assert found.level == level and said in found.found


def test_no_limit_on_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: {1 << 24} kB\nMemAvailable: {1 << 23} kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.check_memory(tmp_path, tmp_path).found == "8.0 of 16.0 GB free"


def test_processor(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name: x\nflags\t\t: fpu sse4_2 avx\n")
    found = machine.check_processor(tmp_path, "x86_64")
    assert found.level == "warn" and "AVX2" in found.found and found.mend
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx avx2\n")
    assert machine.check_processor(tmp_path, "x86_64").level == "ok"
    assert machine.check_processor(tmp_path, "aarch64").level == "ok"


@pytest.mark.parametrize(("asked", "level"), [("required", "fail"), ("best-effort", "warn"), ("off", "ok")])
def test_an_old_kernel(asked: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "abi", lambda: 0)
    assert machine.check_sandbox(asked).level == level


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(machine.GPU_VARIABLE, raising=False)
    assert list(machine.check_gpus()) == [], "the site asks for none"
    monkeypatch.setenv(machine.GPU_VARIABLE, "all")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (found,) = machine.check_gpus()
    failed(found, "nvidia-smi finds none in the container")
    program = Program(tmp_path / "bin", "nvidia-smi", {"--query-gpu": {"out": "NVIDIA H200, 550.1\n"}})
    (found,) = machine.check_gpus()
    assert (found.level, found.found) == ("ok", "1: NVIDIA H200, 550.1")
    program.answer("--query-gpu", code=9, err="couldn't communicate with the NVIDIA driver\n")
    (found,) = machine.check_gpus()
    failed(found, "couldn't communicate with the NVIDIA driver", "remove gpus:")


def test_data(tmp_path: Path) -> None:
    mounts, data = tmp_path / "mountinfo", tmp_path / "data"
    mounts.write_text("1 1 0:1 / / ro - overlay o rw\n")
    (found,) = machine.check_data(mounts, str(data))
    assert found.level == "warn" and "the site has none" in found.found
    data.mkdir()
    mounts.write_text(f"1 1 0:1 / / ro - overlay o rw\n2 1 0:2 /x {data} ro - ext4 /dev/x ro\n")
    (found,) = machine.check_data(mounts, str(data))
    assert found.level == "warn" and "is empty" in found.found
    (data / "scan.csv").write_text("1")
    (found,) = machine.check_data(mounts, str(data))
    assert found.level == "ok"


@pytest.mark.parametrize(
    ("closed", "first", "level", "said"),
    [
        (1, "", "fail", "cannot read"),
        (5, "/scan.csv", "fail", "cannot read"),
        (1, "/scan.csv", "warn", "cannot read all of"),
    ],
)
def test_data_that_the_containers_user_cannot_read(
    closed: int, first: str, level: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text("2 1 0:2 /x /data ro - ext4 /dev/x ro\n")
    look = {"files": 5, "closed": closed, "first": f"/data{first}", "why": "Permission denied"}
    monkeypatch.setattr(readable, "look", lambda folder, deadline: look)
    (found,) = machine.check_data(mounts)
    assert found.level == level
    # Everybody on the machine reads what o+rX opens, so a group comes first.
    assert 0 < found.mend.index("group") < found.mend.index("chmod -R o+rX")
    assert said in found.found and f"/data{first}: Permission denied" in found.found


def test_status_names_data_that_is_not_usable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        Finding("data", "ok", "read"),
        Finding("data", "fail", "user 10001 cannot read /data/a\033", "chmod"),
    ]
    monkeypatch.setattr(machine, "check_data", lambda: iter(found))
    data.main()
    line = "  data: user 10001 cannot read /data/a\\x1b. To mend it, run ./site doctor, which says how.\n"
    assert capsys.readouterr().out == line


def test_environments(tmp_path: Path) -> None:
    root = tmp_path / "environments"
    assert machine.check_environments(root).level == "warn"
    root.mkdir()
    assert machine.check_environments(root).found.startswith("none yet")
    folder = faking.environment(root)
    failed(machine.check_environments(root), folder.name, "copy it again")
    (folder / "lock.txt").touch()
    (folder / "venv" / "bin").mkdir(parents=True)
    assert machine.check_environments(root).found == folder.name


# The program


def test_it_prints_a_line_for_each_check_and_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "bridge.preflight", "--compose=1.29.2"]
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    process = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stdout.splitlines()[:2] == [
        "FAIL  compose       1.29.2, expected 2.20 or newer",
        "                    -> install a newer docker-compose-plugin",
    ]
    assert process.stderr.startswith("doctor: failed: compose, kit")
    process = subprocess.run([*command, "--json"], env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    checks = json.loads(process.stdout)["checks"]
    assert checks[0] == {
        "check": "compose",
        "level": "fail",
        "found": "1.29.2, expected 2.20 or newer",
        "mend": "install a newer docker-compose-plugin",
    }


def test_it_starts_without_flare_and_flower() -> None:
    code = "import sys, bridge.preflight.__main__; print({'nvflare', 'flwr', 'grpc'} & set(sys.modules))"
    command = [sys.executable, "-P", "-c", code]
    said = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
