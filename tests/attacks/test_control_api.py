"""Flower's Control API of a console: nobody but its person hands in a job there, and no bundle gets past the
checks of `submit`.
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import ssl
import stat
import subprocess
import sys
import tomllib
import zipfile
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from flwr.proto import control_pb2 as pb
from flwr.proto.fab_pb2 import Fab
from google.protobuf.message import Message

from bridge.common.app import FAB_LIMIT
from bridge.common.run_ids import run_id
from bridge.job import fab
from scripts.core import ROOT
from scripts.flwr_config import PROGRAM
from tests.federation import Federation
from tests.reach import outcomes

APP = ROOT / "tests" / "apps" / "numpy-add"
NOBODY = 12345
STATE = "/workspace/control-api"


class Person:
    """One person's connection: its address, certificates and token."""

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        connection = tomllib.loads((home / "config.toml").read_text())["superlink"][name]
        self.address = str(connection["address"])
        self.context = ssl.create_default_context(cafile=connection["root-certificates"])
        kept = yaml.safe_load((home / "credentials.yaml").read_text())
        self.token = b64decode(kept[f"flower.account-auth.{self.address}.oidc-access-token"]).decode()

    def call(self, name: str, request: Message, token: str | None = None) -> httpx.Response:
        headers = {"content-type": "application/protobuf", "authorization": f"Bearer {token or self.token}"}
        url = f"https://{self.address}/v1/control/{name}"
        return httpx.post(
            url, content=request.SerializeToString(), headers=headers, verify=self.context, timeout=60
        )


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp(name) for name in ("admin", "lead")}


@pytest.fixture
def people(
    federation: Federation, homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Person]:
    for name, home in homes.items():
        monkeypatch.setenv("FLWR_HOME", str(home))
        if not (home / "config.toml").exists():
            federation.shown("flwr-config", "--write", "--as", name, "--name", name)
    return {name: Person(home, name) for name, home in homes.items()}


def jobs(federation: Federation) -> list[str]:
    return [str(job["job_id"]) for job in federation.must("jobs")["jobs"]]


def test_another_account_of_the_machine_cannot_submit_as_you(
    federation: Federation, people: dict[str, Person], tmp_path: Path
) -> None:
    """It knows the port and the certificate, which are no secrets, and runs Flower's own command."""
    admin = people["admin"]
    before = jobs(federation)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("config.toml", "flowerbed-admin.pem"):
        text = (admin.home / name).read_text().replace(str(admin.home), str(theirs))
        (theirs / name).write_text(text)
    program = Path(sys.executable).with_name("flwr")
    environ = {**os.environ, "FLWR_HOME": str(theirs), "COLUMNS": "200"}
    words = [str(program), "run", str(APP), "admin"]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "You are not logged in" in done.stderr, done
    assert jobs(federation) == before
    # And the token is in a file that only its owner reads.
    credentials = admin.home / "credentials.yaml"
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o600


@pytest.mark.parametrize("token", ["", "x", "none", "' or 1=1", "a" * 43])
def test_a_wrong_token_is_refused(people: dict[str, Person], token: str) -> None:
    answer = people["admin"].call("list-runs", pb.ListRunsRequest(), token or "-")
    assert answer.status_code == 401 and "./flowerbed flwr-config --write" in answer.json()["detail"]


def test_a_token_works_for_one_person_only(people: dict[str, Person]) -> None:
    assert people["lead"].call("list-runs", pb.ListRunsRequest()).status_code == 200
    answer = people["admin"].call("list-runs", pb.ListRunsRequest(), people["lead"].token)
    assert answer.status_code == 401


def test_only_this_machine_can_connect(federation: Federation, people: dict[str, Person]) -> None:
    port = int(people["admin"].address.rsplit(":", 1)[1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        own = probe.getsockname()[0]
    with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
        socket.create_connection((own, port), 3).close()


def test_no_container_reaches_it(federation: Federation, people: dict[str, Person]) -> None:
    """An app runs in those of the server and the sites. A console opens no port, and is in no network with
    what carries Flower's command line.
    """
    inspected = subprocess.run(
        ["docker", "inspect", federation.container("flwr.admin")], capture_output=True, text=True, check=True
    )
    networks = json.loads(inspected.stdout)[0]["NetworkSettings"]["Networks"].values()
    places = [
        f"{network[key]}:{port}"
        for network in networks
        for key in ("IPAddress", "Gateway")
        for port in (9093, 9094)
    ]
    places += [
        f"{name}:{port}" for name in ("flwr.admin", "flwr.lead", "admin", "lead") for port in (9093, 9094)
    ]

    def open_ones(service: str) -> list[str]:
        found = outcomes(federation, service, places)
        return [place for place in found if found[place] == "open"]

    services = ("server", "site-1", "admin")
    with ThreadPoolExecutor() as pool:
        found = dict(zip(services, pool.map(open_ones, services), strict=True))
    assert found == {service: [] for service in services}


def test_its_container_holds_no_kit_and_no_token(federation: Federation, people: dict[str, Person]) -> None:
    found = federation.exec(
        "flwr.admin", "sh", "-c", "ls /kit /workspace/startup/ 2>&1; find /flwr -type f; env"
    )
    assert "client.key" not in found and "No such file" in found
    assert people["admin"].token not in found
    # Nobody but the console's user reaches its socket, and a token is kept as its hash.
    modes = federation.exec("admin", "stat", "-c", "%a %u", "/flwr", "/flwr/socket", STATE).split("\n")
    assert modes[:3] == ["700 10001", "600 10001", "700 10001"]
    assert people["admin"].token not in federation.exec("admin", "sh", "-c", f"cat {STATE}/*.*")


def bundle(change: Callable[[dict[str, bytes]], object]) -> bytes:
    """The FAB of an app, with other files in it."""
    files = fab.files(fab.build(APP))
    change(files)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def no_pyproject(files: dict[str, bytes]) -> None:
    del files["pyproject.toml"]


def syntax_error(files: dict[str, bytes]) -> None:
    files["numpyadd/server_app.py"] = b"def ("


def other_module(files: dict[str, bytes]) -> None:
    files["pyproject.toml"] = files["pyproject.toml"].replace(b"server_app:app", b"nowhere:app")


def bomb(files: dict[str, bytes]) -> None:
    files["zeros.json"] = b"0" * (300 * 1024 * 1024)


def nested(files: dict[str, bytes]) -> None:
    files["pyproject.toml"] = b"a = " + b"[" * 100_000


def requirement_with_option(files: dict[str, bytes]) -> None:
    line = rb'dependencies = ["numpy\n--index-url=https://evil.example"]'
    files["pyproject.toml"] = re.sub(
        rb"dependencies = \[.*?\]", lambda _: line, files["pyproject.toml"], flags=re.DOTALL
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a Flower App Bundle"),
        (b"no zip", "is not a Flower App Bundle"),
        (no_pyproject, "has no pyproject.toml"),
        (syntax_error, "syntax error"),
        (other_module, "there is no numpyadd/nowhere.py"),
        (bomb, "bytes, at most 268435456 are allowed"),
        (nested, "is not valid TOML"),
        (requirement_with_option, "is not a valid requirement"),
        (b"x" * (FAB_LIMIT + 1), "expected at most 10485760"),
    ],
    ids=lambda value: getattr(value, "__name__", "bytes") if not isinstance(value, str) else "",
)
def test_a_hostile_bundle_is_refused_and_leaves_nothing(
    federation: Federation, people: dict[str, Person], content: Any, said: str
) -> None:
    before = jobs(federation)
    made = content if isinstance(content, bytes) else bundle(content)
    answer = people["admin"].call("start-run", pb.StartRunRequest(fab=Fab(content=made)))
    assert answer.status_code == 400 and said in answer.json()["detail"], answer.text
    assert jobs(federation) == before
    assert federation.exec("admin", "sh", "-c", "ls /workspace/tmp").strip() == ""


def test_a_link_to_results_is_good_once(federation: Federation, people: dict[str, Person]) -> None:
    job = federation.submit("numpy-add", "--rounds", "1")
    federation.must("wait", job)
    answer = pb.PullArtifactsResponse()
    answer.ParseFromString(
        people["admin"].call("pull-artifacts", pb.PullArtifactsRequest(run_id=run_id(job))).content
    )
    statuses = [httpx.get(answer.url, verify=people["admin"].context).status_code for _ in range(2)]
    assert statuses == [200, 403]


def test_a_login_is_worth_nothing_before_its_approval(
    federation: Federation, people: dict[str, Person]
) -> None:
    admin = people["admin"]
    details = pb.GetLoginDetailsResponse()
    details.ParseFromString(admin.call("get-login-details", pb.GetLoginDetailsRequest(), "-").content)
    request = pb.GetAuthTokensRequest(device_code=details.device_code)
    answer = pb.GetAuthTokensResponse()
    answer.ParseFromString(admin.call("get-auth-tokens", request, "-").content)
    assert not answer.access_token
    assert admin.call("list-runs", pb.ListRunsRequest(), details.device_code).status_code == 401
    code = details.device_code.partition(".")[0]
    # Another person's approval is for another person.
    outcome = federation.verb("flwr-config", "--approve", code, "--as", "lead")
    assert outcome.code == 2 and "no login waits for the code" in outcome.value["error"]
    federation.must("flwr-config", "--approve", code)
    answer.ParseFromString(admin.call("get-auth-tokens", request, "-").content)
    assert admin.call("list-runs", pb.ListRunsRequest(), answer.access_token).status_code == 200
    assert admin.call("get-auth-tokens", request, "-").status_code == 401


def test_revoked_logins_are_over(federation: Federation, people: dict[str, Person]) -> None:
    assert people["lead"].call("list-runs", pb.ListRunsRequest()).status_code == 200
    assert federation.must("flwr-config", "--revoke", "--as", "lead")["revoked"] >= 1
    assert people["lead"].call("list-runs", pb.ListRunsRequest()).status_code == 401
    # Nor does another user in the container give out a token.
    container = federation.container("lead")
    command = ["docker", "exec", "-u", str(NOBODY), container, *PROGRAM, '{"do": "token"}']
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
