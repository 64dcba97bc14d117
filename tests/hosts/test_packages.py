"""The runtime and the packages of apps reach a site on another host that has no registry."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from bridge.common import offers
from scripts.core import ROOT
from tests.hosts.engine import Host
from tests.hosts.federation import HostsFederation

APP = ROOT / "tests" / "apps" / "numpy-add"
FETCHING = "fetching the runtime image from"
WITHIN = 120.0
"""Seconds for an environment of 70 MB to reach a site: two reports, and the way."""


@pytest.fixture(scope="module")
def island(centre: HostsFederation) -> Iterator[Host]:
    """A host without anything but Docker, which reaches only the server."""
    host = centre.hosts.engine("island", apart=True)
    yield host
    centre.must("site", "remove", "island")
    host.power_cut()


@pytest.fixture(scope="module")
def joined(centre: HostsFederation, island: Host) -> Host:
    """The same, once its site has joined. The runtime came from the server."""
    invited = centre.invite("island", island, "--from-server")
    began, before = time.monotonic(), sum(island.crossed())
    said = island.run("sh", "island.join", "--fingerprint", invited["fingerprint"], timeout=600)
    assert said.returncode == 0, said.stderr
    assert FETCHING in said.stderr
    took, crossed = time.monotonic() - began, sum(island.crossed()) - before
    image = next(line for line in said.stderr.splitlines() if FETCHING in line)
    print(f"joined in {took:.0f} s, {crossed / 1e6:.0f} MB crossed: {image}")
    centre.places["island"] = island
    return island


def environments(host: Host) -> set[str]:
    """Return the environments that are installed at a site."""
    folder = host.home / "island" / "environments"
    return {path.parent.name for path in folder.glob("*/environment.json")}


def alone(centre: HostsFederation) -> str:
    """Submit a job for this site only, and return its ID."""
    one = ("--sites", "island", "--run-config", "min-available-clients=1")
    return centre.submit(APP.name, "--rounds", "1", *one)


def test_a_site_without_the_runtime_fetches_it_from_the_server(joined: Host) -> None:
    assert "registered with" in joined.must("island/site", "status")
    # Neither the archive nor another copy of the key is left.
    assert [path.name for path in joined.home.glob("island.*")] == ["island.join"]


def test_an_apps_packages_reach_it_by_themselves(centre: HostsFederation, joined: Host) -> None:
    took = centre.wait_for_environments("island")
    print(f"the packages were there {took:.0f} s after the join")
    (name,) = environments(joined)
    assert (joined.home / "island" / "environments" / name / offers.OFFER).is_file()
    # The spool is empty again after the next report.
    spool, deadline = joined.home / "island" / "spool" / "environments", time.monotonic() + WITHIN
    while any(spool.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(1)


def forget(host: Host) -> str:
    """Remove the one environment of the site, and return its name."""
    (name,) = environments(host)
    keeper = host.docker("ps", "--quiet", "--filter", "label=org.flowerbed.role=keeper").strip()
    host.docker("exec", keeper, "rm", "-rf", f"/environments/{name}")
    return name


def test_a_job_that_comes_first_waits_for_them(centre: HostsFederation, joined: Host) -> None:
    name, began = forget(joined), time.monotonic()
    outcome = centre.verb("wait", alone(centre), timeout=WITHIN + 60)
    assert outcome.code == 0, outcome.text
    assert environments(joined) == {name}
    print(f"a job whose packages had to cross first took {time.monotonic() - began:.0f} s")


def test_the_keeper_has_no_network_and_no_key(joined: Host) -> None:
    name = joined.docker("ps", "--quiet", "--filter", "label=org.flowerbed.role=keeper").strip()
    mode = joined.docker("inspect", "--format", "{{.HostConfig.NetworkMode}} {{.Config.User}}", name)
    assert mode.strip() == "none 10001:10001"
    mounts = joined.docker("inspect", "--format", "{{range .Mounts}}{{.Destination}} {{.RW}},{{end}}", name)
    assert sorted(mounts.strip().rstrip(",").split(",")) == [
        "/environments true",
        "/renewed true",
        "/spool false",
    ]
    found = joined.docker("exec", name, "sh", "-c", "find / -name '*.key' -path '*kit*' 2>/dev/null | wc -l")
    assert found.strip() == "0"


def test_the_site_itself_cannot_write_packages(joined: Host) -> None:
    name = joined.docker("ps", "--quiet", "--filter", "label=org.flowerbed.role=site").strip()
    tried = joined.run("docker", "exec", name, "touch", "/environments/x", "/renewed/x")
    assert tried.returncode != 0 and tried.stderr.count("Read-only file system") == 2


def test_a_site_that_approves_each_decides_by_checksum(centre: HostsFederation, joined: Host) -> None:
    site = joined.home / "island"
    joined.must("sh", "-c", "echo 'environments: approve' >>island/site.yml && island/site start")
    name = forget(joined)
    job = alone(centre)
    outcome = centre.verb("wait", job, timeout=WITHIN)
    assert outcome.code == 1 and "./site approve " in outcome.text
    told = joined.must("island/site", "status")
    checksum = told.rpartition("./site approve ")[2].split()[0]
    assert environments(joined) == set()
    joined.must("island/site", "approve", checksum)
    deadline = time.monotonic() + WITHIN
    while environments(joined) != {name}:
        assert time.monotonic() < deadline, list(site.rglob("*.part"))
        time.sleep(1)
    job = alone(centre)
    assert centre.verb("wait", job).code == 0


def test_a_stick_brings_both(centre: HostsFederation, joined: Host, engine: Callable[..., Host]) -> None:
    ward = engine("bay", apart=True)
    stick = ward.home / "stick"
    invited = centre.invite("bay", ward, "--with-images", str(stick))
    (archive,) = stick.glob("runtime/*.tar.gz")
    join = ("sh", "bay.join", "--fingerprint", invited["fingerprint"], "--images", "stick")
    try:
        with archive.open("r+b") as file:
            first = file.read(1)
            file.seek(0)
            file.write(b"x")
        said = ward.run(*join)
        assert said.returncode == 1 and "was altered, or is another file" in said.stderr
        assert ward.docker("image", "ls", "--quiet") == "" and not (ward.home / "bay").exists()
        with archive.open("r+b") as file:
            file.write(first)
        ward.must("sh", "-c", "cd stick && sha256sum -c SHA256SUMS")
        said = ward.run(*join, timeout=600)
        assert said.returncode == 0, said.stderr
        assert FETCHING not in said.stderr and "is installed" in said.stderr
        assert list((ward.home / "bay" / "environments").glob("*/environment.json"))
    finally:
        centre.must("site", "remove", "bay")


def test_what_a_taken_over_site_forges_is_refused(joined: Host) -> None:
    """The site's FLARE process may write into the spool what it wants."""
    before = environments(joined)
    forged, inside = "f" * 12, joined.docker("ps", "--quiet", "--filter", "label=org.flowerbed.role=site")
    script = f"cd /spool/environments && echo '{{}}' > {forged}.json && echo x > {forged}.tar.gz"
    joined.docker("exec", inside.strip(), "sh", "-c", script)
    deadline = time.monotonic() + 30
    while f"environment {forged} is refused: expected a signed" not in joined.must("island/site", "status"):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert environments(joined) == before
