"""Apply a participant's policy to a job's content, as components of FLARE's long-lived processes.

FLARE 2.9.0 asks for the right `byoc` only if the part of the job that goes to this very participant holds
code (`private/fed/utils/app_deployer.py`). A Flower app comes by another way, through Flower and from the
server. So the server checks the whole job (`submissions.py`) and tells the sites the result in the job's
meta. And each participant checks its own part.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidationKey, AppValidator
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import AdminCommandNames, FLContextKey, SiteType
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.sec.authz import AuthorizationService, AuthzContext, Person

from bridge.common import meta
from bridge.flare import contents
from bridge.job import settings

log = logging.getLogger(__name__)

BYOC = "byoc"
"""FLARE's right to bring code, in a kit's `local/authorization.json`."""


class PartPolicy(AppValidator):
    """Refuses a job if its part for this participant holds forbidden content, or code that the policy
    forbids.

    FLARE asks it in `private/fed/utils/app_deployer.py`, at the server and at every site, after the check of
    the part's signature. The answer goes back to the process that hands the job out. `site_type` is FLARE's
    word.
    """

    def __init__(self, site_type: str = SiteType.CLIENT) -> None:
        self._server = site_type == SiteType.SERVER

    def validate(self, app_folder: str) -> tuple[str, dict[str, Any]]:
        """Return why the part in this folder is refused ("" if it is not), and the facts for FLARE."""
        part = Path(app_folder)
        try:
            found = contents.of_part(part, server=self._server)
            # The part is in FLARE's workspace: workspace/JOB/PART.
            own = settings.read(part.resolve().parents[1])
        except ValueError as error:
            return str(error), {}
        except Exception as error:
            log.exception("the job could not be checked")
            return f"the job could not be checked: {type(error).__name__}", {}
        if found.fab and not own.custom_code:
            return meta.NO_CUSTOM_CODE, {}
        return "", {AppValidationKey.BYOC: True} if found.fab else {}


class CodePolicy(FLComponent):
    """At a site: refuses a job that brings code for anybody, if its submitter may bring none here."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE for every event of the client's own process. This one comes before each command of
        the server's, so that components can refuse it."""
        command = fl_ctx.get_prop(FLContextKey.COMMAND_NAME)
        if event_type != EventType.AUTHORIZE_COMMAND_CHECK or command != AdminCommandNames.SUBMIT_JOB:
            return
        try:
            reason = _objection(fl_ctx.get_prop(FLContextKey.SECURITY_ITEMS))
        except Exception as error:
            # FLARE continues when a component fails, which would let code in here.
            log.exception("the job could not be checked")
            reason = f"the site could not check it: {type(error).__name__}"
        if reason:
            fl_ctx.set_prop(FLContextKey.AUTHORIZATION_RESULT, False, sticky=False)
            fl_ctx.set_prop(FLContextKey.AUTHORIZATION_REASON, reason, sticky=False)


def _objection(items: dict[str, Any]) -> str:
    """Return why the job is refused, or "". `byoc` in its meta is the server's result for the whole job
    (`submissions.py`)."""
    if not items[FLContextKey.JOB_META].get(AppValidationKey.BYOC):
        return ""
    keys = (FLContextKey.SUBMITTER_NAME, FLContextKey.SUBMITTER_ORG, FLContextKey.SUBMITTER_ROLE)
    return "" if may_bring_code(*(items[key] for key in keys)) else meta.NO_CUSTOM_CODE


def may_bring_code(name: str, org: str, role: str) -> bool:
    """Return whether this participant's policy gives a submitter the right to bring code."""
    submitter = Person(name, org, role)
    allowed, _ = AuthorizationService.authorize(AuthzContext(BYOC, submitter, submitter))
    return bool(allowed)
