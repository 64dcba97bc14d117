"""Let a site run only the app that it has checked: compare the server's FAB before it is used.

FLARE verifies the submitter's signature over the site's own part of a job, and asks the site's policy about
the part. But the SuperNode runs the FAB that the SuperLink hands out. Here the two meet: no SuperNode gets an
app with another hash than the app in the site's part. If the app is deployed on the server, the site's part
has none. Then the site's `allowed_apps` decide, if it has any.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from flwr.proto.fab_pb2 import GetFabResponse
from google.protobuf.message import DecodeError

from bridge.common.app import BadApp
from bridge.fleet import wire
from bridge.job import fab
from bridge.relay.calls import Call, JobOver, Link, Request, Response, Retry, Rule, SiteRelay

log = logging.getLogger(__name__)

PATH = "/flowerbed/other-app"
"""The path of a site's call that it takes no part. It is not one of Flower's, so no gateway lets it pass."""

REASON_LIMIT = 2000
"""Characters of a reason."""


class Expected:
    """The app that a site runs in one job."""

    def __init__(self, site: str, brought: bytes | None, allowed: Sequence[str] | None) -> None:
        """Create the expectation.

        Args:
            site: its name.
            brought: the FAB in its own part of the job, or None.
            allowed: the hashes of the deployed apps that it runs, or None for all.
        """
        self._site = site
        self._own = None if brought is None else fab.sha256(brought)
        self._allowed = None if allowed is None else frozenset(allowed)

    def objection(self, response: bytes) -> str:
        """Return why the app in a response to get-fab must not run here, for users, or ""."""
        try:
            handed = GetFabResponse.FromString(response).fab
        except DecodeError:
            return f"{self._site} was sent something that is not an app"
        found = fab.sha256(handed.content)
        if handed.hash_str != found:
            return f"{self._site} was sent app {found} under the hash {_shown(handed.hash_str)}"
        if self._own is not None:
            if found == self._own:
                return ""
            return (
                f"the server sent {_name(handed.content)} with the hash {found}. The job that was "
                f"signed for {self._site} has {self._own}. Ask the operator of the server"
            )
        if self._allowed is None or found in self._allowed:
            return ""
        listed = ", ".join(sorted(self._allowed)) or "none"
        return (
            f"{self._site} allows the deployed apps {listed}. The server sent {_name(handed.content)} "
            f"with the hash {found}. To allow it, add it to {self._site} in project.yml: "
            f"allowed_apps: [{found}]"
        )


def _name(content: bytes) -> str:
    try:
        project = fab.read(content)["project"]
        return f"app {_shown(project['name'])} {_shown(project['version'])}"
    except (BadApp, KeyError, TypeError, AttributeError):
        return "an app without a name"


def _shown(text: object) -> str:
    """Return at most a line's worth of a text that comes from a stranger."""
    return re.sub(r"[^\w.+ -]", "?", str(text))[:80]


class SameApp:
    """A link (`relay.Link`) that lets no app pass but the expected one."""

    def __init__(self, link: Link, expected: Expected, on_other: Callable[[str], None]) -> None:
        """Watch `link`. `on_other` is called with the reason, the first time that another app comes."""
        self._link = link
        self._expected = expected
        self._on_other = on_other
        self._told = False

    async def send(self, call: Call) -> Response:
        """See `relay.Link`."""
        response = await self._link.send(call)
        if wire.fleet_call(call.request).name != wire.GET_FAB or response.status != 200:
            return response
        reason = self._expected.objection(response.body)
        if not reason:
            return response
        if not self._told:
            self._told = True
            self._on_other(reason)
        return Response(403)

    async def probe(self) -> None:
        """See `relay.Link`."""
        await self._link.probe()


async def tell(caller: SiteRelay, reason: str) -> None:
    """Tell the server that this site takes no part, and why. Returns when the server knows."""
    request = Request(PATH, (), json.dumps(reason[:REASON_LIMIT]).encode())
    try:
        while await caller.call(request, Rule(Retry.IDEMPOTENT, PATH)) is None:
            pass
    except JobOver:
        pass


def take(on_refused: Callable[[str, str], None]) -> Callable[[str, Request], Awaitable[Response]]:
    """Return the handler of such a call at the server. `on_refused` is called with site and reason."""

    async def carry_out(site: str, request: Request) -> Response:
        try:
            reason = json.loads(request.body) if len(request.body) <= 8 * REASON_LIMIT else None
        except (ValueError, RecursionError):
            reason = None
        if not isinstance(reason, str) or len(reason) > REASON_LIMIT:
            return Response(400, (), b"expected a reason")
        on_refused(site, "".join(c if c.isprintable() else "?" for c in reason))
        return Response(200)

    return carry_out


def brought(custom: Path) -> bytes | None:
    """Return the FAB in the folder `custom` of a participant's part of a job, if it has one."""
    try:
        return (custom / fab.NAME).read_bytes()
    except FileNotFoundError:
        return None
