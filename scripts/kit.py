"""Make a startup kit for FLARE's own tools on this machine. Prints its folder.

  ./flowerbed kit                                         for the project_admin
  ./flowerbed kit --as lead
  nvflare job list --startup-kit "$(./flowerbed kit)"     FLARE's command line
  ProdEnv(startup_kit_location="...")                     FLARE's Python API
The kits of `provision` dial the server by a name that only containers and sites know. This one dials
localhost and the published port. It is in workspace/PROJECT/here/NAME, and links to the kit in use, so the
key is not copied. Make it again after the next `provision`, or with another FLOWERBED_PORT.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from provisioning.names import service_name
from scripts import compose, console, core, engine, provision
from scripts.json_object import JsonObject
from scripts.options import As

FOLDER = "here"
"""A folder below workspace/PROJECT, beside the prod_NN."""

CONFIG = "startup/fed_admin.json"
"""The file that names the server."""

ANY_TAG = "none"
"""A value for the images' tag: a kit needs none."""

EVERYWHERE = ("0.0.0.0", "127.0.0.1", "::", "::1")
"""Published addresses that localhost reaches."""


JSON = JsonObject(
    {
        "kit": "the folder",
        "user": "the FLARE identity",
        "host": "the host that the kit dials",
        "port": "the port that it dials",
    }
)


def run(identity: As = None) -> dict[str, Any]:
    """Make the kit again. The files in its `transfer` stay."""
    made = make(console.service(identity))
    if not core.as_json:
        print(made["kit"])
    return made


def make(service: str) -> dict[str, Any]:
    """Make the kit of a person, by the name of the console. Returns its folder and where it dials."""
    services = compose.config(tag=ANY_TAG)["services"]
    source = compose.kit(services[service])
    if source is None or not (source / CONFIG).is_file():
        raise core.Failure(f"{source} has no admin's kit: run ./flowerbed provision.")
    content = json.loads((source / CONFIG).read_text())
    admin = content["admin"]
    admin |= _published(services[_server()]["ports"])
    kit = source.parents[1] / FOLDER / service
    for folder in ("startup", "local"):
        shutil.rmtree(kit / folder, ignore_errors=True)
        (kit / folder).mkdir(parents=True)
        for file in (source / folder).iterdir():
            # Relative, so that the checkout can be moved.
            (kit / folder / file.name).symlink_to(os.path.relpath(file, kit / folder))
    kit.chmod(0o700)
    (kit / CONFIG).unlink()
    (kit / CONFIG).write_text(json.dumps(content, indent=2) + "\n")
    name = kit.relative_to(core.ROOT).as_posix()
    return {"kit": name, "user": admin["username"], "host": admin["host"], "port": admin["port"]}


def _server() -> str:
    participants = provision.load(provision.DEFAULT_PROJECT)["participants"]
    return next(service_name(item["name"]) for item in participants if item["type"] == "server")


def _published(ports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the server's address from here. For an engine elsewhere, keep the kits' name for the server."""
    address, port = ports[0].get("host_ip") or EVERYWHERE[0], int(ports[0]["published"])
    if engine.is_remote():
        return {"port": port}
    return {"host": "localhost" if address in EVERYWHERE else address, "port": port}
