"""Connect Flower's own command line (flwr 1.40 or newer) to the federation. Prints the connection.

  ./flowerbed flwr-config --write                write it into Flower's configuration, and log in
  flwr run my-app flowerbed --stream             then this works
  ./flowerbed flwr-config --approve BCDF-GHJK    let in another machine that ran `flwr login`
  ./flowerbed flwr-config --revoke               end all logins
The connection acts under your FLARE identity. Flower's configuration is in ~/.flwr, or in FLWR_HOME.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from scripts import compose, console, core, engine, flwr_home, up
from scripts.core import Failure, UsageError, say
from scripts.json_object import JsonObject, Keys
from scripts.options import As

PROGRAM = ("python", "-I", "-S", "/opt/flowerbed/bridge/flare/control_api/access.py")
"""Gives out tokens, in a console's container."""

WITHIN = 30.0
"""Seconds for its answer."""

HERE = "here"
"""Below workspace/PROJECT: what is made for tools on this machine."""

CONNECTION: Keys = {
    "name": "the connection's name",
    "address": "the address that it dials",
    "user": "the FLARE identity",
    "root_certificates": "the file with the CA of the connection",
}

WRITTEN: Keys = {
    "name": "the connection's name",
    "address": "the address that it dials",
    "user": "the FLARE identity",
    "config": "Flower's configuration file",
    "credentials": "the file with the token",
}

JSON = JsonObject(
    CONNECTION,
    {
        "With `--write`": WRITTEN,
        "With `--approve`": {"approved": "the code"},
        "With `--revoke`": {"revoked": "the number of logins that it ended"},
    },
)

ANYWHERE = ("0.0.0.0", "127.0.0.1", "::", "::1")


def run(
    write: Annotated[
        bool,
        typer.Option("--write", help="Write the connection into Flower's configuration, and log in."),
    ] = False,
    name: Annotated[str, typer.Option(metavar="NAME", help="The connection's name.")] = "flowerbed",
    approve: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="Let in the machine whose `flwr login` shows this code."),
    ] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="End all logins of this identity.")] = False,
    identity: As = None,
) -> dict[str, Any]:
    """Print or write the connection, or decide who is let in."""
    if write + revoke + (approve is not None) > 1:
        raise UsageError("Expected one of --write, --approve and --revoke.")
    if not flwr_home.NAME.fullmatch(name):
        raise UsageError(f"--name {name}: expected letters, digits, - and _.")
    service = console.service(identity)
    if not compose.is_provisioned():
        raise Failure(compose.PROVISION)
    container = compose.container(service)
    if approve is not None:
        _ask(container, do="approve", code=approve)
        say(f"Approved: the machine that shows {approve} may act as {console.acting_as['name']}.")
        return {"approved": approve}
    if revoke:
        count = int(_ask(container, do="revoke")["revoked"])
        said = f"Ended {count} login{'' if count == 1 else 's'}"
        say(f"{said}. To log in again: ./flowerbed flwr-config --write")
        return {"revoked": count}
    here = core.ROOT / "workspace" / compose.project() / HERE
    return connect(container, name, _address(service), here, write=write)


def connect(container: str, name: str, address: str, here: Path, *, write: bool) -> dict[str, Any]:
    """Print or write a connection.

    Args:
        container: who gives out tokens.
        here: the folder for the certificate of a connection that is only printed.
    """
    given = _ask(container, do="token" if write else "connection")
    ca = str(given["ca"])
    outcome = {"name": name, "address": address, "user": given["user"]}
    if write:
        file = flwr_home.write_connection(name, address, ca)
        credentials = flwr_home.write_token(address, str(given["token"]))
        say(f"Wrote the connection {name} to {file}, and its token to {credentials}.")
        say(f"  Next: flwr run APP {name} --stream")
        return {**outcome, "config": str(file), "credentials": str(credentials)}
    here.mkdir(parents=True, exist_ok=True)
    certificates = here / f"{container}.pem"
    certificates.write_text(ca)
    say(f"  For {flwr_home.folder() / flwr_home.CONFIG}. Then log in: flwr login {name}")
    if not core.as_json:
        print(flwr_home.table(name, address, certificates), end="", flush=True)
    return {**outcome, "root_certificates": str(certificates)}


def _address(service: str) -> str:
    """Where Flower's command line reaches the console from this machine."""
    found = up.flwr_ports(compose.config(tag="none"))
    if service not in found:
        raise Failure(
            f"The console {service} has no port for flwr yet. Run ./flowerbed provision, build and up."
        )
    host, number = found[service]
    if engine.is_remote():
        say("  The engine is on another machine: put its name in place of 127.0.0.1.")
    return f"{'127.0.0.1' if host in ANYWHERE else host}:{number}"


def _ask(container: str, **request: str) -> dict[str, Any]:
    """Ask the program in a container that gives out tokens.

    Raises:
        Failure, UsageError: with what it said.
    """
    words = [engine.docker(), "exec", container, *PROGRAM, json.dumps(request)]
    process = core.run(words, timeout=WITHIN)
    if process.returncode:
        service = container.removeprefix(f"{compose.project()}-").removesuffix("-1")
        raise console.failure(service, process.returncode, process.stderr)
    return dict(json.loads(process.stdout))
