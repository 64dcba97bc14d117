"""A site's word on code from outside: a component of the site's FLARE client.

FLARE 2.9.0 asks for a site's right `byoc` only if the part of the job that goes to this very site holds code
(`private/fed/utils/app_deployer.py`). A Flower app comes by another way, through Flower and from the server:
a job could bring code for the server alone, and the site would run it.
"""

from __future__ import annotations

import logging
from typing import Any

from nvflare.apis.app_validation import AppValidationKey
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import AdminCommandNames, FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.sec.authz import AuthorizationService, AuthzContext, Person

from bridge.flare import meta

log = logging.getLogger(__name__)

BYOC = "byoc"
"""FLARE's right to bring code, in a kit's `local/authorization.json`."""


class CodePolicy(FLComponent):
    """Refuses a job that brings code for anybody, if its submitter may bring none here. No arguments."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE for every event of the client's own process; this one comes before each command of
        the server's, for components to refuse it."""
        command = fl_ctx.get_prop(FLContextKey.COMMAND_NAME)
        if event_type != EventType.AUTHORIZE_COMMAND_CHECK or command != AdminCommandNames.SUBMIT_JOB:
            return
        try:
            reason = _objection(fl_ctx.get_prop(FLContextKey.SECURITY_ITEMS))
        except Exception as error:
            # FLARE goes on where a component fails; here that would let code in.
            log.exception("the job could not be looked at")
            reason = f"the site could not look at it: {type(error).__name__}"
        if reason:
            fl_ctx.set_prop(FLContextKey.AUTHORIZATION_RESULT, False, sticky=False)
            fl_ctx.set_prop(FLContextKey.AUTHORIZATION_REASON, reason, sticky=False)


def _objection(items: dict[str, Any]) -> str:
    """Why the job is refused; empty if it is not. `byoc` in its meta is the server's word on all of it."""
    if not items[FLContextKey.JOB_META].get(AppValidationKey.BYOC):
        return ""
    keys = (FLContextKey.SUBMITTER_NAME, FLContextKey.SUBMITTER_ORG, FLContextKey.SUBMITTER_ROLE)
    submitter = Person(*(items[key] for key in keys))
    allowed, _ = AuthorizationService.authorize(AuthzContext(BYOC, submitter, submitter))
    return "" if allowed else meta.NO_CUSTOM_CODE
