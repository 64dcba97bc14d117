"""Keep the last report of each site, as a component of the FLARE server's own process.

A site reports every 20 s (`site_reporter.py`). The reply carries what is newer here, such as a certificate:
each function in `ANSWERS` may add to it. `SERVED` answers further messages, for things that are too large.

A report counts for the site that owns the connection's session, whatever it says. Only the site's own FLARE
client may report, not a process of a job. The report is cut to known facts.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message
from nvflare.fuel.hci.conn import Connection
from nvflare.fuel.hci.proto import MetaStatusValue, make_meta
from nvflare.fuel.hci.reg import CommandModule, CommandModuleSpec, CommandSpec
from nvflare.fuel.hci.server.authz import PreAuthzReturnCode
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.sec.authz import AuthorizationService, AuthzContext, Person
from nvflare.private.defs import CellMessageHeaderKeys
from nvflare.private.fed.server.server_cmd_modules import ServerCommandModules

from bridge.common import site_report, spool
from bridge.common.meta import REMOVED_KEY, REVOKED_KEY
from bridge.flare import addresses, renewals, server_offers, site_facts
from bridge.flare.flare_server import FlareServer
from bridge.flare.joins import JOINS
from bridge.flare.revocation import REVOCATIONS
from bridge.flare.site_messages import is_person

log = logging.getLogger(__name__)

Answer = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""Takes a site's name and its report, and returns what to tell it. Must be quick."""

Handler = Callable[[str, bytes], bytes]
"""Takes a site's name and a message, and returns the reply. Raises `ValueError` for a bad message."""


def tell_revoked(site: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """Tell a relay who was removed, and a site which keys. On another machine they have no other way to
    know, and a site's relay may be among them."""
    names = REVOCATIONS.names()
    if not is_relay(site):
        names = [name for name in names if name.startswith(REMOVED_KEY)]
    return {REVOKED_KEY: names}


ANSWERS: tuple[Answer, ...] = (addresses.answer, renewals.answer, server_offers.ANSWER, tell_revoked)
"""What each reply to a report may hold."""

SERVED: Mapping[str, Handler] = {**server_offers.SERVED}
"""The answers to other messages of sites, by topic."""

APART = 1.0
"""Seconds between two reports of a site, at least. A flood is answered without being read."""

KEPT = 1000
"""Sites that are remembered, those that reported last."""

NO_SITE = "only a registered site's own FLARE client may report"


class SiteReports(FLComponent):
    """See the module. It has no arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Answer] = list(ANSWERS)
        self.served: dict[str, Handler] = dict(SERVED)
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Any]] = {}
        """By site: the cleaned report, and when it came (`heard`, monotonic)."""
        self._flare: FlareServer | None = None
        self._server: Any = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE for every event of the server's own process."""
        if event_type == EventType.SYSTEM_START and self._flare is None:
            self.watch(fl_ctx.get_engine())
            # FLARE makes its admin server from this list a moment later.
            ServerCommandModules.register_cmd_module(SiteReportsCommand(self))

    def watch(self, engine: Any) -> None:
        """Take the reports of the sites of FLARE's server, from now on."""
        self._flare, self._server = FlareServer(engine), engine.server
        cell = self._server.cell
        cell.register_request_cb(channel=site_report.CHANNEL, topic=site_report.REPORT, cb=self._reported)
        # A relay has only the lower half of FLARE's cell.
        cell.core_cell.register_request_cb(
            channel=site_report.CHANNEL, topic=site_report.REPORT, cb=self._reported
        )
        for topic in self.served:
            cell.register_request_cb(channel=site_report.CHANNEL, topic=topic, cb=self._asked)

    def now(self) -> list[dict[str, Any]]:
        """Return each site's last report, in the order of the names."""
        with self._lock:
            known = sorted(self._known.items())
        clock = time.monotonic()
        return [
            {
                "name": site,
                "kind": "relay" if is_relay(site) else "site",
                "reported_seconds": round(clock - entry["heard"], 1),
                "clock_ahead_seconds": entry["ahead"],
                "report": entry["report"],
            }
            for site, entry in known
        ]

    def _reported(self, request: Message) -> Message:
        site = self._sender(request)
        if site is None:
            return make_reply(ReturnCode.UNAUTHENTICATED, NO_SITE, None)
        with self._lock:
            before = self._known.get(site)
            if before is not None and time.monotonic() - before["heard"] < APART:
                return make_reply(ReturnCode.SERVICE_UNAVAILABLE, "one report a second is enough", None)
        try:
            report = site_report.cleaned(site_report.loaded(request.payload, site_report.REPORT_LIMIT))
        except ValueError as error:
            return make_reply(ReturnCode.INVALID_REQUEST, f"this is no report: {error}", None)
        ahead = None
        if "clock" in report:
            ahead = round(report["clock"] + report.get("round_trip_seconds", 0.0) / 2 - time.time(), 2)
            # The sum of two large numbers may be infinite, which JSON has not.
            ahead = ahead if math.isfinite(ahead) else None
        with self._lock:
            # The one that reported last comes last.
            self._known.pop(site, None)
            self._known[site] = {"report": report, "heard": time.monotonic(), "ahead": ahead}
            while len(self._known) > KEPT:
                del self._known[next(iter(self._known))]
        return make_reply(ReturnCode.OK, "", site_report.dumped(self._answer(site, report)))

    def _answer(self, site: str, report: Mapping[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for answer in self.answers:
            try:
                told |= answer(site, report)
            except Exception:
                # The others must reach the site all the same.
                log.exception("part of the answer to %s is missing", site)
        return told

    def _asked(self, request: Message) -> Message:
        site = self._sender(request)
        if site is None:
            return make_reply(ReturnCode.UNAUTHENTICATED, NO_SITE, None)
        body = request.payload
        if not isinstance(body, bytes | bytearray | memoryview) or len(body) > site_report.REPORT_LIMIT:
            return make_reply(ReturnCode.INVALID_REQUEST, "expected some bytes", None)
        try:
            reply = self.served[str(request.get_header(MessageHeaderKey.TOPIC))](site, bytes(body))
        except ValueError as error:
            return make_reply(ReturnCode.INVALID_REQUEST, str(error), None)
        return make_reply(ReturnCode.OK, "", reply)

    def _sender(self, request: Message) -> str | None:
        """Return the site whose own FLARE client has sent a message, or None if there is no such site.

        FLARE has checked that the token is signed for the name, and that it belongs to the origin or to a
        cell below it. It lets through a signed token that it does not know any more.
        """
        assert self._flare is not None
        name, origin = (
            request.get_header(key) for key in (CellMessageHeaderKeys.CLIENT_NAME, MessageHeaderKey.ORIGIN)
        )
        if is_relay(name):
            # FLARE keeps no session of a relay, and has checked the token's signature.
            is_own = FQCN.split(str(origin))[-1] == name and not self._flare.out(name)
            return str(name) if is_own else None
        client = self._server.client_manager.clients.get(request.get_header(CellMessageHeaderKeys.TOKEN))
        if client is None or client.name != name or is_person(name):
            return None
        if origin != client.get_fqcn():
            return None
        return None if self._flare.out(client.name) else str(client.name)


def is_relay(name: Any, renewals: Path = addresses.RENEWALS) -> bool:
    """Return whether a name is a relay's: it has a certificate to listen with. Sites have none."""
    if not isinstance(name, str) or not spool.NAME.fullmatch(name):
        return False
    return (renewals / name / "server.crt").is_file() and name != FQCN.ROOT_SERVER


class SiteReportsCommand(CommandModule):  # type: ignore[misc]
    """The admin command by which a console gets the reports. Who may check the server's status may do so."""

    def __init__(self, reports: SiteReports) -> None:
        self._reports = reports

    def get_spec(self) -> CommandModuleSpec:
        """See FLARE's method."""
        command = CommandSpec(
            name=site_report.COMMAND,
            description="show the sites' last reports",
            usage=site_report.COMMAND,
            handler_func=self._show,
            authz_func=self._authorize,
        )
        return CommandModuleSpec(name="flowerbed", cmd_specs=[command])

    def _authorize(self, conn: Connection, args: list[str]) -> PreAuthzReturnCode:
        person = Person(
            *(
                conn.get_prop(key, "")
                for key in (ConnProps.USER_NAME, ConnProps.USER_ORG, ConnProps.USER_ROLE)
            )
        )
        context = AuthzContext(AdminCommandNames.CHECK_STATUS, person, person)
        allowed, error = AuthorizationService.authorize(context)
        if allowed and not error:
            return PreAuthzReturnCode.OK
        why = str(error or "this action is not authorized")
        conn.append_error(why, meta=make_meta(MetaStatusValue.NOT_AUTHORIZED, why))
        return PreAuthzReturnCode.ERROR

    def _show(self, conn: Connection, args: list[str]) -> None:
        found = self._reports.now()
        told = {"sites": found, "server_version": site_facts.versions(), "joined": JOINS.used()}
        conn.append_string(f"{len(found)} reports", meta=make_meta(MetaStatusValue.OK, extra=told))
