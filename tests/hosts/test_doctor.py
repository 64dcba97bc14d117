"""On another host, `doctor` names what is broken, and a site does not join before that is mended."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scripts.core import ROOT
from tests.hosts.engine import Host, Process
from tests.hosts.federation import SERVER, HostsFederation
from tests.unit.faking import Authority

NAME = "ward"
SECRET = "site:secret"

INSPECT = """
import socket, ssl, sys
made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
made.load_cert_chain(sys.argv[2], sys.argv[3])
with socket.create_server(("0.0.0.0", int(sys.argv[1]))) as listener:
    while True:
        connection, _ = listener.accept()
        try:
            made.wrap_socket(connection, server_side=True).close()
        except OSError:
            connection.close()
"""
"""Answer as a firewall that inspects TLS, with a certificate of its own CA."""


@dataclass
class Ward:
    """A site's folder on a host. It is prepared, and has not joined."""

    host: Host
    fingerprint: str
    port: int
    settings: str = field(init=False)

    def __post_init__(self) -> None:
        self.settings = self.file.read_text()

    @property
    def folder(self) -> Path:
        """Return the site's folder."""
        return self.host.home / NAME

    @property
    def file(self) -> Path:
        """Return the file with the site's own settings."""
        return self.folder / "site.yml"

    def write(self, more: str = "") -> None:
        """Set the site's own settings."""
        self.file.write_text(f"{self.settings}\n{more}")

    def site(self, *words: str) -> Process:
        """Run a verb at the site."""
        return self.host.run("./site", *words, cwd=self.folder)

    def doctor(self) -> dict[str, dict[str, str]]:
        """Return the findings by check. Of two with one name, the last counts."""
        said = self.site("doctor", "--json")
        assert said.stdout.startswith("{"), said.stderr
        found = {check["check"]: check for check in json.loads(said.stdout)["checks"]}
        failed = [name for name, check in found.items() if check["level"] == "fail"]
        assert said.returncode == bool(failed)
        assert said.stderr.strip() == (f"doctor: failed: {', '.join(failed)}." if failed else "")
        return found

    def fails(self, check: str) -> str:
        """Return what the one failed check says, and what to do."""
        failed = {name: one for name, one in self.doctor().items() if one["level"] == "fail"}
        assert failed.keys() == {check}, failed
        assert failed[check]["mend"]
        return f"{failed[check]['found']} -> {failed[check]['mend']}"

    def join(self) -> Process:
        """Run the join file, again if need be."""
        return self.host.run("sh", f"{NAME}.join", "--fingerprint", self.fingerprint)

    def left(self) -> list[str]:
        """Return what the engine has of the site."""
        forms = {
            "ps --all": "{{.Names}} {{.ID}}",
            "volume ls": "{{.Name}}",
            "network ls": "{{.Name}} {{.ID}}",
        }
        listed = [self.host.must("docker", *words.split(), "--format", form) for words, form in forms.items()]
        return [line for text in listed for line in text.splitlines() if f"-{NAME}" in line]


@pytest.fixture(scope="module")
def ward(centre: HostsFederation) -> Iterator[Ward]:
    host = centre.hosts.engine("ward", apart=True)
    centre.carry_runtime(host)
    invited = centre.invite(NAME, host)
    host.must("sh", f"{NAME}.join", "--fingerprint", invited["fingerprint"], "--prepare")
    port = int(str(invited["server"]).rpartition(":")[2])
    made = Ward(host, invited["fingerprint"], port)
    yield made
    if made.file.parent.joinpath("site").exists():  # The last test did not come to its end.
        made.site("leave", "--yes")
        centre.must("site", "remove", NAME)
    host.power_cut()


@pytest.fixture(autouse=True)
def as_at_first(centre: HostsFederation, ward: Ward) -> Iterator[None]:
    yield
    ward.host.firewall.open()
    centre.hosts.name(SERVER, centre.centre)
    if ward.file.exists():
        ward.write()


def test_where_all_is_well_it_says_so_and_leaves_nothing(ward: Ward) -> None:
    found = ward.doctor()
    well = (
        "engine",
        "compose",
        "image",
        "kit",
        "certificate",
        "CA",
        "name",
        "route",
        "tls",
        "admission",
        "clock",
    )
    assert {name: found[name]["level"] for name in well} == dict.fromkeys(well, "ok"), found
    assert "agrees with server's" in found["clock"]["found"]
    assert ward.left() == []


def test_a_firewall_that_drops_is_named(centre: HostsFederation, ward: Ward) -> None:
    ward.host.firewall.drop(f"{centre.centre.address}:{ward.port}")
    said = ward.fails("route")
    assert "a firewall drops the packets" in said
    assert f"let outgoing TCP connections to {centre.centre.address}:{ward.port} through" in said


def test_a_firewall_that_rejects_is_named(centre: HostsFederation, ward: Ward) -> None:
    ward.host.firewall.reject(f"{centre.centre.address}:{ward.port}")
    assert "refuses connections: nothing listens there, or a firewall rejects them" in ward.fails("route")


def test_a_name_that_is_not_known(centre: HostsFederation, ward: Ward) -> None:
    centre.hosts.name("another.example.org", centre.centre)
    names = centre.hosts.folder / "names"
    names.write_text("".join(line for line in names.read_text().splitlines(True) if SERVER not in line))
    said = ward.fails("name")
    assert SERVER in said and f"hosts: {{{SERVER}: ADDRESS}}" in said
    ward.write(f"hosts: {{{SERVER}: {centre.centre.address}}}")
    assert ward.doctor()["name"]["level"] == "ok"


def test_a_firewall_that_inspects_is_named(centre: HostsFederation, ward: Ward, tmp_path: Path) -> None:
    Authority("Hospital Inspection CA", [SERVER]).kit(tmp_path / SERVER, "server")
    middle = centre.hosts.machine("inspector")
    certificate, key = (tmp_path / SERVER / "startup" / f"server.{end}" for end in ("crt", "key"))
    command = [sys.executable, "-I", "-S", "-c", INSPECT, str(ward.port), str(certificate), str(key)]
    process = centre.hosts.keep([*middle.enter, *command])
    try:
        centre.hosts.name(SERVER, middle)
        said = ward.fails("tls")
    finally:
        process.kill()
        process.wait()
    assert f"a firewall inspects TLS: issuer seen 'Hospital Inspection CA', for {SERVER}" in said
    assert "passes through without inspection" in said


def test_a_proxy_that_wants_a_password(centre: HostsFederation, ward: Ward, tmp_path: Path) -> None:
    proxy = centre.hosts.machine("proxy")
    (tmp_path / "resolv.conf").write_text(f"nameserver {centre.hosts.resolver(proxy)}\n")
    script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    names = ["unshare", "--mount", "sh", "-c", script, str(tmp_path / "resolv.conf")]
    command = [sys.executable, "-P", "-m", "tests.connect_proxy", "3128", SECRET]
    process = centre.hosts.keep([*proxy.enter, *names, *command], cwd=ROOT)
    try:
        ward.host.firewall.only_allow(f"{proxy.address}:3128")
        ward.write(f"connect_through: http://{proxy.address}:3128")
        assert "wants a password (407" in ward.fails("proxy")
        ward.write(f"connect_through: http://{SECRET}@{proxy.address}:3128")
        found = ward.doctor()
        assert found["proxy"]["level"] == found["admission"]["level"] == "ok", found
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("data: /srv/nowhere", "/srv/nowhere -> data: in site.yml names a folder that does not exist"),
        ("env_file: /etc/nowhere.env", "env_file: in site.yml names a file that does not exist"),
        ("gpus: all", "NVIDIA Container Toolkit"),
        ("nonsense: 1", "unknown key nonsense"),
    ],
)
def test_a_setting_with_which_the_site_cannot_start(ward: Ward, settings: str, said: str) -> None:
    ward.write(settings)
    assert said in ward.fails("container")


def test_data_that_the_container_cannot_read(ward: Ward) -> None:
    folder = ward.host.home / "patients"
    folder.mkdir(mode=0o700)
    ward.write(f"data: {folder}")
    assert "user 10001 of the container cannot read /data: Permission denied" in ward.fails("data")
    folder.chmod(0o755)
    (folder / "scan.csv").write_text("1\n")
    assert ward.doctor()["data"]["level"] == "ok"


def test_a_site_joins_only_when_nothing_fails(centre: HostsFederation, ward: Ward) -> None:
    ward.host.firewall.drop(f"{centre.centre.address}:{ward.port}")
    said = ward.join()
    assert said.returncode == 1 and "FAIL  route" in said.stderr
    assert "ward has not joined: a check failed" in said.stderr
    assert ward.left() == []
    ward.host.firewall.open()
    said = ward.join()
    assert said.returncode == 0, said.stderr
    assert f"{NAME} is registered with {SERVER}" in said.stderr
    # Beside the running site too.
    before = ward.left()
    assert ward.doctor()["admission"]["level"] == "ok"
    assert ward.left() == before


def test_a_removed_site_is_told_so(centre: HostsFederation, ward: Ward) -> None:
    centre.must("site", "remove", NAME)
    assert "as for a participant that was removed" in ward.fails("admission")
    assert ward.site("leave", "--yes").returncode == 0
    assert ward.left() == []
