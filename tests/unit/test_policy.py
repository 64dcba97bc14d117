"""A site's policy on code that a job brings, through the hooks of FLARE's client."""

from __future__ import annotations

from typing import Any

import pytest
from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.apis.fl_context import FLContext
from nvflare.apis.utils.event import fire_event_to_components
from nvflare.fuel.sec.authz import AuthorizationService
from nvflare.private.admin_defs import Message
from nvflare.private.defs import RequestHeader
from nvflare.private.fed.client.admin import FedAdminAgent
from nvflare.private.fed.server.site_security import SiteSecurity
from nvflare.security.security import FLAuthorizer

from bridge.common import meta
from bridge.flare.policy import CodePolicy

SECURITY = {
    "format_version": "1.0",
    "permissions": {"lead": {"submit_job": "any", "byoc": "none"}, "project_admin": "any"},
}


class Client:
    """The part of the FLARE client's engine that fires events."""

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        fire_event_to_components(event_type, [CodePolicy()], fl_ctx)


@pytest.fixture(autouse=True)
def policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AuthorizationService, "the_authorizer", FLAuthorizer("org", SECURITY))


def asked(job: dict[str, Any] | None, role: str = "lead", command: str = AdminCommandNames.SUBMIT_JOB) -> Any:
    """Return the answer to FLARE's client before it deploys a job with this meta."""
    request = Message("deploy", b"")
    for header, value in (
        (RequestHeader.SUBMITTER_NAME, "ann@x.example"),
        (RequestHeader.SUBMITTER_ORG, "org"),
        (RequestHeader.SUBMITTER_ROLE, role),
        (RequestHeader.JOB_META, job),
    ):
        request.set_header(header, value)
    context = FLContext()
    FedAdminAgent._set_security_data(object.__new__(FedAdminAgent), request, context)
    return SiteSecurity().authorization_check(Client(), command, context)


def test_a_job_that_brings_code_is_refused_with_a_reason() -> None:
    assert asked({"byoc": True}) == (False, meta.NO_CUSTOM_CODE)


def test_jobs_without_code_or_of_an_allowed_submitter_pass() -> None:
    assert asked({"name": "deployed", "flower_predeployed": True}) == (True, "")
    assert asked({"byoc": True}, role="project_admin") == (True, "")


def test_only_the_deployment_of_a_job_is_checked() -> None:
    assert asked({"byoc": True}, command=AdminCommandNames.CHECK_RESOURCES) == (True, "")
    assert asked({"byoc": True}, command=AdminCommandNames.SHELL_LS) == (True, "")


def test_an_unreadable_job_is_refused() -> None:
    allowed, reason = asked(None)
    assert not allowed and reason == "the site could not check it: AttributeError"
