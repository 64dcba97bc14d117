"""Add a site on another machine, and write the one file with which it joins. Or a relay, or a person.

It adds the site to project.yml unless it is there, makes its kit, and writes NAME.join. Nothing else
changes: no other kit, no container, no running job. At the site, `sh NAME.join` checks the machine, starts
the site and waits until the server has registered it. The file holds the site's private key.

With --own-key the site makes its key itself. The file then holds none, and prints a request there, which
`site approve` answers. Or lock the key in the file with a passphrase, which goes to the site another way.

Run it again for a fresh file with the same key: for another machine, after the last day, or to bring what is
new to a site that has joined (`./site update NAME.join` there).

  ./flowerbed site add hospital-c --org hospital
  ./flowerbed site add hospital-c --own-key
  ./flowerbed site add hospital-c --passphrase-file words.txt
  ./flowerbed site add hospital-c --no-from-server       if the machine has the runtime image already
  ./flowerbed site add hospital-c --with-images /media/stick
  ./flowerbed site add hospital-c --set sandbox=required --set "node_config={ward: 3}"
  ./flowerbed site add relay-1 --relay 8003 --address relay.example.org
  ./flowerbed site add researcher@hospital.example --role lead
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from bridge.common import join_file, server_address
from bridge.common.site_settings import TABLE
from provisioning import ca_key, dotenv, join, renewed, state
from provisioning.compose import ALONE
from provisioning.keys import ELSEWHERE, OURS, OWN_KEY, ROLES
from provisioning.names import service_name
from scripts import (
    core,
    engine,
    images,
    kit_layer,
    passphrases,
    provision,
    published,
    settings,
)
from scripts.json_object import JsonObject
from scripts.site import carry, project_file
from scripts.site.options import (
    Address,
    ConnectTo,
    Days,
    FromServer,
    Org,
    Output,
    OwnKey,
    Passphrase,
    PassphraseFile,
    Relay,
    Role,
    Set,
    WithImages,
)

DAYS = 14
"""Days for which a join file can be used, unless `--days` says otherwise."""

ROLE_OF = {"fed_client.json": "site", "fed_relay.json": "relay", "fed_admin.json": "console"}
"""The role of a kit by its file."""

BEGIN = "#!/bin/sh\n# Join file of "

REGISTRY = re.compile(r"(localhost|[^/]*[.:][^/]*)/.+@sha256:[0-9a-f]{64}")
"""The name of an image with its digest in a registry."""

JSON = JsonObject(
    {
        "site": "the site's name",
        "file": "the join file",
        "bytes": "its size",
        "sha256": "its SHA-256, which the site compares before it runs the file",
        "id": "its id, which the server knows",
        "last_day": "the last day on which it can be used",
        "key": "who has the private key: the `file`, the file but `locked`, or only the `site`",
        "fingerprint": "the SHA-256 fingerprint of the federation's CA",
        "server": "host and port that the site dials",
        "runtime": "the ID of the runtime image",
        "runtime_by": "how the site gets it: by a `registry`, the `server` or a `folder`. Null if not at all",
        "added": "true if the site was not in project.yml",
    }
)


def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The site's name.")],
    org: Org = None,
    given: Set = None,
    connect_to: ConnectTo = None,
    role: Role = None,
    relay: Relay = None,
    address: Address = None,
    own_key: OwnKey = False,
    passphrase: Passphrase = False,
    passphrase_file: PassphraseFile = None,
    days: Days = DAYS,
    output: Output = None,
    with_images: WithImages = None,
    from_server: FromServer = None,
) -> dict[str, Any]:
    """Add the site and write its join file.

    Raises:
        core.UsageError: an argument or project.yml is wrong. Nothing was written.
        core.Failure: there is no runtime image, or the kit could not be made.
    """
    file = _free(output or Path(f"{name}.join"))
    asked = {"org": org, **_settings(given or []), "connect_to": connect_to, "role": role}
    asked[OWN_KEY] = own_key or None
    if relay or address:
        asked["listening_host"] = _listening(relay, address)
    project = provision.load(provision.DEFAULT_PROJECT)
    known = next((item for item in project["participants"] if item["name"] == name), None)
    entry = _entry(name, {key: value for key, value in asked.items() if value is not None}, project, known)
    _check_address(entry, project)
    locked = passphrase or passphrase_file is not None
    carry.check(with_images, bool(from_server), entry, project, locked=locked)
    runtime = _runtime(str(project["name"]))
    can_fetch = carry.can_fetch(entry, project, locked=locked)
    if from_server is None:
        # A site's own image comes by itself where that works, and no registry or stick has it.
        from_server = can_fetch and entry["type"] == "client" and not (with_images or runtime.pulled)
    words = _passphrase(entry, passphrase_file) if locked else None
    _provision(entry, is_new=known is None)
    image = carry.archive(runtime.id) if with_images or from_server else carry.made(runtime.id)
    runtime = replace(
        runtime, archive=image, can_fetch=can_fetch, offered=from_server, on_stick=with_images is not None
    )
    made = _invite(entry, str(project["name"]), runtime, days, file, words)
    if with_images and image:
        carry.fill(with_images, image, file)
    return made | {"added": known is None}


def _listening(port: int | None, address: str | None) -> dict[str, Any]:
    """Return where a relay listens."""
    if not port or not address:
        raise core.UsageError("expected --relay PORT and --address HOST together.")
    return {"port": port, "default_host": address}


def _provision(entry: Mapping[str, Any], *, is_new: bool) -> None:
    """Make the site's kit. Where that fails, project.yml stays as it was."""
    before = provision.DEFAULT_PROJECT.read_text()
    if is_new:
        write(project_file.with_participant(before, entry))
    try:
        with core.led():
            provision.run()
    except core.Failure:
        if is_new:
            provision.DEFAULT_PROJECT.write_text(before)
        raise


def _passphrase(entry: Mapping[str, Any], file: Path | None) -> bytes:
    """Return the passphrase that locks the key in the join file."""
    if entry.get(OWN_KEY):
        raise core.UsageError(f"{entry['name']} makes its own key, so its join file holds none to lock.")
    if entry["type"] == "relay":
        raise core.UsageError(f"{entry['name']} is a relay, with two keys. A passphrase locks one only.")
    return passphrases.new(file)


def _settings(given: Sequence[str]) -> dict[str, Any]:
    """Return the keys of `--set`."""
    found = {}
    allowed = sorted({*OURS, *TABLE} - {ELSEWHERE})
    for words in given:
        key, equals, text = words.partition("=")
        if not equals or key not in allowed:
            raise core.UsageError(
                f"--set: expected KEY=VALUE with one of {', '.join(allowed)}, found '{words}'."
            )
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise core.UsageError(f"--set {key}: expected a value in YAML, found '{text}'.") from None
    return found


def _entry(
    name: str, asked: Mapping[str, Any], project: Mapping[str, Any], known: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the site's item of project.yml."""
    if known is None:
        server = next(item for item in project["participants"] if item["type"] == "server")
        kind = "admin" if "@" in name else "relay" if "listening_host" in asked else "client"
        if kind == "admin" and "role" not in asked:
            raise core.UsageError(f"{name} is a person: expected --role with one of {', '.join(ROLES)}.")
        first = {"name": name, "type": kind, "org": asked.get("org", server["org"]), ELSEWHERE: True}
        return first | {key: value for key, value in asked.items() if key != "org"}
    if not known.get(ELSEWHERE):
        raise core.UsageError(
            f"{name} runs on this machine, by project.yml. For a site on another machine, write "
            f"{ELSEWHERE}: true into its part there, or choose another name."
        )
    if changed := [key for key, value in asked.items() if known.get(key) != value]:
        raise core.UsageError(
            f"{name} is in project.yml with another {', '.join(changed)}. Edit it there, and leave the "
            "options out."
        )
    return dict(known)


def _check_address(entry: Mapping[str, Any], project: Mapping[str, Any]) -> None:
    """Check that the kit will name an address that another machine can dial."""
    if isinstance(target := entry.get("connect_to"), Mapping) and target.get("host"):
        return
    name = project_file.relay_of(entry)
    others = {item["name"]: item for item in project["participants"]}
    server = next(item for item in project["participants"] if item["type"] == "server")
    if name and name not in others:
        raise core.UsageError(
            f"--connect-to: expected a relay of project.yml, found none of the name {name}."
        )
    dialled = others[name] if name else server
    where = dialled.get("listening_host") or {} if dialled["type"] == "relay" else dialled
    if not where.get("default_host"):
        kind, name = dialled["type"], dialled["name"]
        raise core.UsageError(
            f"{entry['name']} could not find the {kind}{'' if kind == name else f' {name}'}: project.yml has "
            f"no address of it for other machines. Write default_host: NAME into the part of {name}, with a "
            "name that leads to its machine. It goes into every kit: ./flowerbed provision, build, up. If "
            "there is only an address, write the site into project.yml: docs/how-to/site-elsewhere.md"
        )


def _runtime(project: str) -> carry.Runtime:
    if taken := published.name():
        name = taken
    else:
        name = images.runtime(project, dotenv.read(core.ROOT / ".env").get("FLOWERBED_TAG", "dev"))
    image = engine.image(name)
    if image is None:
        raise core.Failure(f"There is no runtime image {name} yet, which the site runs: ./flowerbed build")
    pushed = (
        [taken]
        if taken
        else [digest for digest in image.get("RepoDigests") or () if REGISTRY.fullmatch(digest)]
    )
    shown = core.run([engine.docker(), "image", "inspect", "--format", join.FORMAT, name])
    content = core.must(shown, f"Looking at {name}").decode().strip()
    if "'" in content:
        raise core.Failure(f"{name} has a quotation mark in its settings: expected none. {content}")
    return carry.Runtime(str(image["Id"]), content, next(iter(pushed), ""))


def _free(file: Path) -> Path:
    """Return the path of the join file. Refuse to write over a file that is none."""
    if file.is_dir() or not file.parent.is_dir():
        raise core.UsageError(f"--output: expected a file's path, found {file}.")
    if file.exists() and not file.read_bytes().startswith(BEGIN.encode()):
        raise core.UsageError(f"{file} exists and is not a join file. Name another: --output FILE")
    return file


def write(text: str) -> None:
    """Replace project.yml, if the new one is right."""
    draft = provision.DEFAULT_PROJECT.with_name(".project.yml.new")
    draft.write_text(text)
    try:
        provision.load(draft)
        draft.chmod(provision.DEFAULT_PROJECT.stat().st_mode)
        provision.DEFAULT_PROJECT.write_text(text)
    except core.UsageError as error:
        raise core.UsageError(str(error).replace(str(draft), "project.yml would be wrong. It")) from None
    finally:
        draft.unlink()


def _invite(
    entry: Mapping[str, Any],
    project: str,
    runtime: carry.Runtime,
    days: int,
    file: Path,
    passphrase: bytes | None,
) -> dict[str, Any]:
    """Write the join file, tell the server of it, and tell the user what to do with it."""
    name, has_own_key = str(entry["name"]), bool(entry.get(OWN_KEY))
    prod = (core.ROOT / dotenv.read(core.ROOT / ".env")["FLOWERBED_COMPOSE"]).parent
    workspace = prod.parent
    kit = prod / name
    last = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=days)
    invitation = join.Invitation(
        site=service_name(name),
        role=next(role for config, role in ROLE_OF.items() if (kit / "startup" / config).exists()),
        project=project,
        server=_dialled(kit),
        runtime=runtime.id,
        content=runtime.content,
        runtime_from=runtime.pulled,
        last_day=last,
        id=join.new_id(),
        kit=kit_layer.mark(kit),
        org=str(entry["org"]),
        own_key=has_own_key,
        runtime_sum=runtime.archive.sha256 if runtime.archive else "",
        runtime_bytes=runtime.archive.bytes if runtime.archive else 0,
        can_fetch=runtime.can_fetch,
        offered=runtime.offered,
    )
    compose = (prod / ALONE.format(name=service_name(name))).read_text()
    packed = kit_layer.pack(kit, workspace / renewed.FOLDER / name)
    try:
        text = join.render(invitation, packed, compose, workspace / "state", passphrase)
    except ca_key.NoKey as error:
        raise core.Failure(str(error)) from None
    if invitation.role == "site":
        # Relays and consoles do not tell by which file they have come.
        join.record(workspace / "policy", name, invitation.id, last)
    state.write_whole(file, text.encode(), 0o600)
    _give(file)
    key = "site" if has_own_key else "locked" if passphrase else "file"
    made = {
        "site": name,
        "file": str(file),
        "bytes": len(text.encode()),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "id": invitation.id,
        "last_day": last.isoformat(),
        "key": key,
        "fingerprint": join_file.check(text),
        "server": invitation.server,
        "runtime": runtime.id,
        "runtime_by": runtime.way,
    }
    _tell(made, can_fetch=runtime.can_fetch)
    return made


def _tell(made: Mapping[str, Any], *, can_fetch: bool) -> None:
    """Tell the user what to do with a join file.

    Args:
        can_fetch: whether the participant could fetch the image from the server.
    """
    name, last, file = made["site"], made["last_day"], Path(made["file"])
    holds = {
        "file": f"has the private key of {name}. Give it to that site only.",
        "locked": f"has the key of {name}, locked. Tell the passphrase in another way.",
        "site": f"has no key. {name} makes its own.",
    }
    core.say(f"{file} ({core.in_words(made['bytes'])}) {holds[made['key']]}")
    core.say(f"  There, until {last}:  sh {file.name}")
    if made["key"] == "site":
        core.say("  To answer the request that it prints:  ./flowerbed site approve FILE")
    core.say(
        "  Tell these two in another way than you send the file. The site compares them before it runs it:"
    )
    core.say(f"  sha256sum {file.name}   {made['sha256']}")
    core.say(f"  fingerprint of the CA\n  {made['fingerprint']}")
    if made["runtime_by"] is None:
        core.say(
            "  The file brings no runtime image. If the machine lacks it, run this again with "
            f"{'--from-server or ' if can_fetch else ''}--with-images FOLDER."
        )
    address = settings.read(settings.BIND)
    if address in ("127.0.0.1", "localhost", "[::1]"):
        core.say(
            f"  The server's port is published on {address}, for this machine only. To let sites in: write "
            f"{settings.BIND}=0.0.0.0 into .env, then ./flowerbed up"
        )


def _dialled(kit: Path) -> str:
    """Return host and port that a kit dials."""
    found = server_address.of_kit(kit)
    assert found is not None  # Each kit has one.
    return str(found)


def _give(file: Path) -> None:
    """Give a file that was made as root to the owner of the federation's folder."""
    owner = core.ROOT.stat()
    if os.geteuid() == 0 and owner.st_uid:
        os.chown(file, owner.st_uid, owner.st_gid)
