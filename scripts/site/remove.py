"""Take a site, a relay or a person out of the federation at once.

It takes the name out of project.yml, writes it under `revoked:`, and tells the server, which disconnects it
within 30 s. Its container on this machine is removed. No other kit changes, and no other container. It
forgets the key of the one that left, which stays refused, and removes kits and images with it. It names what
is left, and where.

  ./flowerbed site remove hospital-c
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from provisioning import dotenv, revocation, state
from provisioning.keys import ELSEWHERE
from provisioning.names import carrier, service_name
from scripts import ca, compose, core, engine, leftovers, provision
from scripts.build import TAG as BUILT
from scripts.json_object import JsonObject
from scripts.site import add, project_file

STOPPED_WITHIN = 60.0
"""Seconds for its containers to end. The engine kills them after 10 s each."""

JSON = JsonObject(
    {
        "removed": "the name",
        "elsewhere": "true if it runs on another machine",
        "left": "what is left of it, and where: a list of sentences",
    }
)


def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name in project.yml.")],
) -> dict[str, Any]:
    """Remove the participant, and say what is left.

    Raises:
        core.UsageError: there is none of this name, or others cannot be without it.
    """
    project = provision.load(provision.DEFAULT_PROJECT)
    # A person's console knows itself by the name of its container.
    called = {service_name(item["name"]): item for item in project["participants"]}
    entry = next((item for item in project["participants"] if item["name"] == name), called.get(name))
    if entry is None:
        names = ", ".join(item["name"] for item in project["participants"])
        raise core.UsageError(f"There is no participant {name} in project.yml: expected one of {names}.")
    name = entry["name"]
    if behind := [item["name"] for item in project["participants"] if project_file.relay_of(item) == name]:
        raise core.UsageError(
            f"{', '.join(behind)} would have nobody to connect to: expected a relay that nobody uses. First "
            "let them connect elsewhere (connect_to in project.yml), or remove them."
        )
    before = provision.DEFAULT_PROJECT.read_text()
    add.write(project_file.with_revoked(project_file.without_participant(before, name), name))
    try:
        with core.led():
            provision.run()
    except core.Failure:
        provision.DEFAULT_PROJECT.write_text(before)
        raise
    _forget_key(name)
    file = core.ROOT / dotenv.read(core.ROOT / ".env")["FLOWERBED_COMPOSE"]
    leftovers.forget_kits(file)
    if engine.ask().problem == "":
        _remove_containers(entry)
        leftovers.forget_images(file, str(project["name"]), BUILT)
    left = list(_left(entry, str(project["name"])))
    core.say(f"{name} is out: its name is under revoked: in project.yml. What is left of it:")
    for sentence in left:
        core.say(f"  {sentence}")
    return {"removed": name, "elsewhere": bool(entry.get(ELSEWHERE)), "left": left}


def _remove_containers(entry: Mapping[str, Any]) -> None:
    """Remove the participant's containers here. Its network may be given to a newcomer next."""
    name = service_name(entry["name"])
    found = [c["Name"] for c in compose.containers() if c["Service"] in (name, carrier(name))]
    if found and not entry.get(ELSEWHERE):
        core.run([engine.docker(), "stop", *found], timeout=STOPPED_WITHIN)
        core.run([engine.docker(), "rm", "--force", *found])


def _forget_key(name: str) -> None:
    """Let the centre forget the participant's key, and the server refuse it for good."""
    from provisioning import own_keys  # Here, since cryptography takes a while.

    folder = ca.folder()
    with state.Lock(folder, lambda: core.say("  waiting for a provisioning to end")):
        content = ca.read(folder)
        # First for the server: a killed run leaves no key that is forgotten and still counts.
        revocation.add(folder.parent, own_keys.forget(content, name))
        state.save(folder, content, forget=True)


def _left(entry: Mapping[str, Any], project: str) -> Iterator[str]:
    """Yield what is left of a participant, and where."""
    service = service_name(entry["name"])
    if entry.get(ELSEWHERE):
        yield "At its machine: its folder, with its key and its data. There: ./site leave"
        if (join_file := Path(f"{entry['name']}.join").absolute()).is_file():
            yield f"Its join file {join_file}. Delete it: it has the key, unless the site made its own"
    elif engine.ask().problem == "":
        image, volume = f"{project}-{service}:{BUILT}", f"{project}_{service}"
        if any(item["Service"] == service for item in compose.containers()):
            yield f"Its container {compose.container(service)}. ./flowerbed up removes it"
        if engine.has(image):
            yield f"Its image {image}, with its key. ./flowerbed up removes it with the container"
        if core.run([engine.docker(), "volume", "inspect", volume]).returncode == 0:
            yield f"Its volume {volume}, with its jobs: docker volume rm {volume}"
    yield (
        "Its name, under revoked: in project.yml. To use the name again, take it out there. It then gets a "
        "new key, because the old one stays refused"
    )
