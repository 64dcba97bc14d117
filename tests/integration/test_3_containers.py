"""Settings of the running containers, and the content of every image layer."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.federation import PROJECT, Federation

ROLES = {"server": "server", "site-1": "site", "site-2": "site", "admin": "console", "lead": "console"}
KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*-----END [A-Z ]*PRIVATE KEY-----")


@pytest.fixture(scope="module", params=ROLES)
def inspected(request: pytest.FixtureRequest, federation: Federation) -> dict[str, Any]:
    """`docker inspect` of each container in turn."""
    command = ["docker", "inspect", federation.container(request.param)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    value: dict[str, Any] = json.loads(output)[0]
    return {**value, "service": request.param}


def test_not_root_nothing_writable_no_capability(federation: Federation, inspected: dict[str, Any]) -> None:
    host, service = inspected["HostConfig"], inspected["service"]
    assert inspected["Config"]["User"] == "10001:10001"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"] and not host["CapAdd"]
    assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
    assert not host["Privileged"]
    status = federation.exec(service, "cat", "/proc/self/status")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    for path in ("/opt/flowerbed/x", "/kit/x", "/etc/x", "/data/x"):
        assert (
            federation.exec(service, "sh", "-c", f"touch {path} 2>/dev/null && echo written", check=False)
            == ""
        )
    assert (
        federation.exec(service, "sh", "-c", "touch /workspace/x /tmp/x && rm /workspace/x /tmp/x && echo ok")
        == "ok\n"
    )


def test_limits_init_and_no_socket(federation: Federation, inspected: dict[str, Any]) -> None:
    host = inspected["HostConfig"]
    assert host["Memory"] > 0 and host["PidsLimit"] > 0 and host["Init"]
    assert not any("docker.sock" in mount["Source"] for mount in inspected["Mounts"])
    first = federation.exec(inspected["service"], "cat", "/proc/1/comm").strip()
    assert first in ("docker-init", "tini")


def test_only_the_server_publishes_and_only_to_this_machine(
    federation: Federation, inspected: dict[str, Any]
) -> None:
    published = {k: v for k, v in inspected["NetworkSettings"]["Ports"].items() if v}
    if inspected["service"] == "server":
        assert published == {"8002/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(federation.port)}]}
    else:
        assert published == {}


def test_healthy_means_something(federation: Federation) -> None:
    for service in ("server", "site-1", "site-2"):
        command = ["docker", "inspect", "--format", "{{.State.Health.Status}}", federation.container(service)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "healthy"
    # A running process is not enough: without its server a site soon becomes unhealthy.
    site = ["/opt/flowerbed/bin/healthcheck", "site"]
    check = "rm -rf /tmp/health/registered; echo 999999999 > /tmp/health/log_begins; "
    before = federation.exec("site-1", "cat", "/tmp/health/log_begins").strip()
    said = federation.exec("site-1", "sh", "-c", check + " ".join(site), check=False)
    federation.exec("site-1", "sh", "-c", f"echo {before} > /tmp/health/log_begins; {' '.join(site)}")
    assert "not registered" in said
    assert "no answer" in federation.exec(
        "server", "python", "-I", "-S", "/opt/flowerbed/bin/tls_answer.py", "8003", check=False
    )


def test_each_key_is_readable_by_its_user_only(federation: Federation) -> None:
    for service in ROLES:
        listing = federation.exec(service, "sh", "-c", "stat -c '%a %u %n' /kit/startup/*.key")
        for line in listing.splitlines():
            assert line.startswith("400 10001 "), line


def test_no_layer_of_any_image_holds_another_ones_key(federation: Federation, tmp_path: Path) -> None:
    archive = tmp_path / "images.tar"
    images = {name: f"{PROJECT}-{name}:dev" for name in ROLES}
    subprocess.run(["docker", "save", "--output", str(archive), *images.values()], check=True)
    keys_of_layer: dict[str, set[bytes]] = {}
    with tarfile.open(archive) as outer:
        manifest = json.load(outer.extractfile("manifest.json"))  # type: ignore[arg-type]
        for layer in {layer for image in manifest for layer in image["Layers"]}:
            with tarfile.open(fileobj=outer.extractfile(layer)) as inner:
                keys_of_layer[layer] = _keys(inner)
    archive.unlink()
    kits = federation.kits
    own = {path.name.split("@")[0]: _kit_keys(path) for path in kits.iterdir() if (path / "startup").is_dir()}
    authority = _authority_key(federation)
    for image in manifest:
        name = next(n for n, full in images.items() if full in image["RepoTags"])
        found = set().union(*(keys_of_layer[layer] for layer in image["Layers"]))
        mine = {key for key in found if key in set().union(*own.values(), {authority})}
        assert mine == own[name], f"{name} holds keys of others"
        assert own[name], f"{name} has no key of its own"


def _keys(layer: tarfile.TarFile) -> set[bytes]:
    found: set[bytes] = set()
    for member in layer:
        if member.isfile() and member.size < 1_000_000:
            content = layer.extractfile(member)
            assert content is not None
            found |= {_plain(key) for key in KEY.findall(content.read())}
    return found


def _plain(key: bytes) -> bytes:
    return b"".join(key.split())


def _kit_keys(kit: Path) -> set[bytes]:
    return {
        _plain(key) for path in kit.rglob("*") if path.is_file() for key in KEY.findall(path.read_bytes())
    }


def _authority_key(federation: Federation) -> bytes:
    state = json.loads((federation.root / "workspace" / PROJECT / "state" / "cert.json").read_text())
    (key,) = KEY.findall(state["root_pri_key"].encode())
    return _plain(key)
