"""Start the federation, and return when every container is healthy.

A server is healthy when it answers on its port, and a site when it is registered with the server. `up` waits
up to 120 s for that, then fails. If Docker is not running, it is started first.

Containers that run and are up to date are left alone. Others are replaced. While a job has a container that
would be replaced, `up` starts nothing and names site and job, unless --force is given.

  ./flowerbed up --tracking tensorboard    also start TensorBoard, for the curves of all jobs
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from provisioning import dotenv, links
from provisioning.names import carrier, flwr_port_key, is_carrier
from scripts import (
    behind,
    compose,
    core,
    engine,
    engine_view,
    images,
    leftovers,
    ownership,
    progress,
    provision,
    renew,
    settings,
    site_checks,
    unfinished,
)
from scripts.json_object import JsonObject

WAIT_TIMEOUT = 120
"""Seconds for all to be healthy. It takes 13. A health check gives up after 75."""

COMPOSE_WITHIN = 600.0
"""Seconds for Compose to end. It waits no longer than `WAIT_TIMEOUT` for health."""

RECOVERED_WITHIN = 30.0
"""Seconds for an unhealthy container to recover: a site finds a restarted server in half of that."""

LOOK_EVERY = 1.0
"""Seconds between two checks of the containers' health."""

WHO_LISTENS = "ss -ltnp" if sys.platform == "linux" else "lsof -nP -iTCP -sTCP:LISTEN"
"""The command that shows which program listens on a port."""

STEP = re.compile(r"^\s*Container (?P<container>\S+)\s+(?P<step>Started|Healthy|Error)\b")
"""A line of Compose's plain progress that is worth showing."""


class Tracking(StrEnum):
    """Tools that show the jobs' curves: Compose services and profiles of these names, each with a port."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"


TRACKING = tuple(tool.value for tool in Tracking)


JSON = JsonObject(
    {
        "services": "the health of each container by name, or its state if it has no health check",
        "tracking": "the address of each tracking tool that runs, by name",
        "seconds": "how long it took",
    },
    on_error={"services": "if a job stands in the way: the containers that would be replaced"},
)


def run(
    tracking: Annotated[
        list[Tracking] | None,
        typer.Option(
            help="Also start this tool, which shows the curves of jobs on a port of this machine. It runs "
            "until `down`. May be given twice."
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace containers even if a running job has one. The job then lacks that site until it is "
            "back, or fails with its server.",
        ),
    ] = False,
) -> dict[str, Any]:
    """Start the federation and wait until it is healthy.

    Raises:
        core.Failure: what is missing or taken, which container did not become healthy, and why; or a job runs
            in one that is to be made anew, and `force` is not set.
    """
    start = time.monotonic()
    # The engine first: users without one are told to run `sudo ./flowerbed up`.
    found = engine.ensure()
    if not compose.is_provisioned():
        if found["was"] == engine.RUNNING:
            raise core.Failure(compose.PROVISION)
        core.say(f"The Docker engine {found['engine']} runs now. Next: ./flowerbed quickstart")
        return {"services": {}, "tracking": {}, "seconds": round(time.monotonic() - start, 1)}
    _prepare()
    # A running tool stays up.
    there = compose.containers()
    shown_by = sorted({*(tracking or ()), *{c["Service"] for c in there}.intersection(TRACKING)})
    config = compose.config(profiles=shown_by)
    ownership.check(str(config["name"]))
    _check_images(config)
    _check_folders(config)
    _check_ports(config)
    replaced = behind.containers(there, behind.hashes(), config)
    _check_jobs(replaced, force=force)
    links.take_more(_file(), {c["Service"] for c in there if c["State"] == "running"}.difference(replaced))
    _start(str(config["name"]), start, shown_by, len(config["services"]))
    containers = compose.containers()
    services = {c["Service"]: c.get("Health") or c["State"] for c in containers}
    _check_data(config, {c["Service"]: c["Name"] for c in containers if c["State"] == "running"})
    seconds = round(time.monotonic() - start, 1)
    core.say(f"Up in {seconds:.0f} s: {', '.join(sorted(services))}.{core.follow_up('submit APP')}")
    provision.tell_changes()
    if late := behind.in_words([], behind.kits(config)):
        core.say(late)
    file, name = _file(), str(config["name"])
    # Only now that their containers are gone.
    leftovers.forget_images(file, name, dotenv.read(core.ROOT / ".env").get("FLOWERBED_TAG", ""))
    leftovers.forget_kits(file)
    leftovers.forget_renewed(file)
    leftovers.tell(file, name)
    return {"services": services, "tracking": _tell_addresses(config, shown_by), "seconds": seconds}


def _file() -> Path:
    """Return the federation's Compose file."""
    return core.ROOT / dotenv.read(core.ROOT / ".env")["FLOWERBED_COMPOSE"]


def _tell_addresses(config: dict[str, Any], tools: Sequence[str]) -> dict[str, str]:
    """Show and return where the tools are."""
    addresses = {name: _address(config, name) for name in tools}
    for name, address in addresses.items():
        core.say(f"  {name}: {address}")
    return addresses


def _prepare() -> None:
    """Check the address, and renew the certificates that are due."""
    _check_address()
    with contextlib.suppress(core.Failure):  # `doctor` tells of what is due.
        if names := renew.due():
            core.say(f"Renewed certificates: {', '.join(names)}.")


def _check_address() -> None:
    """Check the address here, since Compose's error for a bad one speaks of a port."""
    address = settings.read(settings.BIND)
    if ":" in address and not (address.startswith("[") and address.endswith("]")):
        raise core.Failure(
            f"{settings.BIND}: expected an address, with an IPv6 one in brackets, found {address}. Write "
            f"{settings.BIND}=[{address.strip('[]')}]."
        )


def _address(config: dict[str, Any], name: str) -> str:
    address, number = next((address, number) for service, address, number in ports(config) if service == name)
    return f"http://{'localhost' if address in ('0.0.0.0', '127.0.0.1') else address}:{number}"


def _check_images(config: dict[str, Any]) -> None:
    if lost := images.lost(config):
        more = " --tracking mlflow" if any("-mlflow:" in name for name in lost) else ""
        raise core.Failure(f"There is no image {', '.join(lost)}: run ./flowerbed build{more}.")


def _check_folders(config: dict[str, Any]) -> None:
    """Check the folders here, since Docker's error names neither the site nor the verb."""
    engine_view.check(core.ROOT)
    for name, service in config["services"].items():
        for volume in service.get("volumes", []):
            if volume["type"] != "bind" or engine.is_remote() or Path(volume["source"]).is_dir():
                continue
            what = f"{name} has no folder {volume['source']} ({volume['target']} inside)"
            data = volume["target"] in site_checks.data_folders(service)
            advice = "run ./flowerbed data, or put its data there" if data else "make it"
            raise core.Failure(f"{what}: {advice}.")


def _check_data(config: dict[str, Any], running: dict[str, str]) -> None:
    """Try to read the sites' data as the containers' user, before a job does."""
    try:
        looks = [look for look in site_checks.read_data(config, running) if look.closed]
    except core.Failure as failure:
        core.say(f"  Could not test whether apps can read the data: {failure}")
        return
    for look in (look for look in looks if not look.is_shut):
        core.say(f"  {look.found}. To allow it: {look.mend}.")
    if shut := [look for look in looks if look.is_shut]:
        text = "\n".join(f"  {look.found}. To allow it: {look.mend}." for look in shut)
        raise core.Failure(f"All are up, but no app can read this data:\n{text}")


def _check_ports(config: dict[str, Any]) -> None:
    running = {c["Service"] for c in compose.containers() if c["State"] == "running"}
    for name, address, number in ports(config):
        if name not in running and not engine.is_remote() and not is_free(address, number):
            raise core.Failure(
                f"Port {number} on {address}, the {name}'s, is taken by another program ({WHO_LISTENS} "
                f"shows which). Stop that, or write {port_key(name)}=another port into .env.",
                port=number,
            )


def _check_jobs(late: Sequence[str], *, force: bool) -> None:
    """Refuse to recreate containers that a running job uses."""
    try:
        hit = unfinished.hit_by(late)
    except core.Failure as failure:
        core.say(f"Could not ask the server whether a job runs: {failure}")
        return
    if not hit:
        return
    who = sorted({service for _, services in hit for service in services})
    if force:
        core.say(f"Replaced in the middle of {len(hit)} job{'s' * (len(hit) > 1)}: {', '.join(who)}")
        return
    jobs = [{**job, "name": f"{job['name']}  ({', '.join(services)})"} for job, services in hit]
    raise core.Failure(
        f"{', '.join(who)} would be replaced in the middle of a job, so nothing was started:\n"
        f"{unfinished.named(jobs)}\n{unfinished.how_to_go_on(jobs)}   "
        "or do it anyway: ./flowerbed up --force",
        jobs=[job["job_id"] for job in jobs],
        services=who,
    )


def ports(config: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yield the published ports, each with its service and address."""
    for name, service in config["services"].items():
        for port in service.get("ports", []):
            yield name, port.get("host_ip") or "0.0.0.0", int(port["published"])


def port_key(service: str) -> str:
    """Return the setting for a service's published port."""
    if service in TRACKING:
        return f"FLOWERBED_{service.upper()}_PORT"
    if is_carrier(service):
        return flwr_port_key(service.removeprefix(carrier("")))
    return "FLOWERBED_PORT"


def flwr_ports(config: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Return where Flower's command line reaches each console: address and port by the console's name."""
    return {
        service.removeprefix(carrier("")): (address, number)
        for service, address, number in ports(config)
        if is_carrier(service)
    }


def is_free(address: str, port: int) -> bool:
    """Return whether a program could listen there now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Recently closed connections do not count, as they do not for the engine.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen()
        except OSError:
            return False
    return True


def _start(project: str, start: float, profiles: Sequence[str], containers: int) -> None:
    """Run Compose, and show each container's steps as they come."""
    words = [*compose.with_profiles(profiles), "--progress", "plain", "up", "--detach", "--remove-orphans"]
    words += ["--wait", "--wait-timeout", str(WAIT_TIMEOUT)]
    told: set[str] = set()
    healthy: set[str] = set()
    with progress.Bar("starting", containers) as bar:

        def tell(line: str) -> None:
            step = STEP.match(line)
            # Every site waits for the server, and each would report it.
            if step and step.group() not in told:
                told.add(step.group())
                service = step["container"].removeprefix(f"{project}-").removesuffix("-1")
                core.say(f"  {time.monotonic() - start:5.1f} s  {service} {step['step'].lower()}")
                healthy.update([service] if step["step"] == "Healthy" else [])
                bar.at(len(healthy))

        code, said = progress.follow([*engine.compose(), *words], tell, timeout=COMPOSE_WITHIN)
    if code and (_is_final(said) or not _healthy_yet(time.monotonic() + RECOVERED_WITHIN)):
        _explain(said)


def _is_final(said: str) -> bool:
    """Return whether Compose's output has an error that no waiting mends."""
    return any(known in said for known in (compose.NO_GPU, compose.NO_ADDRESSES, compose.SAME_ADDRESSES))


def _healthy_yet(deadline: float) -> bool:
    """Return whether all containers become healthy by the deadline.

    Compose gives up at once on an unhealthy container, such as a site after a restart of its server a moment
    ago.
    """
    while time.monotonic() < deadline:
        states = [(c["State"], c.get("Health")) for c in compose.containers()]
        if not states or any(state != "running" for state, _ in states):
            return False
        if all(health in ("healthy", "", None) for _, health in states):
            return True
        time.sleep(LOOK_EVERY)
    return False


def _explain(said: str) -> None:
    """Fail with the error of the first container that is not well."""
    if _is_final(said):
        compose.explain("docker compose up", said)
    for container in compose.containers():
        health = container.get("Health")
        # One that was not started is not the cause.
        if container["State"] == "created":
            continue
        if container["State"] == "running" and health not in ("unhealthy", "starting"):
            continue
        name = container["Service"]
        inspected = core.run([engine.docker(), "inspect", container["Name"]])
        state = {} if inspected.returncode else json.loads(inspected.stdout)[0]["State"]
        checks = "".join(entry["Output"] for entry in (state.get("Health") or {}).get("Log") or ())
        last = [line for line in checks.splitlines() if line.strip()][-1:]
        log = compose.call(["logs", "--no-color", "--no-log-prefix", "--tail", "15", name])
        core.fail(
            f"Starting {name} ({health or container['State']}{': ' + last[0].strip() if last else ''})",
            log.decode(errors="replace"),
        )
    compose.explain("docker compose up", said)
