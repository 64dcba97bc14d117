"""The calls of Flower's Control API, by their names in the path."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from flwr.proto import control_pb2 as pb
from google.protobuf.message import Message

from bridge.common.app import FAB_LIMIT
from bridge.common.meta import SAID_LIMIT
from bridge.common.run_ids import job_prefix, run_id
from bridge.common.text import one_line, shown
from bridge.flare.control_api import access, daemon, errors, federation_config, runs
from bridge.flare.control_api.downloads import Links
from bridge.flare.control_api.errors import ControlError
from bridge.job import fab

LOGIN_EVERY = 2
"""Seconds between two questions of `flwr login`."""

STOPPED_WITHIN, LOOK_EVERY = 20.0, 0.5
"""Seconds for a job to end that was aborted, and between two looks. Flower's CLI waits 30 for an answer."""

NO_REFRESH = "none"
"""The refresh token. Flower's CLI keeps no access token without one."""

HOW_TO_LOG_IN = (
    "On the machine with your kit, run ./flowerbed flwr-config --write. On another one, run flwr login with "
    "this connection's name."
)


@dataclass(frozen=True)
class Asked:
    """Where a call comes from.

    Attributes:
        base: the address under which the caller reaches this server.
        links: for results.
    """

    base: str
    links: Links


Answer = Message | Iterator[Message]
Handler = Callable[[Any, Asked], Answer]


@dataclass(frozen=True)
class ControlCall:
    """One call.

    Attributes:
        request: the type of its message.
        open: whether it needs no token.
    """

    request: type[Message]
    handle: Handler
    open: bool = False


def start_run(request: pb.StartRunRequest, asked: Asked) -> Message:
    """Hand an app in as a job."""
    if request.app_spec or (request.fab.hash_str and not request.fab.content):
        raise ControlError(
            f"{request.app_spec or 'This app'} is not on this machine, and Flowerbed does not fetch apps "
            "from Flower Hub. Fetch it with flwr new, and run its folder.",
            errors.INVALID_APP_SPEC,
        )
    options = federation_config.options_of(request.override_federation_config)
    _check_federation(request.federation)
    if request.connector_ids or request.connector_refs:
        raise errors.meaningless("Flowerbed has no connectors.", errors.CONNECTOR_FAILURE)
    content = request.fab.content
    if len(content) > FAB_LIMIT:
        raise ControlError(
            f"The app has {len(content)} bytes: expected at most {FAB_LIMIT}. Data belongs on the sites.",
            errors.FAILED_TO_CREATE_RUN,
        )
    try:
        answer = daemon.ask(
            "start-run", daemon.tar_of(fab.NAME, content), run_config=_run_config(request), **options
        )
    except daemon.Refusal as refusal:
        raise _told(refusal, errors.FAILED_TO_CREATE_RUN) from None
    notes = [text for text in (federation_config.note(options), answer.get("warning")) if text]
    for site, seconds in (answer.get("silent") or {}).items():
        notes.append(f"{site} was last heard from {seconds:.0f} s ago: the run may have to wait for it.")
    return pb.StartRunResponse(
        run_id=run_id(str(answer["job_id"])),
        federation=runs.federation_id(),
        note=" ".join(notes) or None,
    )


def _run_config(request: pb.StartRunRequest) -> dict[str, bool | int | float | str]:
    """The overrides of the app's run config."""
    found = {}
    for key, scalar in request.override_config.items():
        kind = scalar.WhichOneof("scalar")
        if kind not in ("bool", "sint64", "uint64", "double", "string"):
            raise ControlError(
                f"--run-config {one_line(key, SAID_LIMIT)}: expected true, false, a number or a string",
                errors.INVALID_RUN_CONFIG,
            )
        found[key] = getattr(scalar, kind)
    return found


def list_runs(request: pb.ListRunsRequest, asked: Asked) -> Message:
    """List all jobs, the newest first, or one."""
    if request.HasField("run_id"):
        found = [_job(request.run_id)]
    else:
        found = _newest_first(_ask("runs")["runs"])
        found = found[request.skip :][: request.limit or None]
    listed = map(runs.run_of, found)
    return pb.ListRunsResponse(run_dict={run.run_id: run for run in listed}, now=runs.iso(time.time()))


def stop_run(request: pb.StopRunRequest, asked: Asked) -> Message:
    """End a job, and wait a while for its end."""
    job = _job(request.run_id)
    if str(job["status"]).startswith("FINISHED"):
        raise ControlError(
            f"Run {request.run_id} has already ended: {_status(job)}.",
            errors.RUN_ALREADY_FINISHED,
            HTTPStatus.PRECONDITION_FAILED,
        )
    _ask("abort", job=job["job_id"])
    deadline = time.monotonic() + STOPPED_WITHIN
    while not str(_job(request.run_id)["status"]).startswith("FINISHED") and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY)
    return pb.StopRunResponse(success=True)


def pull_artifacts(request: pb.PullArtifactsRequest, asked: Asked) -> Message:
    """Return a link to a job's results."""
    job = _job(request.run_id)
    if not str(job["status"]).startswith("FINISHED"):
        raise ControlError(
            f"Run {request.run_id} has not ended: it is {_status(job)}. "
            f"Wait for it: flwr log {request.run_id}",
            errors.PULL_UNFINISHED_RUN,
            HTTPStatus.PRECONDITION_FAILED,
        )
    _check_may_read(str(job["job_id"]))
    return pb.PullArtifactsResponse(url=f"{asked.base}{asked.links.make(str(job['job_id']))}")


def _check_may_read(job: str) -> None:
    """See that FLARE gives this person what a job has left. A log of no lines is its smallest part."""
    try:
        list(daemon.fetch("logs", job=job, tail=0))
    except daemon.Refusal as refusal:
        if refusal.denied:
            raise _told(refusal, errors.NO_PERMISSIONS) from None


def stream_logs(request: pb.StreamLogsRequest, asked: Asked) -> Iterator[Message]:
    """Return what the ServerApp prints, to the job's end."""
    told = daemon.stream("run-log", job=_job(request.run_id)["job_id"])
    try:
        # Before the answer begins, so that an error is one.
        first = next(told, {})
    except daemon.Refusal as refusal:
        raise _told(refusal, errors.FORBIDDEN_ACTION) from None
    return _log(itertools.chain([first], told))


def _log(told: Iterator[dict[str, Any]]) -> Iterator[Message]:
    """What there is comes in one message: `flwr log --show` prints the first and no more."""
    text = ""
    for found in told:
        text += "".join(f"{line}\n" for line in found.get("lines") or ())
        if note := found.get("note"):
            text += f"{shown(note)}\n"
        if found.get("reason"):
            name, detail = runs.STATUSES.get(str(found["status"]), ("finished", "failed"))
            text += f"The run has ended ({name}:{detail}): {shown(found['reason'])}\n"
        if text and (not found or "status" in found):
            yield pb.StreamLogsResponse(log_output=text, latest_timestamp=time.time())
            text = ""


def list_nodes(request: pb.ListNodesRequest, asked: Asked) -> Message:
    """List the registered sites."""
    return pb.ListNodesResponse(nodes_info=_nodes(), now=runs.iso(time.time()))


def list_federations(request: pb.ListFederationsRequest, asked: Asked) -> Message:
    """List the one federation that there is."""
    return pb.ListFederationsResponse(federations=[runs.federation()])


def show_federation(request: pb.ShowFederationRequest, asked: Asked) -> Message:
    """Show the federation with its sites and jobs."""
    _check_federation(request.federation_name)
    jobs = map(runs.run_of, _newest_first(_ask("runs")["runs"]))
    return pb.ShowFederationResponse(federation=runs.federation(_nodes(), jobs), now=runs.iso(time.time()))


def get_login_details(request: pb.GetLoginDetailsRequest, asked: Asked) -> Message:
    """Begin a login."""
    try:
        device_code, code = access.begin_login()
    except access.AccessDenied as denied:
        raise errors.unauthenticated(str(denied)) from None
    return pb.GetLoginDetailsResponse(
        authn_type="oidc",
        device_code=device_code,
        verification_uri_complete=f"{asked.base}/login?code={code}",
        expires_in=int(access.LOGIN_WITHIN),
        interval=LOGIN_EVERY,
    )


def get_auth_tokens(request: pb.GetAuthTokensRequest, asked: Asked) -> Message:
    """Return a token once the login was approved, and an empty answer before."""
    try:
        token = access.finish_login(request.device_code)
    except access.AccessDenied as denied:
        raise errors.unauthenticated(str(denied)) from None
    if token is None:
        return pb.GetAuthTokensResponse()
    return pb.GetAuthTokensResponse(access_token=token, refresh_token=NO_REFRESH)


def refresh_auth_tokens(request: pb.RefreshAuthTokensRequest, asked: Asked) -> Message:
    """Refuse: a token that has ended needs a person."""
    raise errors.unauthenticated(f"Your login has ended. {HOW_TO_LOG_IN}")


CALLS: Mapping[str, ControlCall] = {
    "start-run": ControlCall(pb.StartRunRequest, start_run),
    "list-runs": ControlCall(pb.ListRunsRequest, list_runs),
    "stop-run": ControlCall(pb.StopRunRequest, stop_run),
    "pull-artifacts": ControlCall(pb.PullArtifactsRequest, pull_artifacts),
    "stream-logs": ControlCall(pb.StreamLogsRequest, stream_logs),
    "list-nodes": ControlCall(pb.ListNodesRequest, list_nodes),
    "list-federations": ControlCall(pb.ListFederationsRequest, list_federations),
    "show-federation": ControlCall(pb.ShowFederationRequest, show_federation),
    "get-login-details": ControlCall(pb.GetLoginDetailsRequest, get_login_details, open=True),
    "get-auth-tokens": ControlCall(pb.GetAuthTokensRequest, get_auth_tokens, open=True),
    "refresh-auth-tokens": ControlCall(pb.RefreshAuthTokensRequest, refresh_auth_tokens, open=True),
}

SITES = (
    "project.yml says who takes part. Edit it on the federation's machine, then run ./flowerbed provision, "
    "build and up."
)
MEANINGLESS: Mapping[str, str] = {
    "register-node": f"Sites register themselves, by their certificates. {SITES}",
    "unregister-node": f"Sites register themselves, by their certificates. {SITES}",
    "create-federation": f"This endpoint serves one federation. {SITES}",
    "archive-federation": f"This endpoint serves one federation. {SITES}",
    "set-federation-icon": "A Flowerbed federation has no icon.",
    "add-node-to-federation": SITES,
    "remove-node-from-federation": SITES,
    "remove-account-from-federation": SITES,
    "configure-simulation-federation": "Flowerbed runs apps on real sites, and has no simulation. "
    "flwr run --federation-config takes num-supernodes and client-resources-num-gpus.",
    "stream-run-events": "Flowerbed shows a run's progress in its log: flwr log RUN_ID --stream",
    **dict.fromkeys(
        (f"{verb}-invitation" for verb in ("create", "accept", "reject", "revoke")),
        f"A Flowerbed federation has no invitations. {SITES}",
    ),
    "list-invitations": f"A Flowerbed federation has no invitations. {SITES}",
    **dict.fromkeys(
        ("list-apps", "list-app-associations", "add-app", "remove-app"),
        "Flowerbed keeps no list of Flower apps. ./flowerbed apps lists the environments of apps.",
    ),
}
"""What the calls say that have no meaning here."""


def nothing_for(call: str) -> ControlError:
    """The error for a call that is not answered."""
    known = MEANINGLESS.get(call)
    return errors.meaningless(known or f"Flowerbed does not support Flower's call '{one_line(call, 60)}'.")


def _check_federation(name: str) -> None:
    if name not in ("", runs.federation_id()):
        raise ControlError(
            f"There is no federation {one_line(name, SAID_LIMIT)} here: "
            f"expected {runs.federation_id()}, or none.",
            errors.FEDERATION_NOT_FOUND,
            HTTPStatus.NOT_FOUND,
        )


def _job(run: int) -> dict[str, Any]:
    """The job of a run, as the console's verb `runs` tells it."""
    try:
        found = _ask("runs", prefix=job_prefix(run))["runs"]
    except ValueError:
        found = []
    for job in found:
        return dict(job)
    raise errors.no_such_run(run)


def _nodes() -> list[Any]:
    now = time.time()
    return [runs.node_of(site, now) for site in _ask("status")["sites"]]


def _newest_first(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(jobs, key=lambda job: -float(job.get("submitted") or 0))


def _status(job: Mapping[str, Any]) -> str:
    return ":".join(filter(None, runs.STATUSES.get(str(job["status"]), ("finished", "failed"))))


def _ask(verb: str, **arguments: Any) -> dict[str, Any]:
    try:
        return daemon.ask(verb, **arguments)
    except daemon.Refusal as refusal:
        raise _told(refusal, errors.FORBIDDEN_ACTION) from None


def _told(refusal: daemon.Refusal, code: int) -> ControlError:
    if refusal.denied:
        return ControlError(f"{refusal} (as {access.user()})", errors.NO_PERMISSIONS, HTTPStatus.FORBIDDEN)
    return ControlError(
        str(refusal), code, HTTPStatus.BAD_REQUEST if refusal.wrong else HTTPStatus.BAD_GATEWAY
    )
