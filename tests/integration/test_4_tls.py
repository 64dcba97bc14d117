"""The server lets nobody in without a certificate, with another CA's, or under another site's name."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dev import scratch_federation
from scripts.core import ROOT
from tests.attacks import hostile
from tests.federation import PROJECT, Federation
from tests.hosts.waiting import wait_until

SAID_NOTHING = 2.0
"""Seconds without a word after which a server that does not greet (only gRPC does) has not refused."""


def answered(federation: Federation, kit: Path | None) -> bool:
    """Return whether the server's port takes a client with the certificate in `kit`, or with none."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # It is the server that has to refuse.
    context.set_alpn_protocols(["h2"])
    if kit is not None:
        context.load_cert_chain(kit / "client.crt", kit / "client.key")
    try:
        with (
            socket.create_connection(("127.0.0.1", federation.port), 10) as plain,
            context.wrap_socket(plain, server_hostname="server") as tls,
        ):
            tls.settimeout(SAID_NOTHING)
            return bool(tls.recv(1))  # In TLS 1.3 a refusal comes after the handshake.
    except TimeoutError:
        return True
    except (ssl.SSLError, ConnectionError):
        return False


@pytest.fixture(scope="module")
def kits(federation: Federation) -> Path:
    return federation.kits


def test_a_certificate_of_the_federation_is_answered(federation: Federation, kits: Path) -> None:
    assert answered(federation, kits / "site-1" / "startup")


def test_no_certificate_is_refused(federation: Federation) -> None:
    assert not answered(federation, None)


CONNECT = """
import socket
host = socket.gethostbyname("server") if WORDS[0] == "address" else "server"
Impostor(dict.fromkeys(("token", "signature", "ssid"), ""), host=host)
tell("connected")
"""


DIALLING = ("site-1", "site-2", "admin", "lead")


@pytest.fixture(scope="module")
def connected(federation: Federation) -> dict[tuple[str, str], object]:
    """What everybody finds by the server's name and address. All dial at once: a refusal takes 10 s."""
    tries = [(service, how) for service in DIALLING for how in ("name", "address")]
    with ThreadPoolExecutor(len(tries)) as pool:
        found = pool.map(lambda one: hostile.act(federation, one[0], CONNECT, one[1]), tries)
        return dict(zip(tries, found, strict=True))


@pytest.mark.parametrize("service", DIALLING)
def test_everybody_checks_the_name_in_the_servers_certificate(
    connected: dict[tuple[str, str], object], service: str
) -> None:
    """Dial the server's address, which its certificate does not name. FLARE itself checks over gRPC only."""
    assert connected[service, "name"] == "connected"
    assert connected[service, "address"] == hostile.NO_CONNECTION


def test_no_tls_is_refused(federation: Federation) -> None:
    with socket.create_connection(("127.0.0.1", federation.port), 10) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        plain.settimeout(5)
        # A TLS alert or the end of the connection, but no HTTP/2 settings frame, nor silence.
        assert plain.recv(9)[3:4] != b"\x04"


def test_another_ca_is_refused(federation: Federation, tmp_path: Path) -> None:
    for folder in ("provisioning", "bridge", "compose"):
        shutil.copytree(federation.root / folder, tmp_path / folder)
    # Not the federation's own, which may name folders that are not here.
    shutil.copy(ROOT / "project.yml", tmp_path)
    scratch_federation.edit(tmp_path / "project.yml", lambda project: project.update(name=PROJECT))
    nvflare = Path(sys.executable).parent / "nvflare"
    command = [str(nvflare), "provision", "-p", "project.yml", "--force"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    stranger = tmp_path / "workspace" / PROJECT / "prod_00" / "site-1" / "startup"
    assert (stranger / "client.crt").exists()
    assert not answered(federation, stranger)


def test_a_sites_kit_cannot_claim_another_sites_name(federation: Federation) -> None:
    claim = (
        "mkdir -p /tmp/w/startup /tmp/w/local"
        " && ln -s /kit/startup/* /tmp/w/startup && ln -s /kit/local/* /tmp/w/local"
        " && cd /tmp/w && exec timeout 60 python -u -m nvflare.private.fed.app.client.client_train -m /tmp/w"
        " -s fed_client.json --set secure_train=true uid=site-1 org=flowerbed config_folder=config"
    )
    name = f"{PROJECT}-claims"
    run = (
        f"docker run --rm --init --name {name} --network {PROJECT}_default --entrypoint sh --tmpfs /tmp:exec"
    )
    refusal = "authenticated as 'site-2' but claimed endpoint 'site-1'"

    def refused() -> int:
        return federation.compose("logs", "--no-color", "server").count(refusal)

    before, pipe = refused(), subprocess.PIPE
    with subprocess.Popen(
        [*run.split(), f"{PROJECT}-site-2:dev", "-c", claim], stdout=pipe, stderr=subprocess.STDOUT, text=True
    ) as said:
        # FLARE tries again after a refusal.
        wait_until(lambda: said.poll() is not None or refused() > before + 1, 60, "two refusals")
        subprocess.run(["docker", "kill", name], capture_output=True, check=False)
        output, _ = said.communicate(timeout=20)
    assert refused() > before + 1, output
    registered = "Successfully registered client"
    assert registered not in output
    assert registered in federation.compose("logs", "--no-color", "site-2"), "FLARE says it in other words"
    status = federation.must("status")
    assert sorted(site["name"] for site in status["sites"]) == federation.sites
