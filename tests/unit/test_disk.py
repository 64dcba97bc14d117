"""Disks do not fill: files of jobs, what they leave, the audit log, and the logs that sites stream."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.fl_constant import ReservedKey, ReturnCode, RunProcessKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.app_common.logging import job_log_receiver
from nvflare.app_common.streamers.streamer_base import KEY_DATA, KEY_DATA_SIZE, KEY_EOF, KEY_FILE_NAME
from nvflare.fuel.sec.audit import AuditService
from nvflare.private.fed.server.job_cmds import JobCommandModule
from nvflare.private.stream_runner import HeaderKey, ObjectStreamer

from bridge.common import disk
from bridge.common.meta import EVENTS_TOPIC
from bridge.flare import audit, housekeeping, log_receiver
from bridge.job import settings

JOB, OTHER_JOB, NO_JOB = (f"{number:08d}-0000-4000-8000-000000000000" for number in (1, 2, 3))

# The files of a job that runs


def test_usage_counts_blocks_and_entries_but_not_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 100_000)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(50_000)
    (tmp_path / "link").symlink_to("/")
    assert 100_000 < disk.used(tmp_path) < 200_000
    for number in range(100):
        (tmp_path / f"{number}").touch()
    assert disk.used(tmp_path) > 100 * disk.LEAST
    assert disk.used(tmp_path / "none") == 0
    assert disk.used(tmp_path, enough=50_000) < disk.used(tmp_path)


def test_a_watch_tells_once_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "LOOK_EVERY", 0.02)
    told: list[str] = []
    said = threading.Event()

    def too_much(reason: str) -> None:
        told.append(reason)
        said.set()

    watch = disk.DiskWatch([tmp_path, tmp_path / "later"], 1_000_000, too_much)
    (tmp_path / "x").write_bytes(b"x" * 500_000)
    assert not said.wait(0.2)
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "y").write_bytes(b"x" * 600_000)
    assert said.wait(10)
    watch.close()
    assert len(told) == 1 and "limits.job_files" in told[0]


# Files that jobs leave.


def job_folder(place: Path, age: float, name: str = "") -> Path:
    folder = place / (name or str(uuid.uuid4()))
    (folder / "app").mkdir(parents=True)
    (folder / "log.txt").write_text("x")
    then = time.time() - age
    for path in (folder / "log.txt", folder / "app", folder):
        os.utime(path, (then, then))
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "workspace"


def test_the_newest_jobs_stay_and_nothing_else_is_touched(workspace: Path) -> None:
    old = [job_folder(workspace, 10_000 + n) for n in range(5)]
    left = [job_folder(workspace.parent / "tmp", 10_000 + n) for n in range(3)]
    fresh = [job_folder(workspace, age) for age in (0, 10, 600)]
    others = [job_folder(workspace, 10**6, name) for name in ("local", "startup", "store", "home")]
    given_up, under_way = [job_folder(workspace / "transfer", age) for age in (10**6, 60)]
    link = workspace / str(uuid.uuid4())
    link.symlink_to(others[0])
    removed = set(housekeeping.tidy(workspace, kept=2))
    assert removed == {*old[2:], *left[2:], given_up}
    assert all(path.is_dir() for path in [*old[:2], *left[:2], *fresh, *others, under_way, link])
    assert not any(path.exists() for path in removed)
    assert housekeeping.tidy(workspace, kept=2) == []


def test_a_job_that_runs_is_never_touched(workspace: Path) -> None:
    running, gone = job_folder(workspace, 10**6), job_folder(workspace, 10**5)
    command = [sys.executable, "-c", "import sys; sys.stdin.read()", "-n", running.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 10
        while running.name not in disk.jobs_of_processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert housekeeping.tidy(workspace, kept=0) == [gone]
        process.communicate()
    assert running.is_dir()


# The audit log


@pytest.fixture
def auditor(tmp_path: Path) -> Iterator[Any]:
    AuditService.close()
    yield AuditService.initialize(str(tmp_path / "audit.log"))
    AuditService.close()


def test_the_audit_log_is_limited_and_keeps_its_latest_lines(auditor: Any, tmp_path: Path) -> None:
    AuditService.add_event("me", "before")
    assert audit.bound(20_000) and audit.bound(20_000)
    for number in range(1000):
        # Through what others hold of it, too.
        (auditor if number % 2 else AuditService).add_event("me", f"action {number}")
    files = [tmp_path / "audit.log.1", tmp_path / "audit.log"]
    assert sum(file.stat().st_size for file in files) <= 20_000
    assert {path.name for path in tmp_path.iterdir()} == {"audit.log", "audit.log.1"}
    lines = [line for file in files for line in file.read_text().splitlines()]
    assert [line.split("[A:")[1] for line in lines] == [
        f"action {n}]" for n in range(1000 - len(lines), 1000)
    ]


def test_without_an_audit_log_there_is_no_limit(tmp_path: Path) -> None:
    AuditService.close()
    assert not audit.bound(1000)


# The logs that sites stream


class Server:
    """A part of FLARE's server that takes streams, with its own streamer and our receiver."""

    def __init__(self, workspace: Path) -> None:
        self.args = SimpleNamespace(workspace=str(workspace))
        self.run_processes = {JOB: {RunProcessKey.PARTICIPANTS: {"t": SimpleNamespace(name="site-1")}}}
        self.stored: dict[tuple[str, str, str], str] = {}
        self.streamer = ObjectStreamer(self)  # type: ignore[arg-type]
        self.manager = FLContextManager(self, "server", "", {}, {})

    def register_aux_message_handler(self, **handler: Any) -> None:
        pass

    def register_stream_processing(self, **arguments: Any) -> None:
        self.streamer.register_stream_processing(**arguments)

    def get_component(self, name: str) -> Any:
        return self

    def get_client_from_name(self, name: str) -> None:
        return None

    def get_job(self, job: str, fl_ctx: FLContext) -> Any:
        return SimpleNamespace(meta={"flowerbed_sites": ["site-9"]}) if job == OTHER_JOB else None

    def set_client_data(self, job: str, data: str, client: str, kind: str, fl_ctx: FLContext) -> None:
        self.stored[(job, client, kind)] = Path(data).read_text(errors="replace")
        Path(data).unlink()

    def stream(
        self,
        *chunks: bytes,
        name: Any = "log.txt",
        site: str = "site-1",
        job: str = JOB,
        end: bool = True,
        more: dict[str, Any] | None = None,
    ) -> list[str]:
        """Stream a log, and return the answers."""
        tx, answers = uuid.uuid4().hex, []
        parts: list[Any] = [*chunks, *([None] if end else [])]
        with self.manager.new_context() as fl_ctx:
            peer = FLContext()
            peer.set_public_props({ReservedKey.IDENTITY_NAME: site, ReservedKey.RUN_NUM: job})
            fl_ctx.set_peer_context(peer)
            for number, part in enumerate(parts):
                request = Shareable()
                request.set_header(HeaderKey.TX_ID, tx)
                request.set_header(HeaderKey.SEQ, number)
                request.set_header(HeaderKey.CHANNEL, "log_streaming")
                request.set_header(HeaderKey.TOPIC, "live_log")
                request.set_header(HeaderKey.CTX, {KEY_FILE_NAME: name, **(more or {})})
                request[KEY_DATA], request[KEY_DATA_SIZE] = part, len(part or b"")
                request[KEY_EOF] = part is None
                answers.append(self.streamer._handle_request("", request, fl_ctx).get_return_code())
        return answers


@pytest.fixture
def server(tmp_path: Path) -> Server:
    (tmp_path / "local").mkdir()
    (tmp_path / settings.FILE).write_text(json.dumps({"limits": {"log": 1000}}))
    server = Server(tmp_path)
    ours = log_receiver.LogReceiver(dest_dir=str(tmp_path / "streams"))
    with server.manager.new_context() as fl_ctx:
        ours._register("_start_run", fl_ctx)
    return server


KIND = (JOB, "site-1", "LOG_log.txt")


def test_a_log_arrives(server: Server) -> None:
    assert server.stream(b"one\n", b"two\n") == [ReturnCode.OK] * 3
    assert server.stored == {KIND: "one\ntwo\n"}


def test_a_log_without_end_is_cut_with_a_line(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = server.stream(*[b"x" * 90] * 500)
    # The site is told of no error: it has nothing to mend.
    assert set(answers) == {ReturnCode.OK}
    (log,) = server.stored.values()
    assert log.startswith("x" * 1000 + "\n") and len(log) < 1200
    assert log.count("The rest is dropped (limits.log of the server") == 1
    assert caplog.text.count("The rest is dropped") == 1
    # The log of errors has its own limit, and no more.
    server.stream(b"y" * 5000, name="error_log.txt")
    assert 1000 < len(server.stored[(JOB, "site-1", "ERRORLOG")]) < 1200


def test_a_site_chooses_no_file_of_the_server(server: Server, tmp_path: Path) -> None:
    """FLARE kept the file's path in the context that the site sends."""
    secret = tmp_path / "server.key"
    secret.write_text("PRIVATE")
    for more in (
        {job_log_receiver._KEY_RECV_PATH: str(secret)},
        {job_log_receiver._KEY_RECV_PATH: str(secret), job_log_receiver._KEY_RECV_FILE: 3},
        {"stream_done_cb": "x", "flowerbed.part": (JOB, "x", "y"), "flowerbed.open": "site-2"},
    ):
        server.stream(more=more)
        server.stream(b"x", more=more)
    assert secret.read_text() == "PRIVATE"
    assert "PRIVATE" not in json.dumps(list(server.stored.values()))


@pytest.mark.parametrize("name", ["../../x", "/x", "..", "", "a/b", "x" * 65, 3, None, "a\x1b[2K", "-x"])
def test_a_log_has_the_name_of_one(server: Server, tmp_path: Path, name: Any) -> None:
    assert ReturnCode.OK not in server.stream(b"x", name=name)
    assert server.stored == {} and not (tmp_path / "streams").exists()


@pytest.mark.parametrize(
    ("site", "job"),
    [("site-2", JOB), ("site-1", OTHER_JOB), ("site-1", NO_JOB), ("site-1", "../x"), ("", "")],
)
def test_a_log_is_of_a_job_that_the_site_takes_part_in(
    server: Server, tmp_path: Path, site: str, job: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert ReturnCode.OK not in server.stream(b"x", site=site, job=job)
    assert server.stored == {} and not (tmp_path / "streams").exists()
    assert "refused a log" in caplog.text


def test_the_log_of_a_job_that_has_just_ended_is_taken(server: Server) -> None:
    server.stream(b"late", site="site-9", job=OTHER_JOB, name="error_log.txt")
    assert list(server.stored.values()) == ["late"]


def test_streams_and_logs_of_a_site_are_bounded_and_so_are_threads(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = threading.active_count()
    for _ in range(500):
        server.stream(b"x", end=False)
    for number in range(500):
        server.stream(b"x", name=f"log{number}.txt")
    assert threading.active_count() - before <= log_receiver.SITE_STREAMS
    assert (
        len([path for path in (tmp_path / "streams").rglob("*") if path.is_file()]) <= log_receiver.JOB_LOGS
    )
    assert len([r for r in caplog.records if "refused a log" in r.getMessage()]) == 200
    for tx in list(server.streamer.tx_table):
        server.streamer._end_tx(tx, ReturnCode.TIMEOUT, FLContext())
    # Ended jobs make room.
    assert server.stream(b"x") == [ReturnCode.OK] * 2


# The audit log: repeated questions


def test_polling_is_one_audit_line_and_each_change_another(
    auditor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit.bound(10**9)
    questions = (
        "list_jobs -d",
        f"get_job_meta {JOB}",
        f"app_command {JOB} {EVENTS_TOPIC}",
        "check_status server",
        "site_reports",
    )
    others = (f"abort_job {JOB}", f"app_command {JOB} another", "_cert_login ann@x.example", "list_jobs; rm")
    for _ in range(50):
        for action in (*questions, *others):
            for user in ("ann@x.example", "ben@x.example"):
                AuditService.add_event(user, action)
    lines = (tmp_path / "audit.log").read_text().splitlines()
    assert len(lines) == 2 * len(questions) + 50 * 2 * len(others)
    before = time.monotonic()
    monkeypatch.setattr(audit, "time", SimpleNamespace(monotonic=lambda: before + audit.WRITTEN_AGAIN + 1))
    AuditService.add_event("ann@x.example", "list_jobs -d")
    assert len((tmp_path / "audit.log").read_text().splitlines()) == len(lines) + 1


def test_a_line_that_looks_like_a_question_but_says_more_is_written(auditor: Any, tmp_path: Path) -> None:
    audit.bound(10**9)
    for _ in range(2):
        AuditService.add_event("ann@x.example", "list_jobs -d", msg="refused")
        AuditService.add_event("ann][A:list_jobs -d]", "list_jobs -d")
        AuditService.add_event("ann@x.example", "list_jobs -d]\n[E:1]")
    assert (tmp_path / "audit.log").read_text().count("list_jobs") == 8


@pytest.mark.parametrize("name", ["serverapp", "..", "../other", "/etc", "site-9", "site-1/../serverapp"])
def test_a_sites_name_reads_no_other_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ServerApp may leave a link to the server's key, which FLARE would show as the log of a site."""
    monkeypatch.setattr(
        JobCommandModule, "_read_live_client_job_log", JobCommandModule._read_live_client_job_log
    )
    log_receiver.show_logs_of_sites_alone()
    job = tmp_path / "job"
    for folder in (job / "serverapp", job / "site-1", tmp_path / "other"):
        folder.mkdir(parents=True)
        (folder / "log.txt").write_text("a line")
    (job / "serverapp" / "log.txt").unlink()
    (tmp_path / "server.key").write_text("secret")
    (job / "serverapp" / "log.txt").symlink_to(tmp_path / "server.key")
    sites = {"t": SimpleNamespace(name="site-1")}
    engine = SimpleNamespace(
        run_processes={"job": {RunProcessKey.PARTICIPANTS: sites}},
        get_workspace=lambda: SimpleNamespace(get_log_root=lambda job: str(tmp_path / job)),
    )
    manager = FLContextManager(engine=engine, identity_name="server", job_id="")
    engine.new_context = manager.new_context
    assert JobCommandModule()._read_live_client_job_log(engine, "job", name) is None
    assert JobCommandModule()._read_live_client_job_log(engine, "job", "site-1") == "a line"
