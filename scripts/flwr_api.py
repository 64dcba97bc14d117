"""Serve Flower's command line from a startup kit, in one container on this machine.

  ./flowerbed flwr-api --write                     with your kit of this federation
  ./flowerbed flwr-api --kit FOLDER --write        with any kit of a person, of any federation
  ./flowerbed flwr-api --stop
`./flowerbed up` does the same for the people of this machine's federation. This verb is for a machine where
only the kit is. It needs the runtime image, and reaches the server by the name that the kit dials.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from provisioning import dotenv, places
from provisioning.names import service_name
from scripts import console, core, engine, engine_view, flwr_config, flwr_home, kit, up
from scripts.core import Failure, UsageError, say
from scripts.json_object import JsonObject, Keys
from scripts.options import As

PORT = 9093
"""Flower's own port for its Control API."""

CONTAINER: Keys = {"container": "the container's name"}

JSON = JsonObject(
    {**CONTAINER, **flwr_config.CONNECTION},
    {"With `--write`": {**CONTAINER, **flwr_config.WRITTEN}, "With `--stop`": CONTAINER},
)

LISTENS_WITHIN = 30.0
"""Seconds until it listens. It usually takes 1."""

LOOPBACK = "127.0.0.1"

STATE = ".flwr-api"
"""The folder beside a kit's `startup` with its tokens and certificate."""

LIMITS = ("--memory=1g", "--memory-swap=1g", "--pids-limit=4096", "--cap-drop=ALL", "--read-only", "--init")
CLOSED = ("--security-opt=no-new-privileges:true", "--network=host", "--restart=unless-stopped")


def run(
    folder: Annotated[
        Path | None,
        typer.Option("--kit", metavar="FOLDER", help="A person's startup kit (default: as `kit` makes it)."),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where it listens. Others reach it only if you say so.")
    ] = LOOPBACK,
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="The port.")] = PORT,
    write: Annotated[
        bool, typer.Option("--write", help="Write the connection into Flower's configuration, and log in.")
    ] = False,
    name: Annotated[str, typer.Option(metavar="NAME", help="The connection's name.")] = "flowerbed",
    stop: Annotated[bool, typer.Option("--stop", help="End it.")] = False,
    identity: As = None,
) -> dict[str, Any]:
    """Start the container, or end it."""
    if folder is not None and identity is not None:
        raise UsageError("Expected one of --kit and --as.")
    if not flwr_home.NAME.fullmatch(name):
        raise UsageError(f"--name {name}: expected letters, digits, - and _.")
    found = (
        core.ROOT / str(kit.make(console.service(identity))["kit"])
        if folder is None
        else folder.expanduser().resolve()
    )
    admin = _admin(found)
    container = f"{admin['project_name']}-flwr-api-{service_name(str(admin['username']))}"
    if stop:
        core.must(core.run([engine.docker(), "rm", "--force", container]), "Ending it")
        say(f"Ended {container}. Its logins stay valid for the next start.")
        return {"container": container}
    if not up.is_free(host, port):
        raise Failure(f"Port {port} on {host} is taken by another program. Choose another: --port N.")
    _start(container, found, host, port)
    outcome = flwr_config.connect(container, name, f"{host}:{port}", found, write=write)
    say(f"{container} serves Flower's command line on {host}:{port} as {admin['username']}.")
    return {"container": container, **outcome}


def _admin(folder: Path) -> dict[str, Any]:
    """What a person's kit says of itself."""
    try:
        return dict(json.loads((folder / kit.CONFIG).read_text())["admin"])
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{folder} has no startup kit of a person: expected {kit.CONFIG} in it: {error}. "
            "./flowerbed kit makes one."
        ) from None


def _start(container: str, folder: Path, host: str, port: int) -> None:
    engine_view.check_host_network("flwr-api")
    state = folder / STATE
    state.mkdir(mode=0o700, exist_ok=True)
    # Root of a rootless engine's container is the user.
    user, group = (0, 0) if engine_view.is_rootless() else (os.getuid(), os.getgid())
    # Podman does not know these options, and a new tmpfs is root's without them.
    owner = f",uid={user},gid={group}" if user or group else ""
    more = () if host == LOOPBACK else (f"--env=FLOWERBED_FLWR_HOSTS={host},{socket.gethostname()}",)
    words = [
        *("run", "--detach", f"--name={container}", f"--user={user}:{group}", *LIMITS, *CLOSED),
        *("--tmpfs=/tmp:size=256m,mode=1777", f"--tmpfs=/workspace:size=1g,mode=0700{owner}"),
        *(f"--tmpfs=/kit/transfer:size=1m,mode=0700{owner}", f"--volume={state}:/workspace/control-api"),
        *_mounts(folder),
        *("--env=TMPDIR=/workspace/tmp", f"--env=FLOWERBED_FLWR_LISTEN={host} {port}", *more),
        *(_image(), "console"),
    ]
    core.run([engine.docker(), "rm", "--force", container])
    core.must(core.run([engine.docker(), *words]), f"Starting {container}")
    deadline = time.monotonic() + LISTENS_WITHIN
    while up.is_free(host, port):
        if time.monotonic() > deadline:
            log = core.run([engine.docker(), "logs", "--tail", "15", container])
            core.run([engine.docker(), "rm", "--force", container])
            core.fail(f"Starting {container}", (log.stdout + log.stderr).decode(errors="replace"))
        time.sleep(0.1)


def _mounts(folder: Path) -> Iterator[str]:
    """Each file alone: a kit for this machine consists of links, and no other kit must be visible."""
    for part in ("startup", "local"):
        for file in sorted((folder / part).iterdir()):
            if file.is_file():
                yield f"--volume={file.resolve()}:/kit/{part}/{file.name}:ro"


def _image() -> str:
    env = dotenv.read(core.ROOT / ".env") if places.IS_THERE else {}
    image = f"{env.get('COMPOSE_PROJECT_NAME', 'flowerbed')}-runtime:{env.get('FLOWERBED_TAG', 'dev')}"
    if not engine.has(image):
        raise Failure(f"There is no image {image}: run ./flowerbed build, or load it (docker load).")
    return image
