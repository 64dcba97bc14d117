"""Write join files: one shell script with which a site on another machine takes part.

A join file is text that a person can read. `join/join.sh` and `join/runtime.sh` act. Before them are the
names of this site, and behind them the site's files. `bridge/common/join_file.py` signs all of it.
"""

from __future__ import annotations

import datetime
import io
import json
import secrets
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from bridge.common import join_file, locked, offers, trust
from bridge.common.meta import JOINS_FILE
from provisioning import ca_key, places, renewal, renewed, state

FOLDER = Path(__file__).parent / "join"
"""The shell scripts, and the template of a site's own settings."""

SHARED = {
    "site": ("container.yaml", "site.yaml", "gate.yaml", "keeper.yaml"),
    "relay": ("container.yaml", "relay.yaml", "keeper.yaml"),
    "console": ("container.yaml", "console.yaml"),
}
"""The files of `compose/` that a participant's Compose file extends, by its role."""

WHOSE = {"site": "the site", "relay": "the relay", "console": "the console"}
STARTS = {
    "site": "It starts the site with its gate, and waits until the server has registered it.",
    "relay": "It starts the relay, and waits until it answers on its port, which other machines may dial.",
    "console": "It starts the console, which opens no port. ./site console opens FLARE's console in it.",
}
"""What a join file does at the end, by role."""

AFTERWARDS = {
    "site": """\
#
# From then on, apps of the federation run here, new ones at any time. They run in a container, and read the
# folder `data`. The container's only way out is the gate, a second one, which leads to that address only.
# The server gets the apps' results and logs, and each 20 s a report on disk, GPUs, data and more.
# To allow less: sh {site}.join --prepare, then edit ./{site}/site.yml, then ./{site}/site start
""",
    "relay": "",
    "console": "",
}
"""What a machine lets in from then on, by role."""

LINES = "Lines of the script."
"""Where the head names the lines of the script."""

UNUSED = tuple(
    f"kit/{name}" for name in ("startup/start.sh", "startup/stop_fl.sh", "local/privacy.json.sample")
)
"""Files of FLARE's kits that no container uses. A site's administrator need not read them."""

OF_ALL = ("# The settings", "# After", "# hosts", "# connect_through", "# env_file", "# cpus", "# memory")
"""The lines of `site.yml` that relays and consoles have too."""

KEY = "kit/startup/client.key"
"""The site's key, which a site may make itself."""

FORMAT = "{{json .RootFS.Layers}} {{json .Config.Entrypoint}} {{json .Config.Env}} {{json .Config.User}}"
"""The format of `docker image inspect` for what is in an image. Its ID differs between Docker's two image
stores: in the older one it is the hash of the configuration, in containerd's that of the manifest."""

MARK = "---- end of the file ----"
"""The line after each file in a join file."""


@dataclass(frozen=True)
class Invitation:
    """What a join file is for.

    Attributes:
        site: the participant's name in Compose.
        role: `site`, `relay` or `console`.
        project: the federation's name.
        server: host and port that the site dials.
        runtime: the ID of the runtime image.
        content: what is in that image, as `docker image inspect --format FORMAT` prints it.
        runtime_from: a name with a digest by which the site can pull it, or nothing.
        last_day: the last day on which the file can be used.
        id: what tells this file from all others.
        kit: a hash of the kit.
        runtime_sum: the SHA-256 of the image's archive, if there is one.
        runtime_bytes: its size.
        can_fetch: whether the site could fetch it from the server.
        offered: whether the server gives it to the site.
    """

    site: str
    role: str
    project: str
    server: str
    runtime: str
    content: str
    runtime_from: str
    last_day: datetime.date
    id: str
    kit: str
    org: str = ""
    own_key: bool = False
    runtime_sum: str = ""
    runtime_bytes: int = 0
    can_fetch: bool = False
    offered: bool = False


def new_id() -> str:
    """Return an id for a join file, which nobody can guess."""
    return secrets.token_hex(16)


def render(
    invitation: Invitation, kit: bytes, compose: str, authority: Path, passphrase: bytes | None = None
) -> str:
    """Return the text of a join file.

    Args:
        kit: a tar archive with the site's folders `kit` and `renewed`.
        compose: the site's Compose file.
        authority: the folder with the CA's file.
        passphrase: locks the site's key in the file.

    Raises:
        NoKey: the CA's key is elsewhere, and cannot be read.
    """
    known = state.read(authority)
    ca, key = x509.load_pem_x509_certificate(known["root_cert"].encode()), ca_key.load(known)
    files = _files(invitation, kit, compose)
    if statement := known.get(renewal.TRUST):
        # With it, a site that has heard of this change of the CAs already goes on with the next one.
        files[f"{renewed.FOLDER}/{trust.FILE}"] = statement
    if passphrase:
        files[KEY] = locked.lock(files[KEY].encode(), passphrase)
    names = {
        "SITE": invitation.site,
        "ROLE": invitation.role,
        "ORG": invitation.org,
        "OWN_KEY": "1" if invitation.own_key else "",
        "LOCKED": "1" if passphrase else "",
        "PROJECT": invitation.project,
        "SERVER": invitation.server,
        "RUNTIME": invitation.runtime,
        "RUNTIME_CONTENT": invitation.content,
        "RUNTIME_FORMAT": FORMAT,
        "RUNTIME_NAME": offers.image_name(invitation.runtime),
        "RUNTIME_FROM": invitation.runtime_from,
        "RUNTIME_SUM": invitation.runtime_sum,
        "RUNTIME_BYTES": str(invitation.runtime_bytes),
        "RUNTIME_CAN_FETCH": "1" if invitation.can_fetch else "",
        "RUNTIME_OFFERED": "1" if invitation.offered else "",
        "LAST_DAY": invitation.last_day.isoformat(),
        "JOIN": invitation.id,
        "MADE": str(int(time.time())),
        "KIT": invitation.kit,
    }
    parts = ((FOLDER / f"{name}.sh").read_text().split("\n", 1)[1] for name in ("join", "runtime"))
    acting = "".join([*(f"{name}='{value}'\n" for name, value in names.items()), *parts])
    body = [
        _head(invitation, join_file.fingerprint(ca), acting.count("\n"), is_locked=passphrase is not None),
        acting,
        "# The site's files.\nfiles() {\n",
        *_documents(files),
        '}\n\nmain "$@"\nexit\n',
    ]
    return join_file.seal("".join(body), ca, key)


def _head(invitation: Invitation, fingerprint: str, acting: int, *, is_locked: bool) -> str:
    """Return what a person reads first.

    Args:
        acting: the number of the lines that act, which come next.
    """
    site = invitation.site
    holds = f"IT HOLDS THE PRIVATE KEY OF {site}. Give it to nobody else, and delete it once it has joined."
    last = STARTS[invitation.role]
    if is_locked:
        holds = f"It holds the private key of {site}, locked. You get the passphrase in another way."
    if invitation.own_key:
        holds = f"It holds no key. This machine makes the key of {site}, which never leaves it."
        last = "It makes the key, and prints a request. With the answer, ./site join starts the site."
    text = f"""\
#!/bin/sh
# Join file of {WHOSE[invitation.role]} {site} for the Flowerbed federation '{invitation.project}'.
#
# {holds}
#
# Use it until {invitation.last_day} (UTC), on one machine:   sh {site}.join
#
# Before you run it, ask the federation's administrator for two things, by another way than this file came.
# Compare both. For the first, you need not trust this file:
#   the output of:   sha256sum {site}.join
#   the fingerprint (SHA-256) of the federation's CA:
#   {fingerprint}
#
# What it does, in this order:
#   1. It checks its date and its checksum, and that Docker with Compose is here.
#   2. It looks for the runtime image {invitation.runtime[:19]}, and gets it if it is not here.
#   3. In a container without a network, that image checks the signature at the end of this file.
#   4. It makes the folder ./{site} with the files that you see below.
#   5. It checks this machine and the way to {invitation.server}, and stops if a check fails.
#   6. {last}
# It connects to {invitation.server}. It changes only that folder and Docker.
# To remove everything: ./{site}/site leave
# More about it: docs/how-to/site-elsewhere.md in Flowerbed's documentation.
{AFTERWARDS[invitation.role].format(site=site)}#
# {LINES} The files of ./{site} follow them, as text.
# The line main "$@" at the end starts the script.
"""
    first = text.count("\n") + 1
    return text.replace(LINES, f"Lines {first} to {first + acting - 1} are the script.")


def _files(invitation: Invitation, kit: bytes, compose: str) -> dict[str, str]:
    """Return the files of a site's folder. The name of a link ends with ` -> ` and where it leads."""
    files = {
        "compose.yaml": compose,
        "site": (FOLDER / "site.sh").read_text(),
        "site.yml": _template(invitation),
    }
    for name in SHARED[invitation.role]:
        files[f"compose/{name}"] = (places.TEMPLATE / "compose" / name).read_text()
    with tarfile.open(fileobj=io.BytesIO(kit)) as archive:
        for member in archive:
            if member.name in UNUSED:
                continue
            if member.issym():
                files[f"{member.name} -> {member.linkname}"] = ""
            elif content := archive.extractfile(member) if member.isfile() else None:
                files[member.name] = content.read().decode()
    if invitation.own_key:
        files[f"{KEY.replace('.key', '.crt')} -> /renewed/client.crt"] = ""
    return files


def _template(invitation: Invitation) -> str:
    """Return the file for the machine's own settings, all comments."""
    text = (FOLDER / "site.yml").read_text().format(name=invitation.site)
    if invitation.role == "site":
        return text
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith(OF_ALL) or ": " not in line)


def _documents(files: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of shell that write files below the folder `$1`."""
    for name, content in files.items():
        path, link, target = name.partition(" -> ")
        if link:
            yield f'mkdir -p "$(dirname "$1/{path}")"\nln -sf {target} "$1/{path}"\n'
            continue
        if MARK in content.splitlines():
            raise ValueError(f"{path} has the line {MARK!r}, which ends each file of a join file")
        end = "" if content.endswith("\n") or not content else "\n"
        yield f"put \"$1/{path}\" <<'{MARK}'\n{content}{end}{MARK}\n"


def record(policy: Path, site: str, id: str, last_day: datetime.date) -> None:
    """Tell the server of a join file, in a file that it reads while it runs.

    Args:
        policy: the folder that the server mounts.
    """
    file = policy / JOINS_FILE
    known: dict[str, list[dict[str, Any]]] = {}
    if file.exists():
        known = json.loads(file.read_text())
    now = datetime.datetime.now(datetime.UTC)
    # The server remembers the files that were used.
    kept = [item for item in known.get(site, []) if item["last_day"] >= now.date().isoformat()]
    kept.append({"id": id, "made": now.isoformat(timespec="microseconds"), "last_day": last_day.isoformat()})
    policy.mkdir(exist_ok=True)
    state.write_whole(file, (json.dumps({**known, site: kept}, indent=2) + "\n").encode(), 0o644)
