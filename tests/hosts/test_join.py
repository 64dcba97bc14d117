"""A site joins from another host, with one file and one command, and takes part in a job."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest

from provisioning import state
from tests.faults.jobs import until
from tests.faults.phases import undisturbed
from tests.hosts.engine import Host, Process
from tests.hosts.federation import SERVER, HostsFederation

WITHIN = 60.0
"""Seconds from the one command to a registered site, with the runtime present."""
LARGEST = 100_000
"""Bytes of a join file."""


@pytest.fixture(scope="module")
def clinic(centre: HostsFederation) -> Iterator[Host]:
    """A host with the runtime. No site has joined from it yet."""
    host = centre.hosts.engine("clinic", apart=True)
    centre.carry_runtime(host)
    yield host
    host.power_cut()


def join(host: Host, file: str, *options: str) -> Process:
    return host.run("sh", file, *options)


def edit(host: Host, file: str, old: str, new: str, name: str) -> str:
    """Copy a join file, with one edit, to the file `name` of the host's administrator."""
    text = (host.home / file).read_text()
    assert old in text
    (host.home / name).write_text(text.replace(old, new, 1))
    return name


def test_an_altered_file_is_refused_and_leaves_nothing(centre: HostsFederation, clinic: Host) -> None:
    invited = centre.invite("hospital-c", clinic)
    altered = edit(clinic, "hospital-c.join", SERVER, "evil.example.org", "altered.join")
    said = join(clinic, altered, "--fingerprint", invited["fingerprint"])
    assert said.returncode == 1 and "altered" in said.stderr
    # With the sum made again, the signature still tells.
    text = (clinic.home / altered).read_text()
    body = text[: text.index("#-- end of what is signed --")]
    (clinic.home / "body").write_text(body)
    sum_of = clinic.must("sha256sum", "body").split()[0]
    (clinic.home / altered).write_text(re.sub(r"(?m)^#: sha256 .*$", f"#: sha256 {sum_of}", text))
    said = join(clinic, altered, "--fingerprint", invited["fingerprint"])
    assert said.returncode == 1, said.stderr
    assert not (clinic.home / "hospital-c").exists()


def test_a_file_of_another_federation_is_refused(centre: HostsFederation, clinic: Host) -> None:
    other = ":".join(["AB"] * 32)
    said = join(clinic, "hospital-c.join", "--fingerprint", other)
    assert said.returncode == 1 and "Somebody else made this file" in said.stderr
    assert not (clinic.home / "hospital-c").exists()


def test_a_file_is_refused_after_its_last_day(centre: HostsFederation, clinic: Host) -> None:
    late = "date() { command date -d '+15 days' \"$@\"; }\n"
    old = edit(clinic, "hospital-c.join", "set -eu\n", f"set -eu\n{late}", "late.join")
    said = join(clinic, old, "--yes")
    assert said.returncode == 1 and "the last day of this join file was" in said.stderr


def test_a_site_joins_with_one_file_and_one_command(centre: HostsFederation, clinic: Host) -> None:
    invited = centre.invite("hospital-c", clinic)
    text = (clinic.home / "hospital-c.join").read_text()
    assert len(text.encode()) < LARGEST
    before, start = clinic.crossed(), time.monotonic()
    said = join(clinic, "hospital-c.join", "--fingerprint", invited["fingerprint"])
    took, after = time.monotonic() - start, clinic.crossed()
    assert said.returncode == 0, said.stderr
    assert f"hospital-c is registered with {SERVER}" in said.stderr
    assert took < WITHIN
    centre.places["hospital-c"] = clinic
    assert "hospital-c" in [site["name"] for site in centre.must("status")["sites"]]
    line = sum(after) - sum(before)
    print(f"registered after {took:.1f} s: a file of {len(text)} bytes, and {line} bytes on the line")


def test_only_the_sites_key_is_in_its_file(centre: HostsFederation, clinic: Host) -> None:
    text = (clinic.home / "hospital-c.join").read_text()
    assert text.count("PRIVATE KEY-----\n") == 2  # Its first line and its last one.
    kept = state.read(centre.kits.parent / "state")
    keys = [value for value in _strings(kept) if "PRIVATE KEY" in value]
    ours = (centre.kits / "hospital-c" / "startup" / "client.key").read_text()
    assert ours.strip() in text
    # The first lines of a key are in its certificate too. The last ones are secret.
    others = [key for key in keys if key.splitlines()[-3] not in ours]
    assert len(others) == len(keys) - 1 > 2
    assert [key for key in others if key.splitlines()[-3] in text] == []


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, str):
        yield value


def test_the_file_changes_nothing_where_the_site_has_joined(centre: HostsFederation, clinic: Host) -> None:
    before = centre.started("hospital-c")
    said = join(clinic, "hospital-c.join", "--yes")
    assert said.returncode == 0 and "has joined already" in said.stderr
    after = centre.started("hospital-c")
    assert before == after


def test_a_file_cannot_take_another_sites_folder(centre: HostsFederation, clinic: Host) -> None:
    centre.invite("site-1", clinic)
    said = join(clinic, "site-1.join", "--yes", "--dir", "hospital-c")
    assert said.returncode == 1 and "the folder of the site hospital-c" in said.stderr


def test_status_names_data_that_cannot_be_read_and_an_edit_that_waits(
    centre: HostsFederation, clinic: Host
) -> None:
    folder = clinic.home / "hospital-c"
    (folder / "data" / "scan.csv").write_text("1\n")
    assert clinic.run("hospital-c/site", "status").stderr == ""
    (folder / "data").chmod(0o000)
    (folder / "site.yml").write_text("node_config: {ward: 3}\n")
    said = clinic.run("hospital-c/site", "status").stderr
    (folder / "data").chmod(0o755)
    (folder / "site.yml").write_text("")
    assert "  data: user 10001 of the container cannot read /data: Permission denied." in said
    assert "  An edit of site.yml is not in effect yet: hospital-c runs with older settings." in said
    assert clinic.run("hospital-c/site", "status").stderr == ""


def test_a_second_machine_with_the_same_file_stays_out(
    centre: HostsFederation, clinic: Host, engine: Callable[..., Host]
) -> None:
    thief = engine("thief", apart=True)
    centre.carry_runtime(thief)
    (thief.home / "hospital-c.join").write_text((clinic.home / "hospital-c.join").read_text())
    said = join(thief, "hospital-c.join", "--yes")
    assert said.returncode == 1
    assert "another machine" in said.stderr, said.stderr
    # Whoever has the site's key can push it from its connection for a moment.
    until(lambda: clinic.run("hospital-c/site", "status").returncode == 0, WITHIN)


def test_a_site_that_joined_takes_part_in_a_job(federation: HostsFederation) -> None:
    took = federation.wait_for_environments("hospital-c")
    print(f"hospital-c has the app's packages {took:.1f} s later")
    sites = ["hospital-c", "site-1"]
    job = federation.submit("numpy-add", "--rounds", "2", "--sites", ",".join(sites))
    assert federation.must("wait", job)["rounds"] == undisturbed(2, sites)


def test_a_site_that_is_removed_is_out_within_seconds(centre: HostsFederation, clinic: Host) -> None:
    start = time.monotonic()
    removed = centre.must("site", "remove", "hospital-c")
    assert any("./site leave" in sentence for sentence in removed["left"])
    while "hospital-c" in [site["name"] for site in centre.must("status")["sites"]]:
        assert time.monotonic() - start < WITHIN
    print(f"out {time.monotonic() - start:.1f} s after the command began")
    until(lambda: clinic.run("hospital-c/site", "status").returncode == 1, WITHIN)
    left = clinic.run("hospital-c/site", "leave", "--yes")
    assert left.returncode == 0, left.stderr
    assert clinic.docker("ps", "--all", "--quiet") == "" == clinic.docker("volume", "ls", "--quiet")
    assert not [path for path in (clinic.home / "hospital-c").rglob("*") if path.suffix == ".key"]
    del centre.places["hospital-c"]


def test_a_removed_site_can_be_let_in_again_in_its_old_folder(centre: HostsFederation, clinic: Host) -> None:
    assert {path.name for path in (clinic.home / "hospital-c").iterdir()} == {"data", "site.yml"}
    project = centre.root / "project.yml"
    revoked = [line for line in project.read_text().splitlines(True) if "hospital-c" in line]
    assert revoked, "site remove lists the name under revoked"
    project.write_text("".join(line for line in project.read_text().splitlines(True) if line not in revoked))
    said = centre.join("hospital-c", clinic)
    assert "keeping the data and the settings" in said and "registered" in said


def test_a_person_has_one_container_that_opens_no_port(centre: HostsFederation, clinic: Host) -> None:
    person = "jane@lab.example"
    invited = centre.invite(person, clinic, "--role", "lead")
    said = join(clinic, f"{person}.join", "--fingerprint", invited["fingerprint"])
    assert said.returncode == 0, said.stderr
    own = ("--filter", f"label=com.docker.compose.project={centre.project}-jane")
    shown = clinic.docker("ps", *own, "--format", '{{.Label "com.docker.compose.service"}}{{.Ports}}')
    assert shown.split() == ["jane"]
    state = clinic.run("jane/site", "status")
    assert state.returncode == 0 and "is ready." in state.stdout and state.stderr == "", state
    container = clinic.docker("ps", *own, "--quiet").strip()
    until(lambda: clinic.run("docker", "exec", container, "test", "-S", "/tmp/flwr").returncode == 0, WITHIN)
    centre.must("site", "remove", person)
    # It needs a terminal.
    refused = clinic.run("script", "-qec", "jane/site console", "/dev/null")
    assert "expected a certificate that server accepts, found this: server closes" in refused.stdout
    assert "Traceback" not in refused.stdout and "FLCommunicationError" not in refused.stdout
    assert clinic.run("jane/site", "leave", "--yes").returncode == 0
