"""Let a join file be used once: on one machine, until its last day, and no older file after a newer one.

`./flowerbed site add` writes each join file's id beside the revoked names, where this process sees it
(`provisioning/join.py`). The site's folder has the id, and a random number that its machine has made. The
site tells both when it registers. The first one that the server registers counts from then on. The server
keeps it in its volume.

Sites of the server's own machine have no join file, and nothing to tell.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

from bridge.common.meta import JOINS_FILE

log = logging.getLogger(__name__)

PROPERTY = "flowerbed_join"
"""What a site tells, in the context that FLARE sends along with a registration."""

JOIN, INSTANCE = "FLOWERBED_JOIN", "FLOWERBED_INSTANCE"
"""The variables of a site's container with the two."""

POLICY = Path(os.environ.get("FLOWERBED_POLICY", "/policy"))
KEPT = Path("/workspace/store/joined.json")
"""Which join file, and which machine, each site has used."""

LONGEST = 64
"""Characters of an id or a number."""

NEWER = "Ask the federation's administrator for a new one: ./flowerbed site add"


class JoinTeller(FLComponent):
    """At a site: tells the server by which join file it has come."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE for every event of the client's own process."""
        if event_type == EventType.BEFORE_CLIENT_REGISTER and os.environ.get(JOIN):
            told = {"join": os.environ[JOIN], "instance": os.environ.get(INSTANCE, "")}
            fl_ctx.set_prop(PROPERTY, told, private=False, sticky=False)


class Joins:
    """The join files that were made and used. Thread-safe."""

    def __init__(self, policy: Path = POLICY, kept: Path = KEPT) -> None:
        self._made, self._kept = policy / JOINS_FILE, kept
        self._lock = threading.Lock()

    def used(self) -> list[str] | None:
        """Return the names of the sites that have joined with a file, or None if that cannot be read."""
        try:
            with self._lock:
                return sorted(_read(self._kept))
        except (OSError, ValueError):
            return None

    def register(self, site: str, told: object, register: Callable[[], bool]) -> str | None:
        """Register a site if its join file may be used, and remember the machine.

        Args:
            told: what the site has told with the property.
            register: registers the site, after all other checks. Returns whether it did.

        Returns: why the site may not register, or None.
        """
        with self._lock:
            try:
                made = _read(self._made).get(site, [])
                used = _read(self._kept)
            except (OSError, ValueError) as error:
                log.error("refusing %s: %s", site, error)
                return f"the server cannot read which join files were made: {error}"
            mine = used.get(site)
            if not made and mine is None:
                register()
                return None
            join, instance = _words(told)
            if why := _why_not(site, join, instance, made, mine):
                log.warning("%s may not register: %s", site, why)
                return why
            if register() and (mine is None or (mine["join"], mine["instance"]) != (join, instance)):
                stamp = next(item["made"] for item in made if item["id"] == join)
                used[site] = {"join": join, "instance": instance, "made": stamp}
                _write(self._kept, used)
            return None


def _why_not(
    site: str, join: str, instance: str, made: list[dict[str, Any]], mine: Mapping[str, Any] | None
) -> str | None:
    """Return why a site may not register with this join file from this machine."""
    if not join or not instance:
        return f"{site} joins with a join file, and this is another kit of it. {NEWER} {site}"
    if mine is not None and mine["join"] == join:
        if mine["instance"] == instance:
            return None
        return f"its join file was used before, on another machine or in another folder. {NEWER} {site}"
    file = next((item for item in made if item["id"] == join), None)
    if file is None:
        return f"the server knows no such join file. {NEWER} {site}"
    if mine is not None and file["made"] < mine["made"]:
        return f"a newer join file of {site} was used before. {NEWER} {site}"
    if file["last_day"] < datetime.datetime.now(datetime.UTC).date().isoformat():
        return f"the last day of its join file was {file['last_day']}. {NEWER} {site}"
    return None


def _words(told: object) -> tuple[str, str]:
    found = (told.get("join"), told.get("instance")) if isinstance(told, Mapping) else ("", "")
    join, instance = (word if isinstance(word, str) and len(word) <= LONGEST else "" for word in found)
    return join, instance


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    content = json.loads(file.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"expected names with join files in {file}")
    return content


def _write(file: Path, content: Mapping[str, Any]) -> None:
    draft = file.with_name(f"{file.name}.new")
    draft.parent.mkdir(parents=True, exist_ok=True)
    with draft.open("w") as stream:
        stream.write(json.dumps(content, indent=2) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)


JOINS = Joins()
"""The join files of this server."""
