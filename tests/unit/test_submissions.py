"""Server and sites handle a job: FLARE's own code around ours, as in their processes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import RunStatus
from nvflare.apis.workspace import Workspace
from nvflare.fuel.sec.authz import AuthorizationService
from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
from nvflare.private.fed.app.fl_app_validator import FLAppValidator
from nvflare.private.fed.server import job_cmds
from nvflare.private.fed.utils.app_authz import AppAuthzService
from nvflare.private.fed.utils.app_deployer import AppDeployer
from nvflare.private.privacy_manager import PrivacyService
from nvflare.security.security import FLAuthorizer

from bridge.common import meta
from bridge.flare.job import FlowerJob
from bridge.flare.policy import PartPolicy
from bridge.flare.submissions import JobPolicy, watch_submissions
from bridge.job import fab, settings
from tests.unit.test_contents import APP, Files, exported, zipped

SECURITY = {
    "format_version": "1.0",
    "permissions": {
        "lead": {"submit_job": "any", "byoc": "any", "server-predeployed-flwr": "any"},
        "guest": {"submit_job": "any", "byoc": "none", "server-predeployed-flwr": "any"},
    },
}


@pytest.fixture(autouse=True)
def policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AuthorizationService, "the_authorizer", FLAuthorizer("org", SECURITY))


def forbid(workspace: Path) -> None:
    """`custom_code: false` in project.yml."""
    (workspace / settings.FILE).parent.mkdir(parents=True, exist_ok=True)
    (workspace / settings.FILE).write_text(json.dumps({"custom_code": False}))


# Handed in


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the check of a job in FLARE's command: `validate(folder, zip)`."""
    monkeypatch.setattr(job_cmds, "JobMetaValidator", job_cmds.JobMetaValidator)
    watch_submissions(tmp_path / "workspace")
    return lambda content, folder="add": job_cmds.JobMetaValidator().validate(folder, content)


def test_flares_command_uses_the_name_that_is_replaced() -> None:
    """nvflare 2.9.0 `private/fed/server/job_cmds.py`."""
    source = Path(job_cmds.__file__).read_text()
    assert source.count("JobMetaValidator()") == 1
    assert "valid, error, meta = job_validator.validate(folder_name, zip_file_name)" in source


def without_the_entry(files: Files) -> bytes:
    """Make a zip that claims the existence of every folder except `custom`."""
    return zipped({**files, "app/config/": b""}, folders=False)


def test_the_mark_covers_the_content(tmp_path: Path, command: Any) -> None:
    brought, deployed = exported(tmp_path / "a"), exported(tmp_path / "b", deployed=True)
    for content in (zipped(brought), without_the_entry(brought)):
        valid, error, known = command(content)
        assert (valid, error, known.get("byoc"), known.get("flower_predeployed")) == (True, "", True, None)
    # An empty folder is no code: FLARE would take it for some.
    for content in (zipped(deployed), zipped({**deployed, "app/custom/": b""})):
        valid, error, known = command(content)
        assert (valid, error, known.get("byoc"), known.get("flower_predeployed")) == (True, "", None, True)


def test_the_environment_of_the_stored_job_is_marked(tmp_path: Path, command: Any) -> None:
    """`apps --remove` asks for it."""
    named = exported(tmp_path / "a", environment="0123456789ab")
    assert command(zipped(named))[2][meta.ENVIRONMENT] == "0123456789ab"
    assert meta.ENVIRONMENT not in command(zipped(exported(tmp_path / "b")))[2]
    known = scheduled(
        tmp_path, Store(zipped(named)), submitter_role="lead", **{meta.ENVIRONMENT: "ffffffffffff"}
    )[1]
    assert known[meta.ENVIRONMENT] == "0123456789ab"


def test_nobody_claims_another_app(tmp_path: Path, command: Any) -> None:
    """The server writes what Flower's command line shows of a job's app."""
    files = exported(tmp_path)
    valid, error, known = command(zipped(files))
    assert valid, error
    content = next(content for path, content in files.items() if path.endswith(fab.NAME))
    assert known[meta.APP] == {
        "id": "flowerbed/numpy-add",
        "version": "1.0.0",
        "hash": fab.sha256(content),
    }
    claimed = json.loads(files["meta.json"]) | {meta.APP: {"id": "a/b", "version": "9", "hash": "0"}}
    valid, error, _ = command(zipped(files | {"meta.json": json.dumps(claimed).encode()}))
    assert not valid and meta.APP in error


def test_forbidden_content_of_a_job_is_refused_at_once(tmp_path: Path, command: Any) -> None:
    files = exported(tmp_path, deployed=True)
    files["app/config/evil.so"] = b"x"
    valid, error, known = command(zipped(files))
    assert not valid and "'app/config/evil.so'" in error and known == {}
    # FLARE's own findings stay.
    files = exported(tmp_path / "b", deployed=True)
    files["meta.json"] = files["meta.json"].replace(b'"min_clients": 1', b'"min_clients": 0')
    valid, error, _ = command(zipped(files))
    assert not valid and "min_clients 0 must be positive" in error


def test_a_server_that_takes_no_code_says_so_at_once(tmp_path: Path, command: Any) -> None:
    forbid(tmp_path / "workspace")
    valid, error, _ = command(without_the_entry(exported(tmp_path / "a")))
    assert not valid and error == f"the server refused the job: {meta.NO_CUSTOM_CODE}"
    assert command(zipped(exported(tmp_path / "b", deployed=True)))[0]
    (tmp_path / "workspace" / settings.FILE).write_text("{")
    assert not command(zipped(exported(tmp_path / "c")))[0], "a broken setting lets nothing in"


# Scheduled


class Store:
    """FLARE's job manager."""

    def __init__(self, content: Any) -> None:
        self.content = content
        self.noted: dict[str, Any] = {}
        self.status = ""

    def get_content(self, known: dict[str, Any], fl_ctx: FLContext) -> Any:
        return self.content

    def update_meta(self, job: str, values: dict[str, Any], fl_ctx: FLContext) -> None:
        self.noted |= values

    def set_status(self, job: str, status: RunStatus, fl_ctx: FLContext) -> None:
        self.status = status.value


def scheduled(workspace: Path, store: Store, **known: Any) -> tuple[str, dict[str, Any]]:
    """Let FLARE be about to schedule a job. Return the objection, and the meta that goes to the sites."""
    job = {
        "job_id": "j-1",
        "job_folder_name": "add",
        "submitter_org": "org",
        "submitter_name": "ann@x",
    } | known
    engine = SimpleNamespace(
        args=SimpleNamespace(workspace=str(workspace)),
        get_component=lambda name: store if name == SystemComponents.JOB_MANAGER else None,
    )
    context = FLContext()
    context.put(key="__engine__", value=engine, private=True, sticky=False)
    context.get_engine = lambda *_, **__: engine
    context.set_prop(FLContextKey.JOB_META, job, private=True, sticky=False)
    JobPolicy().handle_event(EventType.BEFORE_CHECK_CLIENT_RESOURCES, context)
    return str(context.get_prop(FLContextKey.JOB_BLOCK_REASON) or ""), job


def test_the_stored_job_decides_and_not_its_mark(tmp_path: Path) -> None:
    brought, deployed = (
        Store(zipped(exported(tmp_path / "a"))),
        Store(zipped(exported(tmp_path / "b", deployed=True))),
    )
    reason, known = scheduled(tmp_path, brought, submitter_role="lead", flower_predeployed=True)
    assert (reason, known.get("byoc"), known.get("flower_predeployed")) == ("", True, None)
    reason, known = scheduled(tmp_path, deployed, submitter_role="guest", byoc=True)
    assert (reason, known.get("byoc"), known.get("flower_predeployed")) == ("", None, True)


@pytest.mark.parametrize("how", ["role", "server", "contents", "no zip", "no role", "store"])
def test_a_job_that_may_not_run_is_closed_with_the_reason(tmp_path: Path, how: str) -> None:
    files = exported(tmp_path / "a")
    role = {"role": "guest", "no role": ""}.get(how, "lead")
    if how == "server":
        forbid(tmp_path)
    if how == "contents":
        files["app/config/evil.so"] = b"x"
    content = {"no zip": None, "store": 7}.get(how, zipped(files))
    store = Store(content)
    reason, known = scheduled(tmp_path, store, submitter_role=role)
    said = {"contents": "evil.so", "no zip": "could not check", "store": "could not check"}
    assert said.get(how, meta.NO_CUSTOM_CODE) in reason
    assert store.status == "FINISHED:FAILED_TO_RUN" and not known.get("byoc")
    assert store.noted == {
        meta.REASON: f"server refused the job: {reason}",
        meta.REFUSED: {"server": reason},
    }


# Deployed


def deploy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Files, *, site: str, role: str = "lead"
) -> str:
    """Deploy a participant's part like FLARE, and return its objection."""
    server = site == "server"
    validator = FLAppValidator(
        site_type="server" if server else "client",
        custom_validators=[PartPolicy("server" if server else "client")],
    )
    monkeypatch.setattr(AppAuthzService, "app_validator", validator)
    monkeypatch.setattr(PrivacyService, "is_scope_allowed", lambda scope: True)
    part = tmp_path / "handed" / "app"
    for name, content in files.items():
        if name.startswith("app/"):
            (part.parent / name).parent.mkdir(parents=True, exist_ok=True)
            (part.parent / name).write_bytes(content)
    for kit in ("startup", "local"):
        (tmp_path / "workspace" / kit).mkdir(parents=True, exist_ok=True)
    workspace = Workspace(str(tmp_path / "workspace"), site)
    # The signatures are FLARE's to check.
    for signature in part.rglob(".__nvfl_*"):
        signature.unlink()
    who = {"submitter_name": "ann@x", "submitter_org": "org", "submitter_role": role}
    content = zip_directory_to_bytes(str(part), "")
    answer = AppDeployer().deploy(workspace, "j-1", who, "app", content, FLContext())
    return str(answer or "")


@pytest.mark.parametrize("site", ["server", "site-1"])
def test_a_part_is_checked_where_it_is_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str
) -> None:
    brought, deployed = exported(tmp_path / "a"), exported(tmp_path / "b", deployed=True)
    assert deploy(tmp_path / "1", monkeypatch, brought, site=site) == ""
    assert deploy(tmp_path / "2", monkeypatch, deployed, site=site, role="guest") == ""
    assert deploy(tmp_path / "3", monkeypatch, brought, site=site, role="guest") == "BYOC not permitted"
    forbid(tmp_path / "4" / "workspace")
    assert deploy(tmp_path / "4", monkeypatch, brought, site=site) == meta.NO_CUSTOM_CODE
    forbid(tmp_path / "5" / "workspace")
    assert deploy(tmp_path / "5", monkeypatch, deployed, site=site) == ""
    with_file = {**deployed, "app/config/evil.so": b"x"}
    assert "evil.so" in deploy(tmp_path / "6", monkeypatch, with_file, site=site)
    (tmp_path / "7" / "workspace" / "local").mkdir(parents=True)
    (tmp_path / "7" / "workspace" / settings.FILE).write_text("{")
    assert "cannot be read" in deploy(tmp_path / "7", monkeypatch, brought, site=site)


def test_a_job_keeps_its_app_however_often_it_is_exported(tmp_path: Path) -> None:
    job = FlowerJob(APP, name="add")
    for folder in ("one", "two"):
        job.export_job(str(tmp_path / folder))
        assert (tmp_path / folder / "add/app/custom" / fab.NAME).read_bytes() == fab.build(APP)
