"""Flower's Control API in front of a console: who may ask, what is answered, and that Flower's own command
understands it. The console's daemon is made up, all else is real: TLS, HTTP, `flwr`.
"""

from __future__ import annotations

import io
import json
import os
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from flwr.proto import control_pb2 as pb
from flwr.proto.fab_pb2 import Fab
from flwr.proto.transport_pb2 import Scalar
from flwr.supercore.error import ApiErrorCode, FlowerError
from google.protobuf.message import Message

from bridge.common.app import FAB_LIMIT
from bridge.common.run_ids import run_id
from bridge.flare.console import client
from bridge.flare.control_api import __main__ as server
from bridge.flare.control_api import access, calls, certificate, downloads, errors, runs, waiter
from bridge.flare.control_api.app import BODY_LIMIT, OPEN_BODY_LIMIT, Api
from bridge.job import fab
from scripts import flwr_home
from tests.unit.faking import signed_kit_certificate
from tests.unit.flwr_command import FlwrCommand

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "tests" / "apps" / "numpy-add"
JOB, OTHER = "1fd0980e-eb5e-437f-b897-3ecd3187e779", "3bbe6de4-78ee-41dd-ac70-809fd113bfec"
RUN = run_id(JOB)
PERSON = "lead@flowerbed.example"
FEDERATION = "@flowerbed/fb"
MEDIA = {"content-type": "application/protobuf"}


def job(status: str = "RUNNING", **more: Any) -> dict[str, Any]:
    """An entry of the console's verb `runs`."""
    app = {"id": "flowerbed/numpy-add", "version": "1.0.0", "hash": "c3e7"}
    ended = 130.0 if status.startswith("FINISHED") else None
    times = {"submitted": 100.0, "started": 110.0, "ended": ended}
    return (
        {"job_id": JOB, "name": "numpy-add", "app": app, "status": status, "submitter": PERSON} | times | more
    )


class Console:
    """A console's daemon that answers as it is told: JSON lines, a tar, or an error by its exit code."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.payloads: list[bytes] = []
        self.answers: dict[str, Any] = {}
        self.closed = threading.Event()

    def ask(
        self, request: str, payload: Callable[[], bytes] | None = None, taken: object = None
    ) -> Iterator[tuple[bytes, bytes]]:
        asked = json.loads(request)
        self.asked.append(asked)
        if payload is not None:
            self.payloads.append(b"".join(iter(payload, b"")))
        answer = self.answers[asked["verb"]]
        if callable(answer):
            answer = answer(asked)
        code = b"0"
        if isinstance(answer, tuple):
            code = str(answer[0]).encode()
            yield client.ERR, json.dumps({"error": answer[1], **(answer[2] if answer[2:] else {})}).encode()
        elif isinstance(answer, bytes):
            yield client.OUT, answer
        else:
            try:
                for line in answer if not isinstance(answer, dict) else [answer]:
                    yield client.OUT, json.dumps(line).encode() + b"\n"
            except GeneratorExit:
                self.closed.set()
                raise
        yield client.EXIT, code


class Endpoint:
    """A server in a thread, in front of a console."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.console = console
        self.listener = waiter.listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.ca = str(folder / access.CA)
        self._server = uvicorn.Server(server.config(Api().app()))
        self._thread = threading.Thread(target=self._server.run, args=([self.listener],), daemon=True)
        self._thread.start()
        self.token = access.new_token()
        self.http = httpx.Client(
            base_url=f"https://{self.address}", verify=ssl.create_default_context(cafile=self.ca)
        )

    def call(self, name: str, request: Message, token: str | None = "", **headers: str) -> httpx.Response:
        """Send a call, under the person's token unless another or none is given."""
        given = self.token if token == "" else token
        more = {"authorization": f"Bearer {given}"} if given is not None else {}
        content = request.SerializeToString()
        return self.http.post(f"/v1/control/{name}", content=content, headers={**MEDIA, **more, **headers})

    def refused(self, name: str, request: Message, **given: Any) -> tuple[int, str]:
        """Send a call that is refused. Returns Flower's number and the sentence."""
        answer = self.call(name, request, **given)
        error = FlowerError.from_json(answer.text)
        assert error is not None and answer.is_error, answer.text
        return int(error.code), error.message

    def close(self) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join(10)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with a person's kit."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "startup").mkdir()
    admin = {"username": PERSON, "project_name": "fb"}
    (folder / "startup" / "fed_admin.json").write_text(json.dumps({"admin": admin}))
    (folder / "startup" / "client.crt").write_bytes(signed_kit_certificate(PERSON, "lead"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access, "WORKSPACE", folder)
        patch.setattr(access, "FOLDER", folder / "control-api")
        certificate.ensure()
        yield folder


@pytest.fixture(scope="module")
def started(kit: Path) -> Iterator[Endpoint]:
    console = Console()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "ask", lambda *given: console.ask(*given))
        endpoint = Endpoint(access.FOLDER, console)
        yield endpoint
        endpoint.close()


@pytest.fixture
def endpoint(started: Endpoint) -> Endpoint:
    fresh = started.console
    fresh.asked, fresh.payloads = [], []
    fresh.answers = {"runs": {"runs": [job()]}, "logs": b""}
    fresh.closed.clear()
    return started


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flwr")


@pytest.fixture(scope="module")
def command(home: Path) -> Iterator[FlwrCommand]:
    started = FlwrCommand(home)
    yield started
    started.close()


@pytest.fixture
def flwr(
    endpoint: Endpoint, command: FlwrCommand, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Flower's own command, as a person has it after `./flowerbed flwr-config --write`."""
    monkeypatch.setenv("FLWR_HOME", str(home))
    flwr_home.write_connection("flowerbed", endpoint.address, Path(endpoint.ca).read_text())
    flwr_home.write_token(endpoint.address, endpoint.token)
    return command


def shown(said: str) -> str:
    """An error as the command shows it, without its frame."""
    return " ".join(said.replace("│", " ").split())


# Who may ask


def test_the_numbers_of_errors_are_flowers() -> None:
    names = {
        errors.NO_FEDERATION_MANAGEMENT: ApiErrorCode.NO_FEDERATION_MANAGEMENT_SUPPORT,
        errors.FEDERATION_NOT_FOUND: ApiErrorCode.FEDERATION_NOT_FOUND_OR_NO_PERMISSION,
        errors.NO_PERMISSIONS: ApiErrorCode.NO_PERMISSIONS,
        errors.FORBIDDEN_ACTION: ApiErrorCode.FORBIDDEN_ACTION,
        errors.FAILED_TO_CREATE_RUN: ApiErrorCode.FAILED_TO_CREATE_RUN,
        errors.INVALID_RUN_CONFIG: ApiErrorCode.INVALID_RUN_CONFIG,
        errors.RUN_ID_NOT_FOUND: ApiErrorCode.RUN_ID_NOT_FOUND,
        errors.RUN_ALREADY_FINISHED: ApiErrorCode.RUN_ALREADY_FINISHED,
        errors.PULL_UNFINISHED_RUN: ApiErrorCode.PULL_UNFINISHED_RUN,
        errors.INVALID_APP_SPEC: ApiErrorCode.INVALID_APP_SPEC,
        errors.ACCOUNT_AUTHENTICATION_FAILED: ApiErrorCode.ACCOUNT_AUTHENTICATION_FAILED,
        errors.CONNECTOR_FAILURE: ApiErrorCode.CONNECTOR_FAILURE,
        errors.INVALID_AUTOMATION_REQUEST: ApiErrorCode.INVALID_AUTOMATION_REQUEST,
        errors.UNSUPPORTED_CONTENT_TYPE: ApiErrorCode.UNSUPPORTED_CONTENT_TYPE,
        errors.INVALID_PROTOBUF_PAYLOAD: ApiErrorCode.INVALID_PROTOBUF_PAYLOAD,
    }
    assert all(number == name for number, name in names.items())


def test_every_call_of_flowers_is_known() -> None:
    """Those of the router of the installed flwr: each is answered, or has a sentence or our general one."""
    from flwr.superlink.routers.control.router import router

    paths = {str(getattr(route, "path", "")).rsplit("/", 1)[-1] for route in router.routes}
    assert set(calls.CALLS) <= paths
    assert set(calls.MEANINGLESS) <= paths - set(calls.CALLS)


@pytest.mark.parametrize("name", sorted(calls.CALLS))
def test_without_a_token_nothing_is_answered_but_a_login(name: str, endpoint: Endpoint) -> None:
    call = calls.CALLS[name]
    if call.open:
        return
    for token in (None, "wrong", endpoint.token[:-1], f"{endpoint.token}x"):
        code, said = endpoint.refused(name, call.request(), token=token)
        assert code == errors.ACCOUNT_AUTHENTICATION_FAILED
        assert "./flowerbed flwr-config --write" in said and "flwr login" in said
    assert not endpoint.console.asked


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Basic {token}", "{token}", "bearer\t{token}", "Bearer {token} x"],
)
def test_other_forms_of_a_token_are_refused(header: str, endpoint: Endpoint) -> None:
    headers = {**MEDIA, "authorization": header.format(token=endpoint.token)}
    answer = endpoint.http.post("/v1/control/list-runs", headers=headers)
    assert answer.status_code == 401
    two = [*MEDIA.items(), ("authorization", f"Bearer {endpoint.token}"), ("authorization", "Bearer x")]
    assert endpoint.http.post("/v1/control/list-runs", headers=two).status_code == 401


def test_a_refusal_does_not_wait_for_the_body(endpoint: Endpoint) -> None:
    """Else somebody without a token could fill the memory."""
    context = ssl.create_default_context(cafile=endpoint.ca)
    with (
        socket.create_connection(("127.0.0.1", endpoint.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as dialled,
    ):
        head = "POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n"
        dialled.sendall(f"{head}Content-Type: application/protobuf\r\n\r\n".encode())
        assert b" 401 " in dialled.recv(1000)


def test_too_large_requests_are_refused(endpoint: Endpoint) -> None:
    large = pb.StartRunRequest(fab=Fab(content=b"x" * BODY_LIMIT))
    assert endpoint.call("start-run", large).status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    login = pb.GetAuthTokensRequest(device_code="x" * OPEN_BODY_LIMIT)
    assert endpoint.call("get-auth-tokens", login, token=None).status_code == 413
    code, said = endpoint.refused("start-run", pb.StartRunRequest(fab=Fab(content=b"x" * (FAB_LIMIT + 1))))
    assert code == errors.FAILED_TO_CREATE_RUN and "expected at most 10485760" in said
    assert not endpoint.console.asked


def test_a_malformed_message_is_refused(endpoint: Endpoint) -> None:
    token = {"authorization": f"Bearer {endpoint.token}"}
    wrong = endpoint.http.post("/v1/control/list-runs", content=b"\xff\xff", headers={**MEDIA, **token})
    assert wrong.status_code == 400 and wrong.json()["code"] == errors.INVALID_PROTOBUF_PAYLOAD
    other = endpoint.http.post("/v1/control/list-runs", content=b"{}", headers=token)
    assert other.status_code == 415


def test_the_certificate_is_for_this_machine_and_stays(endpoint: Endpoint, kit: Path) -> None:
    before = (access.FOLDER / access.CERTIFICATE).read_bytes()
    certificate.ensure()
    assert (access.FOLDER / access.CERTIFICATE).read_bytes() == before
    modes = {path.name: path.stat().st_mode & 0o777 for path in access.FOLDER.iterdir() if path.is_file()}
    assert set(modes.values()) == {0o600}, modes
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://{endpoint.address}/", verify=True)
    localhost = httpx.get(
        f"https://localhost:{endpoint.port}/login", verify=ssl.create_default_context(cafile=endpoint.ca)
    )
    assert localhost.status_code == 404


def test_another_name_makes_another_certificate(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FOLDER", kit / "other")
    certificate.ensure()
    before = (access.FOLDER / access.CERTIFICATE).read_bytes()
    monkeypatch.setenv(certificate.NAMES, "fl.example.org, 10.1.2.3")
    certificate.ensure()
    assert (access.FOLDER / access.CERTIFICATE).read_bytes() != before


# Tokens and logins


def test_a_token_is_kept_as_its_hash_and_ends(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FOLDER", kit / "tokens")
    token = access.new_token()
    assert access.is_token(token) and not access.is_token("") and not access.is_token(token[:-1])
    assert token not in (access.FOLDER / access.TOKENS).read_text()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + access.TOKEN_LIFE + 1)
    assert not access.is_token(token)


def test_revoking_ends_all_tokens(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FOLDER", kit / "revoked")
    tokens = [access.new_token(), access.new_token()]
    assert access.revoke() == 2
    assert not any(map(access.is_token, tokens))


def test_another_persons_kit_ends_all_tokens(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FOLDER", kit / "inherited")
    token = access.new_token()
    monkeypatch.setattr(access, "user", lambda: "admin@flowerbed.example")
    assert not access.is_token(token)


def test_a_folder_that_others_can_enter_is_not_used(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kit / "open").mkdir(mode=0o755)
    (kit / "open").chmod(0o755)
    monkeypatch.setattr(access, "FOLDER", kit / "open")
    with pytest.raises(access.AccessDenied, match="that only user"):
        access.new_token()


def test_a_login_waits_for_approval_and_is_good_once(endpoint: Endpoint) -> None:
    details = pb.GetLoginDetailsResponse()
    details.ParseFromString(
        endpoint.call("get-login-details", pb.GetLoginDetailsRequest(), token=None).content
    )
    request = pb.GetAuthTokensRequest(device_code=details.device_code)
    answer = pb.GetAuthTokensResponse()
    answer.ParseFromString(endpoint.call("get-auth-tokens", request, token=None).content)
    assert not answer.access_token
    page = httpx.get(
        details.verification_uri_complete, verify=ssl.create_default_context(cafile=endpoint.ca)
    ).text
    code = page.split("--approve ")[1].split()[0]
    with pytest.raises(access.AccessDenied, match="no login waits"):
        access.approve("BBBB-BBBB" if code != "BBBB-BBBB" else "CCCC-CCCC")
    access.approve(code.lower())
    # Who has seen the code has not seen the secret.
    assert endpoint.refused("get-auth-tokens", pb.GetAuthTokensRequest(device_code=f"{code}.x"), token=None)
    answer.ParseFromString(endpoint.call("get-auth-tokens", request, token=None).content)
    assert access.is_token(answer.access_token) and answer.refresh_token
    assert "has ended" in endpoint.refused("get-auth-tokens", request, token=None)[1]


def test_logins_that_wait_are_few_and_end(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FOLDER", kit / "logins")
    codes = [access.begin_login() for _ in range(access.LOGINS_KEPT)]
    with pytest.raises(access.AccessDenied, match="wait for approval"):
        access.begin_login()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + access.LOGIN_WITHIN + 1)
    with pytest.raises(access.AccessDenied, match="no login waits"):
        access.approve(codes[0][1])
    access.begin_login()


def test_a_device_code_names_no_other_file(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FOLDER", kit / "paths")
    access.new_token()
    for code in ("../tokens.json.x", "/etc/passwd.x", "", ".", "BBBB-BBBB"):
        with pytest.raises(access.AccessDenied):
            access.finish_login(code)
    with pytest.raises(access.AccessDenied):
        access.approve("../tokens.json")


def test_flowers_login_works(endpoint: Endpoint, flwr: Callable[..., str], home: Path) -> None:
    (home / "credentials.yaml").unlink()
    said = flwr("ls", "flowerbed", code=1)
    assert "You are not logged in" in shown(said)

    def approve() -> None:
        deadline = time.monotonic() + 20
        while not (found := [p.name for p in (access.FOLDER / access.LOGINS).iterdir()]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        access.approve(found[0])

    helper = threading.Thread(target=approve)
    helper.start()
    assert "Login successful" in flwr("login", "flowerbed")
    helper.join()
    assert str(RUN) in flwr("ls", "flowerbed")


def test_a_revoked_token_is_told_so(flwr: Callable[..., str], endpoint: Endpoint) -> None:
    access.revoke()
    said = shown(flwr("ls", "flowerbed", code=1))
    assert "Your login is not valid, or has ended" in said
    endpoint.token = access.new_token()


# Runs


def test_an_app_is_submitted_unchanged(flwr: Callable[..., str], endpoint: Endpoint) -> None:
    endpoint.console.answers["start-run"] = {"job_id": JOB, "sites": ["site-1"], "silent": {"site-2": 40.0}}
    said = flwr(
        "run", str(APP), "flowerbed", "-c", "num-server-rounds=2 train-seconds=0.5", "--format", "json"
    )
    answer = json.loads(said[said.index("{") :])
    assert answer["run-id"] == str(RUN) and answer["federation-id"] == FEDERATION
    assert "site-2 was last heard from 40 s ago" in answer["note"]
    (asked,) = endpoint.console.asked
    assert asked["run_config"] == {"num-server-rounds": 2, "train-seconds": 0.5}
    with tarfile.open(fileobj=io.BytesIO(endpoint.console.payloads[0])) as tar:
        (member,) = tar.getmembers()
        file = tar.extractfile(member)
        assert member.name == "app.fab" and file is not None
        assert fab.sha256(file.read()) == fab.sha256(fab.build(APP))


def test_the_federation_config_asks_for_sites_and_gpus(flwr: Callable[..., str], endpoint: Endpoint) -> None:
    endpoint.console.answers["start-run"] = {"job_id": JOB, "sites": ["site-1", "site-2"]}
    keys = "num-supernodes=2 client-resources-num-gpus=1.0"
    said = flwr("run", str(APP), "flowerbed", "--federation-config", keys, "--format", "json")
    note = json.loads(said[said.index("{") :])["note"]
    assert note == "The run needs 2 sites, and all registered sites may take part."
    flwr("run", str(APP), "flowerbed")
    asked, plain = endpoint.console.asked
    assert (asked["min_sites"], asked["gpus"]) == (2, 1) and not {"min_sites", "gpus"} & plain.keys()


def test_a_value_that_is_not_configuration_is_refused(endpoint: Endpoint) -> None:
    for value in (Scalar(bytes=b"x"), Scalar()):
        request = pb.StartRunRequest(override_config={"rounds": value})
        code, said = endpoint.refused("start-run", request)
        assert code == errors.INVALID_RUN_CONFIG and "--run-config rounds: expected true" in said
    assert not endpoint.console.asked


def test_flwr_run_streams_the_log(flwr: Callable[..., str], endpoint: Endpoint) -> None:
    endpoint.console.answers["start-run"] = {"job_id": JOB, "sites": []}
    endpoint.console.answers["run-log"] = [
        {},
        {"note": "The run waits for site-2 (silent)"},
        {},
        {"lines": ["INFO :      [ROUND 1]"]},
        {},
        {"status": "FINISHED:COMPLETED", "reason": ""},
    ]
    said = flwr("run", str(APP), "flowerbed", "--stream")
    assert said.index("waits for site-2") < said.index("INFO :      [ROUND 1]")


def test_flwr_log_shows_what_there_is_and_why_it_failed(flwr: Callable[..., str], endpoint: Endpoint) -> None:
    endpoint.console.answers["run-log"] = [
        {"lines": ["one", "two"]},
        {},
        {"status": "FINISHED:EXECUTION_EXCEPTION", "reason": "boom"},
    ]
    shown = flwr("log", str(RUN), "flowerbed", "--show")
    assert "one\ntwo\n" in shown and "boom" not in shown
    assert "The run has ended (finished:failed): boom" in flwr("log", str(RUN), "flowerbed")


def test_what_a_site_says_does_not_act_on_the_terminal(endpoint: Endpoint) -> None:
    """Flower's command prints it as it comes."""
    said = "\x1b]52;c;aGk=\x07"
    told: list[dict[str, Any]] = [{"note": said}, {"status": "FINISHED:ABANDONED", "reason": said}]
    (answer,) = calls._log(iter(told))
    assert isinstance(answer, pb.StreamLogsResponse)
    job = {"job_id": JOB, "status": "FINISHED:ABANDONED", "reason": said}
    texts = [answer.log_output, runs.run_of(job).status.details, str(errors.ControlError(said, 1).content)]
    assert all("\x1b" not in text and "x1b]52" in text for text in texts)


def test_a_stream_ends_with_its_reader(endpoint: Endpoint) -> None:
    def without_end(asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
        while True:
            yield {"lines": ["one"]}
            yield {}
            time.sleep(0.1)

    endpoint.console.answers["run-log"] = without_end
    request = pb.StreamLogsRequest(run_id=RUN).SerializeToString()
    headers = {**MEDIA, "authorization": f"Bearer {endpoint.token}"}
    with endpoint.http.stream("POST", "/v1/control/stream-logs", content=request, headers=headers) as answer:
        next(answer.iter_raw())
    assert endpoint.console.closed.wait(10)


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("SUBMITTED", "pending"),
        ("DISPATCHED", "starting"),
        ("RUNNING", "running"),
        ("FINISHED:COMPLETED", "finished:completed"),
        ("FINISHED:ABORTED", "finished:stopped"),
        ("FINISHED:CAN_NOT_SCHEDULE", "finished:failed"),
        ("FINISHED:EXECUTION_EXCEPTION", "finished:failed"),
    ],
)
def test_a_job_is_a_run(status: str, shown: str, endpoint: Endpoint) -> None:
    endpoint.console.answers["runs"] = {"runs": [job(status)]}
    answer = pb.ListRunsResponse()
    answer.ParseFromString(endpoint.call("list-runs", pb.ListRunsRequest()).content)
    run = answer.run_dict[RUN]
    assert ":".join(filter(None, (run.status.status, run.status.sub_status))) == shown
    assert run.fab_id == "flowerbed/numpy-add" and run.federation == FEDERATION


def test_flwr_ls_lists_runs(flwr: Callable[..., str], endpoint: Endpoint) -> None:
    old = job("FINISHED:COMPLETED", job_id=OTHER, app={}, submitted=50.0, started=60.0, ended=90.0)
    endpoint.console.answers["runs"] = lambda asked: {
        "runs": [one for one in (old, job()) if str(one["job_id"]).startswith(asked.get("prefix", ""))]
    }
    said = flwr("ls", "flowerbed", "--format", "json")
    found = json.loads(said)["runs"]
    assert [run["run-id"] for run in found] == [str(RUN), str(run_id(OTHER))]
    assert found[0]["status"] == "running" and found[0]["fab-version"] == "1.0.0"
    assert found[1]["elapsed"] == 30.0 and found[1]["fab-id"] == "numpy-add"
    one = flwr("ls", "flowerbed", "--run-id", str(run_id(OTHER)))
    assert "finished:completed" in one and str(RUN) not in one
    assert len(json.loads(flwr("ls", "flowerbed", "--limit", "1", "--format", "json"))["runs"]) == 1


@pytest.mark.parametrize("words", [("ls", "flowerbed", "--run-id"), ("stop",), ("pull",), ("log",)])
def test_a_run_that_is_not_there(
    words: tuple[str, ...], flwr: Callable[..., str], endpoint: Endpoint
) -> None:
    endpoint.console.answers["runs"] = {"runs": []}
    more = () if "ls" in words else ("flowerbed",)
    assert "There is no run 5. To list runs: flwr ls" in flwr(*words, "5", *more, code=1)


def test_flwr_stop_ends_a_job(flwr: Callable[..., str], endpoint: Endpoint) -> None:
    looks = iter([job(), job(), job("FINISHED:ABORTED")])
    endpoint.console.answers |= {"runs": lambda asked: {"runs": [next(looks)]}, "abort": {"job_id": JOB}}
    assert "successfully stopped" in flwr("stop", str(RUN), "flowerbed")
    assert {"verb": "abort", "job": JOB} in endpoint.console.asked
    endpoint.console.answers["runs"] = {"runs": [job("FINISHED:COMPLETED")]}
    said = shown(flwr("stop", str(RUN), "flowerbed", code=1))
    assert f"Run {RUN} has already ended: finished:completed" in said


def test_a_denial_of_flares_names_the_identity(endpoint: Endpoint) -> None:
    endpoint.console.answers["abort"] = (1, "refused by the server: no right", {"denied": True})
    answer = endpoint.call("stop-run", pb.StopRunRequest(run_id=RUN))
    assert answer.status_code == 403
    assert answer.json() == {"code": 9, "detail": f"refused by the server: no right (as {PERSON})"}


@pytest.mark.parametrize(
    ("name", "verb", "request_type"),
    [
        ("pull-artifacts", "logs", pb.PullArtifactsRequest),
        ("stream-logs", "run-log", pb.StreamLogsRequest),
    ],
)
def test_another_persons_run_is_refused_before_any_data(
    name: str, verb: str, request_type: Callable[..., Message], endpoint: Endpoint
) -> None:
    endpoint.console.answers["runs"] = {"runs": [job("FINISHED:COMPLETED")]}
    endpoint.console.answers[verb] = (1, "refused by the server: no right", {"denied": True})
    code, said = endpoint.refused(name, request_type(run_id=RUN))
    assert (code, said) == (errors.NO_PERMISSIONS, f"refused by the server: no right (as {PERSON})")


def test_a_job_that_never_ran_has_results_and_no_log(endpoint: Endpoint) -> None:
    endpoint.console.answers["runs"] = {"runs": [job("FINISHED:CAN_NOT_SCHEDULE")]}
    endpoint.console.answers["logs"] = (1, "there is no log of server for this job")
    assert link_of(endpoint)


def test_a_console_that_cannot_reach_the_server_says_so(flwr: Callable[..., str], endpoint: Endpoint) -> None:
    endpoint.console.answers["runs"] = (1, "the server cannot be reached")
    assert "the server cannot be reached" in flwr("ls", "flowerbed", code=1)


# Results


def tarred(**files: bytes) -> bytes:
    """What the console's verb `download` sends."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w|") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("workspace/serverapp/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return buffer.getvalue()


def link_of(endpoint: Endpoint) -> str:
    answer = pb.PullArtifactsResponse()
    answer.ParseFromString(endpoint.call("pull-artifacts", pb.PullArtifactsRequest(run_id=RUN)).content)
    return answer.url


def test_a_link_brings_the_results_once(endpoint: Endpoint) -> None:
    large = os.urandom(3 * downloads.CHUNK)
    files = {
        "meta.json": b"{}",
        "summary.json": b"{}",
        "logs/site-1.log": b"log",
        "workspace/serverapp/model.npy": large,
        "workspace/events.jsonl": b"",
        "workspace/app_server/config/config_fed_server.json": b"FLARE's",
        "../outside": b"x",
        "/absolute": b"x",
        "logs/a\\b": b"x",
    }
    endpoint.console.answers |= {"runs": {"runs": [job("FINISHED:COMPLETED")]}, "download": tarred(**files)}
    url = link_of(endpoint)
    assert url.startswith(f"https://{endpoint.address}/")
    answer = endpoint.http.get(url)
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {name.removeprefix(f"{JOB}/") for name in archive.namelist()} == {
            "meta.json",
            "summary.json",
            "logs/site-1.log",
            "serverapp/model.npy",
            "events.jsonl",
        }
        assert archive.read(f"{JOB}/serverapp/model.npy") == large
    assert next(one for one in endpoint.console.asked if one["verb"] == "download")["summarized"]
    again = endpoint.http.get(url)
    assert again.status_code == 403 and "flwr pull" in again.text


def test_a_link_is_good_for_its_job_and_its_time(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.console.answers |= {"runs": {"runs": [job("FINISHED:COMPLETED")]}, "download": tarred()}
    changes: list[Callable[[str], str]] = [
        lambda url: url.replace(JOB, OTHER),
        lambda url: url.replace("ends=1", "ends=2"),
        lambda url: url.replace("once=", "once=x"),
        lambda url: url[:-1] + ("0" if url[-1] != "0" else "1"),
        lambda url: url.split("?")[0],
    ]
    for change in changes:
        assert endpoint.http.get(change(link_of(endpoint))).status_code == 403
    late = link_of(endpoint)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + downloads.LINK_LIFE + 1)
    assert endpoint.http.get(late).status_code == 403


def test_flwr_pull_gives_a_link_when_the_run_has_ended(flwr: Callable[..., str], endpoint: Endpoint) -> None:
    assert "has not ended: it is running" in shown(flwr("pull", str(RUN), "flowerbed", code=1))
    endpoint.console.answers["runs"] = {"runs": [job("FINISHED:COMPLETED")]}
    assert f"https://{endpoint.address}/v1/results/{JOB}.zip?" in flwr("pull", str(RUN), "flowerbed")


# Sites and the federation


@pytest.fixture
def sites(endpoint: Endpoint) -> None:
    seen = {"site-1": 4.0, "site-2": 400.0}
    found = [{"name": name, "last_seen_seconds": since} for name, since in seen.items()]
    endpoint.console.answers["status"] = {"sites": found, "jobs": [], "server": "started"}


@pytest.mark.usefixtures("sites")
def test_flwr_supernode_ls_shows_sites(flwr: Callable[..., str]) -> None:
    found = json.loads(flwr("supernode", "ls", "flowerbed", "--format", "json"))["nodes"]
    assert {node["owner-name"]: node["status"] for node in found} == {"site-1": "online", "site-2": "offline"}
    assert "site-2" in flwr("supernode", "ls", "flowerbed")


@pytest.mark.usefixtures("sites")
def test_flwr_federation_ls_shows_it(flwr: Callable[..., str]) -> None:
    found = json.loads(flwr("federation", "ls", "flowerbed", "--format", "json"))["federations"]
    assert [one["id"] for one in found] == [FEDERATION]
    told = flwr("federation", "ls", "flowerbed", "--federation", FEDERATION)
    assert all(text in told for text in (PERSON, "lead", "site-1", str(RUN)))
    other = shown(flwr("federation", "ls", "flowerbed", "--federation", "@a/b", code=1))
    assert f"There is no federation @a/b here: expected {FEDERATION}" in other


# What has no meaning here


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "@flwrlabs/quickstart", "flowerbed"), "Flowerbed does not fetch apps from Flower Hub"),
        (
            ("run", str(APP), "flowerbed", "--federation-config", "client-resources-num-cpus=2"),
            "--federation-config client-resources-num-cpus sets up Flower's simulation",
        ),
        (
            ("run", str(APP), "flowerbed", "--federation-config", "client-resources-num-gpus=0.5"),
            "client-resources-num-gpus=0.5: expected a whole number, 0 or more",
        ),
        (
            ("run", str(APP), "flowerbed", "--federation-config", "client-resources-num-gpus=inf"),
            "client-resources-num-gpus=inf: expected a whole number",
        ),
        (
            ("run", str(APP), "flowerbed", "--federation-config", "num-supernodes=0"),
            "num-supernodes=0: expected a whole number, 1 or more",
        ),
        (("run", str(APP), "flowerbed", "--federation", "@a/b"), "There is no federation @a/b"),
        (("federation", "create", "more", "flowerbed"), "project.yml says who takes part"),
        (("federation", "archive", FEDERATION, "flowerbed"), "This endpoint serves one federation"),
        (("federation", "add-supernode", "5", FEDERATION, "flowerbed"), "project.yml says who takes part"),
        (("federation", "remove-supernode", "5", FEDERATION, "flowerbed"), "project.yml says who"),
        (("federation", "invite", "ls", "flowerbed"), "has no invitations"),
        (("supernode", "unregister", "5", "flowerbed"), "Sites register themselves"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_an_unsupported_call_gets_an_explanation(
    words: tuple[str, ...], said: str, flwr: Callable[..., str], endpoint: Endpoint
) -> None:
    assert said in shown(flwr(*words, code=1))
    assert not [asked for asked in endpoint.console.asked if asked["verb"] == "start-run"]


@pytest.mark.parametrize("name", sorted(calls.MEANINGLESS))
def test_every_other_call_has_a_sentence(name: str, endpoint: Endpoint) -> None:
    code, said = endpoint.refused(name, pb.ListRunsRequest())
    assert code == errors.NO_FEDERATION_MANAGEMENT and said.endswith((".", "--stream"))


def test_an_unknown_call_has_one_too(endpoint: Endpoint) -> None:
    assert "does not support Flower's call 'fly'" in endpoint.refused("fly", pb.ListRunsRequest())[1]
    assert (
        endpoint.refused("fly", pb.ListRunsRequest(), token=None)[0] == errors.ACCOUNT_AUTHENTICATION_FAILED
    )
    assert endpoint.http.get("/").status_code == 404


# The process that waits


def test_the_port_stays_open_when_the_server_goes_and_comes(kit: Path, tmp_path: Path) -> None:
    """The waiter becomes the server with the first connection, and the server the waiter again."""
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FLOWERBED_WORKSPACE": str(kit),
        "FLOWERBED_CONTROL_API": str(tmp_path / "state"),
        "FLOWERBED_CONSOLE": str(tmp_path / "console"),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = [sys.executable, "-I", "-S", waiter.__file__, "127.0.0.1", str(port)]
    with subprocess.Popen(program, env=environ) as process:
        try:
            deadline = time.monotonic() + 30
            while not psutil.Process(process.pid).net_connections("tcp"):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.05)
            assert (tmp_path / "state" / access.CERTIFICATE).exists()
            assert b"waiter.py" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
            context = ssl.create_default_context(cafile=str(tmp_path / "state" / access.CA))
            answer = httpx.post(f"https://127.0.0.1:{port}/v1/control/list-runs", verify=context, timeout=30)
            assert answer.status_code == 401
            assert b"bridge.flare.control_api" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        finally:
            process.kill()
