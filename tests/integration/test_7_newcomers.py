"""A site and a person come and go in the middle of a job. Nobody else's kit or container changes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator

import pytest

from dev.scratch_federation import Project
from provisioning import dotenv, links
from scripts.core import ROOT
from tests.attacks import hostile
from tests.faults.phases import Phase, wait_for
from tests.federation import Federation

APP = str(ROOT / "tests/apps/numpy-add")
ROUNDS = 30
NEW, GUEST = "site-6", "guest@flowerbed.example"
SERVICES = (NEW, "guest", "flwr.guest")

LASTING = ("--min-sites", "2", "--rounds", str(ROUNDS), "--run-config", "train-seconds=2")


@pytest.fixture
def project(larger: Federation) -> Iterator[str]:
    """project.yml as it was, put back at the end."""
    file = larger.root / "project.yml"
    before = file.read_text()
    yield before
    file.write_text(before)
    larger.must("provision")
    larger.must("build", timeout=1800)
    larger.must("up")
    # Compose no longer knows the services, and would leave their volumes.
    named = dotenv.read(larger.root / ".env")["COMPOSE_PROJECT_NAME"]
    larger.docker("server", "volume", "rm", "--force", *(f"{named}_{service}" for service in SERVICES))


def join(project: Project) -> None:
    project["participants"] += [
        {"name": NEW, "type": "client", "org": "flowerbed"},
        {"name": GUEST, "type": "admin", "org": "flowerbed", "role": "lead"},
    ]


def leave(project: Project) -> None:
    project["participants"] = [item for item in project["participants"] if item["name"] not in (NEW, GUEST)]
    project["revoked"] = [NEW, GUEST]


def change(federation: Federation, edit: Callable[[Project], object]) -> float:
    """Edit project.yml and bring the federation up to it, as a person does. Return the seconds of `up`."""
    federation.edit(edit)
    federation.must("provision")
    federation.must("build", timeout=1800)
    began = time.monotonic()
    federation.must("up")
    return time.monotonic() - began


def kits(federation: Federation) -> dict[str, str]:
    """A hash of each file of all kits, by its path. Those of the newcomers are left out."""
    paths = {path.relative_to(federation.kits): path for path in federation.kits.rglob("*") if path.is_file()}
    return {
        str(name): hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in paths.items()
        if len(name.parts) > 1 and name.parts[0] not in (NEW, GUEST)
    }


@pytest.mark.timeout(600)
def test_they_come_and_go_in_the_middle_of_a_job(larger: Federation, project: str) -> None:
    folder = larger.root / "data" / NEW
    folder.mkdir(exist_ok=True)
    (folder / "some.csv").write_text("1")
    containers, files = larger.containers(), kits(larger)
    job = str(larger.must("submit", APP, *LASTING)["job_id"])
    hostile.running(larger, job)

    took = change(larger, join)
    print(f"up took {took:.1f} s with a new site and a new person, in the middle of a job")
    now = larger.containers()
    assert {name: now.pop(name) for name in containers} == containers
    assert sorted(name.split("-", 1)[1] for name in now) == ["flwr.guest-1", "guest-1", "site-6-1"]
    assert kits(larger) == files
    hostile.registered(larger, NEW)
    assert job in [str(one["job_id"]) for one in larger.must("jobs", "--as", "guest")["jobs"]]

    # It takes part in a whole round of the job that ran before it came. Then it goes, and the job goes on.
    hostile.running(larger, job, NEW)
    wait_for(larger, job, NEW, Phase.BETWEEN_ROUNDS)
    took = change(larger, leave)
    print(f"up took {took:.1f} s when both left, in the middle of a job")
    assert larger.containers() == containers
    assert kits(larger) == files
    outcome = larger.verb("wait", job)
    assert (outcome.code, outcome.value["status"]) == (0, "FINISHED:COMPLETED"), outcome.text
    rounds = outcome.value["rounds"]
    assert [one["loss"] for one in rounds] == [float(number + 1) for number in range(ROUNDS)]
    assert all({"site-1", "site-2", "site-3", "site-4"} <= set(one["sites"]) for one in rounds)
    took_part = [NEW in one["sites"] for one in rounds]
    assert any(took_part) and not took_part[0] and not took_part[-1]
    assert f"{NEW} joined late and takes part from now on" in outcome.text


@pytest.mark.timeout(600)
def test_a_newcomer_takes_part_in_the_next_job(larger: Federation, project: str) -> None:
    change(larger, join)
    hostile.registered(larger, NEW)
    for who in ("admin", "guest"):
        config = ("--sites", f"site-1,{NEW}", "--rounds", "1", "--as", who)
        outcome = larger.must("submit", APP, *config, "--wait")
        assert sorted(outcome["rounds"][0]["sites"]) == ["site-1", NEW]


@pytest.mark.timeout(600)
def test_a_removed_site_or_person_leaves_no_container(larger: Federation, project: str) -> None:
    """A newcomer may get its network next. `up` need not run first."""
    change(larger, join)
    before = larger.containers()
    gone = {larger.name(service) for service in SERVICES}
    assert gone <= set(before)
    for name in (NEW, GUEST):
        left = larger.must("site", "remove", name)["left"]
        assert not any("container" in sentence or "image" in sentence for sentence in left), left
    assert larger.containers() == {name: one for name, one in before.items() if name not in gone}


@pytest.mark.timeout(600)
def test_ready_networks_are_refilled_when_the_server_starts_anew(larger: Federation, project: str) -> None:
    def of_server() -> links.ListenerLinks:
        return links.read((larger.root / dotenv.read(larger.root / ".env")["FLOWERBED_COMPOSE"]).parent)[
            "server"
        ]

    before = larger.containers()
    change(larger, join)
    now, few = larger.containers(), of_server()
    assert {name: now[name] for name in before} == before and few.number < few.enough
    larger.compose("rm", "--stop", "--force", "server")
    larger.must("up")
    many = of_server()
    assert many.number == few.enough and many.taken == few.taken
    form = "{{range $name, $_ := .NetworkSettings.Networks}}{{println $name}}{{end}}"
    there = larger.docker("server", "inspect", "--format", form, larger.name("server")).split()
    assert len([name for name in there if "_link-server-" in name]) == many.number
    hostile.registered(larger, NEW)
    # Nothing is replaced for that later.
    before = larger.containers()
    larger.must("provision")
    larger.must("up")
    assert larger.containers() == before and of_server() == many
