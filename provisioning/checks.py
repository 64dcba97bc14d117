"""Check project.yml for what containers need beyond FLARE's own rules, and report every error at once.

FLARE would take some of these files (no admin, a site called `Site_3`) and fail late or not at all. For
others its message names a regular expression. `flowerbed provision` applies these rules to the file. Under a
bare `nvflare provision`, the builders apply them to the project that FLARE made of it.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.common import site_settings
from bridge.common.project_key import ADMIN, RELAY, SERVER, SITE
from bridge.common.site_service import DOCTOR, GATE, KEEPER
from bridge.common.site_settings import CONNECT_THROUGH, kind_of, size
from provisioning.keys import (
    ALLOWED_APPS,
    CUSTOM_CODE,
    DEFAULT_PORT,
    EGRESS,
    EGRESSES,
    ELSEWHERE,
    LIMITS,
    NUMBERS,
    OURS,
    OWN_KEY,
    PARTICIPANT,
    PORT,
    REVOKED,
    ROLES,
    SANDBOX,
    SANDBOXES,
    SCHEMES,
    SIZES,
)
from provisioning.names import is_address, is_carrier, service_name

STATIC_FILES = "nvflare.lighter.impl.static_file.StaticFileBuilder"
"""FLARE's builder that writes the scheme into the kits."""
HARDEN = "provisioning.harden.HardenBuilder"

BUILDERS = (
    "provisioning.compose.ComposeBuilder",
    "nvflare.lighter.impl.workspace.WorkspaceBuilder",
    HARDEN,
    STATIC_FILES,
    "provisioning.certificates.CertificateBuilder",
)
"""The builders that `builders:` must name, in this order. Others may come between."""

OWN_MACHINE = ("localhost", "127.0.0.1", "::1")
"""Names that lead each machine to itself."""

TOOLS = ("tensorboard", "mlflow")
"""Containers of the federation that belong to no participant (`compose/`), and start only on demand."""

BESIDE = (KEEPER, GATE, DOCTOR)
"""Containers beside a site on another machine."""

WHOSE = {
    (SERVER, SITE): "the server and for sites",
    (SERVER, RELAY): "the server and relays",
    (SITE,): "sites",
    (SITE, RELAY, ADMIN): "all but the server",
}
"""Who has a key, for people."""

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAMES = {
    "server": (rf"(?=.{{1,63}}$){_LABEL}(\.{_LABEL})*", "a host name in lower-case letters, digits, - and ."),
    "client": (_LABEL, "a host name in lower-case letters, digits and -, like site-3"),
    "relay": (_LABEL, "a host name in lower-case letters, digits and -, like relay-1"),
    # 64: the longest common name of a certificate.
    "admin": (r"(?=.{1,64}$)[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9.-]+\.[A-Za-z]{2,}", "an e-mail address"),
}
_WORDS = {"server": "server", "client": "site", "relay": "relay", "admin": "admin"}
_PROJECT = r"(?=.{1,63}$)[a-z0-9]+([_-][a-z0-9]+)*"


@dataclass(frozen=True)
class Entry:
    """One item of `participants:`."""

    name: str
    type: str
    org: str
    properties: Mapping[str, Any]

    @property
    def who(self) -> str:
        """Return the entry's name in messages."""
        return f"{_WORDS[self.type]} '{self.name}'"


def problems_in_file(content: Any) -> list[str]:
    """Return what is wrong with the parsed content of a project.yml, one sentence each."""
    if not isinstance(content, dict):
        return [f"expected a mapping with name, participants and builders, found {kind_of(content)}."]
    participants = content.get("participants")
    if not isinstance(participants, list):
        return [f"participants: expected a list, found {kind_of(participants)}."]
    shape = [found for item in participants for found in _shape(item)]
    misspelt = list(_misspelt("project", content, (REVOKED,)))
    if shape:
        rest = [found for item in participants for found in _of_broken(item)]
        return [*misspelt, *_project(content.get("name")), *shape, *rest, *_builders(content.get("builders"))]
    entries = [Entry(item["name"], item["type"], item["org"], item) for item in participants]
    return misspelt + problems(content.get("name"), entries, content.get("builders"), content.get(REVOKED))


def problems_in_project(project: Any) -> list[str]:
    """Return what is wrong with a `nvflare.lighter.entity.Project`, as a builder gets it."""
    entries = [Entry(p.name, p.type, p.org, p.props) for p in project.get_all_participants()]
    return problems(project.name, entries, project.props.get("builders"), project.props.get(REVOKED))


def problems(name: Any, entries: Sequence[Entry], builders: Any, revoked: Any = None) -> list[str]:
    """Return what is wrong with a project that has these parts."""
    return [
        *_project(name),
        *_participants(entries),
        *_services(entries),
        *_dialled(entries),
        *_builders(builders),
        *_revoked([entry.name for entry in entries], revoked),
    ]


def _shape(item: Any) -> Iterator[str]:
    if not isinstance(item, dict):
        yield f"participants: expected a mapping with name, type and org, found {kind_of(item)}."
        return
    who = item.get("name") or "without a name"
    for key in ("name", "type", "org"):
        if not isinstance(item.get(key), str) or not item[key]:
            yield f"participant {who}: expected '{key}' to be a string, found {kind_of(item.get(key))}."
    if isinstance(item.get("type"), str) and item["type"] not in _NAMES:
        yield f"participant {who}: expected type {', '.join(_NAMES)}, found '{item['type']}'."


def _of_broken(item: Any) -> Iterator[str]:
    """Check the rest of an item beside one with a wrong shape. Without name or type there is nothing to go
    by."""
    name, kind, org = (item.get(key) if isinstance(item, dict) else None for key in ("name", "type", "org"))
    if not isinstance(name, str) or not isinstance(kind, str) or kind not in _NAMES:
        return
    entry = Entry(name, kind, org if isinstance(org, str) and org else "x", item)
    if org is not entry.org:
        yield from _misspelt(entry.who, item, ("org",))
    yield from _participant(entry)


def _project(name: Any) -> Iterator[str]:
    if not isinstance(name, str) or not re.fullmatch(_PROJECT, name):
        yield (
            f"name: expected lower-case letters, digits, - and _ (it begins the name of every image, "
            f"at most 63 characters), found {kind_of(name)}."
        )


def _participants(entries: Sequence[Entry]) -> Iterator[str]:
    servers = [entry.name for entry in entries if entry.type == "server"]
    if len(servers) != 1:
        yield f"expected one participant of type server, found {', '.join(servers) or 'none'}."
    if not any(entry.properties.get("role") == "project_admin" for entry in entries if entry.type == "admin"):
        yield "expected a participant of type admin with role project_admin, found none."
    for entry in entries:
        yield from _participant(entry)
    for name, times in Counter(entry.name for entry in entries).items():
        if times > 1:
            yield f"participant '{name}' appears {times} times. A name is for one only."


def _participant(entry: Entry) -> Iterator[str]:
    """Check one participant alone."""
    pattern, expected = _NAMES[entry.type]
    if not re.fullmatch(pattern, entry.name):
        yield f"{entry.who}: expected {expected}."
    elif entry.name == "localhost" or (entry.name == "server" and entry.type != "server"):
        yield f"{entry.who}: FLARE uses this name for something else. Choose another."
    elif service_name(entry.name) in _taken(entry) or is_carrier(service_name(entry.name)):
        yield f"{entry.who}: this is the name of another container. Choose another."
    if not re.fullmatch(r"\w+", entry.org, re.ASCII):
        yield f"{entry.who}: expected org in letters, digits and _, found '{entry.org}'."
    role = entry.properties.get("role")
    if entry.type == "admin" and role not in ROLES:
        yield f"{entry.who}: expected role {', '.join(ROLES)}, found {kind_of(role)}."
    yield from _policy(entry)
    yield from _ports(entry)


def _taken(entry: Entry) -> tuple[str, ...]:
    """Return the names of other containers where a participant runs."""
    return BESIDE if entry.properties.get(ELSEWHERE) else TOOLS


def _misspelt(who: str, keys: Iterable[str], ours: Sequence[str]) -> Iterator[str]:
    """Report keys that resemble one of ours, so that a misspelt policy is noticed. Others may be a
    builder's."""
    for key in keys:
        if key in ours or any(key == one.name for one in PARTICIPANT):
            continue
        if close := difflib.get_close_matches(str(key), ours, n=1, cutoff=0.75):
            yield f"{who}: unknown key '{key}'. Did you mean {close[0]}?"


def _policy(entry: Entry) -> Iterator[str]:
    """Check the policy of a server or site, and where it runs."""
    yield from _misspelt(entry.who, entry.properties, tuple(OURS))
    for key in (OURS[name] for name in entry.properties if name in OURS):
        # Keys that only a site gives to apps are checked below.
        if entry.type not in key.of and not (entry.type == SERVER and key.name in site_settings.OF_SITES):
            yield f"{entry.who}: {key.name} is for {WHOSE[key.of]}. Leave it out."
    yield from _switch(entry, ELSEWHERE)
    yield from _switch(entry, OWN_KEY)
    if entry.properties.get(OWN_KEY) and not entry.properties.get(ELSEWHERE):
        yield f"{entry.who}: {OWN_KEY} is for a site on another machine (elsewhere: true). Leave it out."
    if entry.properties.get(OWN_KEY) and entry.properties.get("listening_host"):
        yield f"{entry.who}: expected no listening_host with {OWN_KEY}: the centre makes a listener's key."
    if entry.type not in (SERVER, SITE):
        given = {key: value for key, value in entry.properties.items() if key == CONNECT_THROUGH}
        for problem in site_settings.problems(given):
            yield f"{entry.who}: {problem}."
        if given and not entry.properties.get(ELSEWHERE):
            yield f"{entry.who}: {CONNECT_THROUGH} is for another machine (elsewhere: true). Leave it out."
        return
    yield from _switch(entry, CUSTOM_CODE)
    for name, choices in ((SANDBOX, SANDBOXES), (EGRESS, EGRESSES)):
        value = entry.properties.get(name, choices[0])
        if name == SANDBOX and value is False:
            continue  # YAML reads a bare `off` like this.
        if value not in choices:
            yield f"{entry.who}: expected {name} to be {', '.join(choices)}, found {kind_of(value)}."
    yield from _allowed_apps(entry)
    yield from _limits(entry)
    for problem in site_settings.problems(entry.properties, server=entry.type == SERVER):
        yield f"{entry.who}: {problem}."


def _switch(entry: Entry, key: str) -> Iterator[str]:
    value = entry.properties.get(key, True)
    if not isinstance(value, bool):
        yield f"{entry.who}: expected {key} to be true or false, found {kind_of(value)}."


def _allowed_apps(entry: Entry) -> Iterator[str]:
    value = entry.properties.get(ALLOWED_APPS)
    if value is not None and not (
        isinstance(value, list)
        and all(isinstance(item, str) and re.fullmatch("[0-9a-f]{64}", item) for item in value)
    ):
        yield (
            f"{entry.who}: expected {ALLOWED_APPS} to be a list of SHA-256 hashes, as ./flowerbed hash APP "
            f"prints them, found {kind_of(value)}."
        )


def _limits(entry: Entry) -> Iterator[str]:
    value = entry.properties.get(LIMITS)
    if value is None:
        return
    if not isinstance(value, dict) or not set(value) <= {*SIZES, *NUMBERS}:
        expected = ", ".join((*SIZES, *NUMBERS))
        yield f"{entry.who}: expected {LIMITS} to have {expected}, found {kind_of(value)}."
        return
    for key, found in value.items():
        if key in SIZES and size(found) is None:
            yield f"{entry.who}: expected {LIMITS}.{key} to be a size such as 20GB, found {kind_of(found)}."
        if key in NUMBERS and (type(found) is not int or found < 1):
            yield f"{entry.who}: expected {LIMITS}.{key} to be a whole number from 1, found {kind_of(found)}."


def _revoked(names: Sequence[str], value: Any) -> Iterator[str]:
    if value is None:
        return
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        yield f"{REVOKED}: expected a list of names of sites and people, found {kind_of(value)}."
        return
    for name in value:
        if name in names:
            yield f"{REVOKED}: '{name}' is also a participant. Remove it from one of the two lists."


def _ports(entry: Entry) -> Iterator[str]:
    dialled = entry.properties.get(DEFAULT_PORT)
    if dialled is not None and not _is_port(dialled):
        yield f"{entry.who}: expected {DEFAULT_PORT} from 1 to 65535, found {kind_of(dialled)}."
    if entry.type == "server":
        port = entry.properties.get("fed_learn_port", PORT)
        if not _is_port(port):
            yield f"{entry.who}: expected fed_learn_port from 1 to 65535, found {kind_of(port)}."
        admin_port = entry.properties.get("admin_port", port)
        if admin_port != port:
            yield (
                f"{entry.who}: admin_port {admin_port} differs from fed_learn_port {port}, and only one port "
                "is published. Leave admin_port out."
            )
    elif entry.type == "relay":
        listening = entry.properties.get("listening_host")
        port = listening.get("port") if isinstance(listening, dict) else None
        if not _is_port(port):
            yield f"{entry.who}: expected a fixed port in listening_host (1 to 65535), found {kind_of(port)}."
        if isinstance(listening, dict) and "scheme" in listening:
            yield from _scheme(f"{entry.who}: expected listening_host's scheme to be", listening["scheme"])


def _is_port(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536


def _services(entries: Sequence[Entry]) -> Iterator[str]:
    by_service: dict[str, list[str]] = {}
    for entry in entries:
        names = by_service.setdefault(service_name(entry.name), [])
        if entry.name not in names:
            names.append(entry.name)
    for service, names in by_service.items():
        if len(names) > 1:
            yield f"{' and '.join(names)} would share one container, '{service}'. Rename one of them."


def _dialled(entries: Sequence[Entry]) -> Iterator[str]:
    """Refuse a participant that has a dialled name of the server or a relay.

    A certificate for that name identifies the listener, so its other holder could pose as the listener.
    """
    server = next((entry.name for entry in entries if entry.type == "server"), "")
    holders = {entry.name.lower(): entry.name for entry in entries}
    for entry in entries:
        for key, host, owner in _hosts(entry, server):
            if key == "default_host" and is_address(host):
                yield (
                    f"{entry.who}: expected a name in default_host, found the address {host}. Containers of "
                    "this machine can dial only names. Leave default_host out, and give each site elsewhere "
                    f"connect_to: {{name: {entry.name}, host: {host}}}."
                )
            if ":" in host:
                yield (
                    f"{entry.who}: expected a name or an IPv4 address in {key}, found {host}. FLARE dials no "
                    f'IPv6 address. Take a name, and let hosts: {{NAME: "{host}"}} lead it there.'
                )
            holder = holders.setdefault(host.lower(), owner)
            if holder != owner and host not in OWN_MACHINE:
                yield (
                    f"{entry.who}: expected a name in {key} that is nobody else's, found '{host}', under "
                    f"which '{holder}' could pose as '{owner}'. Rename one of the two."
                )


def _hosts(entry: Entry, server: str) -> Iterator[tuple[str, str, str]]:
    """Yield each dialled name in an entry's properties: its key, the name, and its listener."""
    listening = entry.properties.get("listening_host")
    for source in (entry.properties, listening if isinstance(listening, dict) else {}):
        for key in ("default_host", "host_names"):
            value = source.get(key)
            for host in value if isinstance(value, list) else [value]:
                if isinstance(host, str):
                    yield key, host, entry.name
    target = entry.properties.get("connect_to")
    if isinstance(target, dict) and isinstance(target.get("host"), str):
        yield "connect_to", target["host"], target.get("name") or server


def _builders(builders: Any) -> Iterator[str]:
    listed = builders if isinstance(builders, list) else []
    paths = [item.get("path") for item in listed if isinstance(item, dict)]
    missing = [path for path in BUILDERS if path not in paths]
    if missing:
        yield f"builders: {', '.join(missing)} missing. Expected, in this order: {', '.join(BUILDERS)}."
    elif [path for path in paths if path in BUILDERS] != list(BUILDERS):
        yield f"builders: wrong order, expected {', '.join(BUILDERS)}."
    for item in listed:
        path, arguments = (item.get("path"), item.get("args")) if isinstance(item, dict) else (None, None)
        if not isinstance(arguments, dict):
            continue
        if path == STATIC_FILES and "scheme" in arguments:
            yield from _scheme("builders: expected StaticFileBuilder's scheme to be", arguments["scheme"])
        jobs = arguments.get("max_jobs", 1)
        if path == HARDEN and (type(jobs) is not int or jobs < 1):
            expected = "builders: expected HardenBuilder's max_jobs to be a whole number from 1"
            yield f"{expected}, found {kind_of(jobs)}."


def _scheme(expected: str, found: Any) -> Iterator[str]:
    if found not in SCHEMES:
        yield f"{expected} {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}, found {kind_of(found)}."
