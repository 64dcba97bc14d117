"""Handle the messages of sites to the FLARE server's own process, like FLARE except where that is wrong
here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.fuel.common.exit_codes import ProcessExitCode
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellMessageHeaderKeys, ClientType, JobFailureMsgKey

from bridge.flare.joins import JOINS, PROPERTY
from bridge.flare.revocation import REVOCATIONS

if TYPE_CHECKING:
    from bridge.flare.flare_server import FlareServer

log = logging.getLogger(__name__)

DIED = (ProcessExitCode.EXCEPTION, ProcessExitCode.INFRASTRUCTURE_ERROR)
"""FLARE's exit codes for a job process that was killed or crashed at a site. FLARE makes no difference."""

NO_SITE = "this is a person's name, not a site's"
"""The answer to a console that claims to be a site. FLARE believes the claim (nvflare 2.9.0
`private/fed/server/client_manager.py`), and would hand it jobs."""


class SiteMessages:
    """FLARE's handlers of sites' messages to the server's own process, with the checks that FLARE lacks."""

    def __init__(
        self,
        flare: FlareServer,
        server: Any,
        runner: Any,
        on_heartbeat: Callable[[str, str, frozenset[str]], None],
        on_death: Callable[[str, str], None],
    ) -> None:
        """Register the handlers. See `FlareServer.watch`."""
        self._flare, self._server, self._runner = flare, server, runner
        self._on_heartbeat, self._on_death = on_heartbeat, on_death

    def heartbeat(self, request: Message) -> Message:
        """Refuse a person's heartbeat, and report a site's."""
        site = request.get_header(CellMessageHeaderKeys.CLIENT_NAME)
        if why := NO_SITE if is_person(site) else self._removed(site):
            return make_reply(ReturnCode.UNAUTHENTICATED, why, None)
        reply: Message = self._server.client_heartbeat(request)
        if reply.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.OK:
            told = request.get_header(CellMessageHeaderKeys.JOB_IDS) or ()
            try:
                jobs = frozenset(map(str, told))
                self._on_heartbeat(site, request.get_header(CellMessageHeaderKeys.TOKEN), jobs)
            except Exception:
                # The site must get its answer, even if its jobs cause an error.
                log.exception("%s's heartbeat could not be checked", site)
        return reply

    def outcome(self, request: Message) -> Message:
        """Keep a job from being failed for a process that died at a site."""
        client = self._server.client_manager.clients.get(request.get_header(CellMessageHeaderKeys.TOKEN))
        payload, flare = request.payload, self._flare
        if client is not None and isinstance(payload, dict):
            job = str(payload.get(JobFailureMsgKey.JOB_ID))
            if payload.get(JobFailureMsgKey.CODE) in DIED:
                if flare.ended_well(job) and flare.owes_outcome(job, client.name):
                    # The Flower run has ended, which decides the job. The end of a site's process after that
                    # does not change it.
                    self._runner.resolve_client_outcome(job, client.name)
                    return make_reply(ReturnCode.OK, "", None)
                if flare.runs(job) and client.name in flare.participants(job):
                    self._on_death(job, client.name)
                    return make_reply(ReturnCode.OK, "", None)
                # A sender without a part in the job has no influence on it: FLARE drops such a report.
        return self._server.process_job_failure(request)

    def register(self, request: Message) -> Message:
        """Let no person register as a site, and no removed site either."""
        kind = request.get_header(CellMessageHeaderKeys.CLIENT_TYPE)
        name = request.get_header(CellMessageHeaderKeys.CLIENT_NAME)
        if why := NO_SITE if kind != ClientType.ADMIN and is_person(name) else self._removed(name):
            return make_reply(ReturnCode.UNAUTHENTICATED, why, None)
        if kind == ClientType.ADMIN:
            return self._server.register_client(request)
        answers: list[Message] = []

        def register() -> bool:
            answers.append(self._server.register_client(request))
            return bool(answers[0].get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.OK)

        if why := JOINS.register(str(name), _told(request), register):
            return make_reply(ReturnCode.UNAUTHENTICATED, why, None)
        return answers[0]

    def _removed(self, name: Any) -> str | None:
        """Return why `name` may not come in, or not stay if it is registered."""
        here = name in self._server.client_manager.name_to_clients
        return REVOCATIONS.why_not(str(name), here=here)


def _told(request: Message) -> object:
    """Return what a site tells of its join file."""
    payload = request.payload
    context = payload.get_peer_context() if isinstance(payload, Shareable) else None
    return context.get_prop(PROPERTY) if isinstance(context, FLContext) else None


def is_person(name: Any) -> bool:
    """Return whether a name is a person's: an e-mail address, which no site has as name
    (`provisioning/checks.py`)."""
    return "@" in str(name)
