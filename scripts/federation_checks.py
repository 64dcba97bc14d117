"""Check for `doctor` that the federation is this folder's, that all of it runs, and that ports are free."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from bridge.common.finding import Finding
from provisioning import dotenv, renewed
from provisioning.keys import DEFAULT_PORT, PORT
from provisioning.names import service_name
from scripts import (
    behind,
    compose,
    console,
    core,
    engine,
    join_files,
    ownership,
    provision,
    report_checks,
    settings,
    up,
)
from scripts.status import REGISTERING, stopped


def check_name() -> Finding | None:
    """Check that the project's name belongs to this folder. There may be no name yet."""
    try:
        name = compose.project() or str(provision.load(provision.DEFAULT_PROJECT)["name"])
    except core.Failure:
        return None  # `check_project` reports it.
    try:
        ownership.check(name)
    except core.Failure as failure:
        found, _, mend = str(failure).partition(". Give ")
        return Finding("name", "fail", found, f"give {mend}")
    return Finding("name", "ok", f"{name} belongs to this folder")


def check_port() -> Iterator[Finding]:
    """Check the server's port before anything is provisioned."""
    try:
        participants = provision.load(provision.DEFAULT_PROJECT)["participants"]
    except core.Failure:
        return  # `check_project` reports it.
    given = settings.read("FLOWERBED_PORT")
    server: Mapping[str, Any] = next((item for item in participants if item.get("type") == "server"), {})
    ours = server.get(DEFAULT_PORT) or server.get("fed_learn_port", PORT)
    number = int(given) if given.isdecimal() else ours
    yield _port("server", settings.read(settings.BIND), number, "FLOWERBED_PORT")


def check_ports(config: dict[str, Any], running: set[str]) -> Iterator[Finding]:
    """Check that each published port is free, or ours."""
    for name, address, number in up.ports(config):
        if name in running:
            yield Finding("port", "ok", f"{address}:{number} is the {name}'s")
        else:
            yield _port(name, address, number, up.port_key(name))


def _port(name: str, address: str, number: int, key: str) -> Finding:
    where = f"{address}:{number}"
    if engine.is_remote() or up.is_free(address, number):
        return Finding("port", "ok", f"{where} is free for the {name}")
    mend = f"stop the program that has it ({up.WHO_LISTENS}), or write {key}=another into .env"
    return Finding("port", "fail", f"{where} is taken by another program", mend)


def check_containers(config: dict[str, Any], containers: Sequence[Mapping[str, str]]) -> Iterator[Finding]:
    """Check that all containers run, with the last provisioning and build. None need run."""
    known = {c["Service"]: c for c in containers}
    if any(c["State"] == "running" for c in containers):
        if down := stopped(config["services"], known):
            yield Finding("containers", "fail", f"{', '.join(down)} not running", "./flowerbed up")
        ill = sorted(c["Service"] for c in containers if c["Health"] == "unhealthy")
        if ill:
            mend = f"docker compose logs {ill[0]}. For a site: {REGISTERING}"
            yield Finding("containers", "fail", f"unhealthy: {', '.join(ill)}", mend)
    late = behind.containers(containers, behind.hashes(), config)
    if found := behind.in_words(late, behind.kits(config)):
        yield Finding("containers", "warn", found)


def not_open(config: dict[str, Any], containers: Sequence[Mapping[str, str]]) -> set[int]:
    """Return the ports that running containers have by the Compose file, and get only with the next `up`."""
    running = {c["Service"]: c["Ports"] for c in containers if c["State"] == "running" and c.get("Ports")}
    return {
        number
        for name, _, number in up.ports(config)
        if name in running and f":{number}->" not in running[name]
    }


def check_sites(running: Mapping[str, str], closed: Collection[int] = ()) -> Iterator[Finding]:
    """Check that the sites of project.yml are registered with the server, if it runs here.

    Args:
        running: the containers by service.
        closed: the result of `not_open`.
    """
    try:
        project = provision.load(provision.DEFAULT_PROJECT)
        participants = project["participants"]
        server = next((item for item in participants if item.get("type") == "server"), None)
        if server is None or service_name(server["name"]) not in running:
            return
        told = console.ask(console.service(None), "status")
    except core.Failure as failure:
        mend = "docker compose logs server"
        yield Finding("sites", "warn", f"could not ask the server which are registered: {failure}", mend)
        return
    known = {site["name"] for site in told["sites"]}
    sites = [item["name"] for item in participants if item.get("type") == "client"]
    absent = [name for name in sites if name not in known]
    waited = join_files.not_joined(str(project.get("name")), absent, told)
    for site in waited:
        yield Finding("sites", "warn", join_files.in_words(site))
    early = {site["name"] for site in waited}
    lost = [name for name in absent if name not in early]
    if not lost:
        yield Finding("sites", "ok", f"{len(sites) - len(waited)} registered")
        yield from _reports(told, closed)
        return
    address = f"{server.get('default_host') or server['name']}:{server.get('fed_learn_port', PORT)}"
    if port := server.get(DEFAULT_PORT):
        address += f", or port {port} from other machines"
    found = f"{', '.join(lost)} not registered. Sites dial {address}"
    is_here = any(service_name(name) in running for name in lost)
    yield Finding("sites", "fail" if is_here else "warn", found, REGISTERING)
    yield from _reports(told, closed)


def _reports(told: Mapping[str, Any], closed: Collection[int]) -> Iterator[Finding]:
    file = dotenv.read(core.ROOT / ".env").get("FLOWERBED_COMPOSE")
    folder = (core.ROOT / file).parents[1] / renewed.FOLDER if file else None
    yield from report_checks.check(told, folder, closed)
