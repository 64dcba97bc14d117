"""Find the job that the user names, and the requested part of its log."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.fuel.flare_api import api_spec

from bridge.common import meta as keys
from bridge.common import summary
from bridge.flare.console import jobs, logs
from bridge.flare.console.call import ConsoleError
from tests.unit.asking import Asked

IDS = ("aa11", "aa22", "bb33")


class Session:
    """A server with jobs. Their log grows at each look."""

    def __init__(self) -> None:
        self.jobs = [
            {"job_id": job, "job_name": "add", "status": "RUNNING", "submit_time": str(time)}
            for job, time in zip(IDS, (10, 300, 20), strict=True)
        ]
        self.log: list[str] = []
        self.statuses = ["RUNNING"]
        self.at: str | None = ""
        self.sites: list[str] = []

    def list_jobs(self, detailed: bool, id_prefix: str = "") -> list[dict[str, Any]]:
        return [job for job in self.jobs if str(job["job_id"]).startswith(id_prefix)]

    def get_job_meta(self, job: str) -> dict[str, Any]:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return {"status": status, "flowerbed_sites": self.sites}

    def get_job_logs(self, job: str, target: str) -> dict[str, Any]:
        self.at = self.log.pop(0) if self.log else self.at
        return {"logs": {} if self.at is None else {target: self.at}}


def resolved(job: str, session: Session | None = None) -> str:
    call = Asked(session or Session())
    jobs.resolve(call, job)
    return str(call.lines[0]["job_id"])


def test_a_beginning_that_fits_one_job_is_enough() -> None:
    assert resolved("b") == "bb33" and resolved("aa2") == "aa22" and resolved("aa11") == "aa11"


def test_latest_is_the_job_that_was_submitted_last() -> None:
    assert resolved("latest") == "aa22"
    none = Session()
    none.jobs = []
    with pytest.raises(ConsoleError, match="there are no jobs yet"):
        resolved("latest", none)


def test_a_beginning_that_fits_several_is_an_error_that_lists_them() -> None:
    with pytest.raises(ConsoleError, match=r"'aa' is ambiguous\. It matches 2 jobs") as failed:
        resolved("aa")
    assert failed.value.code == 2 and failed.value.facts == {"jobs": ["aa11", "aa22"]}
    assert "aa11  add  RUNNING  submitted 1970-01-01 00:00:10 UTC" in str(failed.value)
    assert "bb33" not in str(failed.value)
    named = Session()
    named.jobs = [{"job_id": job, "name": "sum", "status": "RUNNING"} for job in IDS]
    with pytest.raises(ConsoleError, match="aa11  sum  RUNNING"):
        resolved("aa", named)


def test_a_beginning_that_fits_none_says_where_the_jobs_are() -> None:
    with pytest.raises(ConsoleError, match=r"No job c\. .*flowerbed jobs"):
        resolved("c")


def read(session: Session, **options: Any) -> str:
    call = Asked(session, sleep=lambda seconds: None)
    logs.logs(call, "aa11", **options)
    return call.text


def test_the_end_of_a_log() -> None:
    for tail, text in ((2, "2\n3\n"), (0, ""), (9, "1\n2\n3\n")):
        session = Session()
        session.log = ["1\n2\n3\n"]
        assert read(session, tail=tail) == text


def test_the_lines_of_the_last_seconds() -> None:
    now = datetime.now()
    stamps = [f"{now - timedelta(seconds=ago):%Y-%m-%d %H:%M:%S},123" for ago in (500, 100, 10)]
    session = Session()
    session.log = [f"{stamps[0]} - old\n  more of it\n{stamps[1]} - new\n  of it\n{stamps[2]} - last\n"]
    assert read(session, since=200.0) == f"{stamps[1]} - new\n  of it\n{stamps[2]} - last\n"
    assert read(session, since=200.0, tail=1) == f"{stamps[2]} - last\n"
    assert read(session, since=1.0) == ""


def test_a_log_is_followed_to_the_end_of_its_job() -> None:
    session = Session()
    session.statuses = ["RUNNING", "RUNNING", "RUNNING", "FINISHED:COMPLETED"]
    session.log = ["one\n", "one\ntwo\n", "one\ntwo\n", "one\ntwo\nthree\n"]
    assert read(session, follow=True) == "one\ntwo\nthree\n"
    session.statuses, session.log = ["RUNNING", "FINISHED:COMPLETED"], ["one\ntwo\n", "one\ntwo\nthree\n"]
    assert read(session, follow=True, tail=1) == "two\nthree\n"


def test_a_log_that_is_away_for_a_moment_is_not_shown_twice() -> None:
    """FLARE moves it into its store when the job ends."""
    session = Session()
    session.statuses = [*["RUNNING"] * 4, "FINISHED:COMPLETED"]
    session.log = ["one\n", "", "one\ntwo\n", "one\n", "one\ntwo\nthree\n"]
    assert read(session, follow=True) == "one\ntwo\nthree\n"


def test_a_line_may_begin_with_any_time() -> None:
    """A time with a zone cannot be compared with one without."""
    session = Session()
    session.log = ["2026-01-31T12+01:00 is a time\n2026-99-31 12:00:00\n9999-01-31 12:00:00,1 - last\n"]
    assert read(session, since=60.0) == "9999-01-31 12:00:00,1 - last\n"


def test_a_log_is_followed_when_flare_brings_its_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLARE brings the last 5 MiB: the text no longer grows, and its beginning goes."""
    monkeypatch.setattr(logs, "KNOWN_BY", 4)
    cut = "... output truncated to last 8 bytes ...\n"
    session = Session()
    session.statuses = [*["RUNNING"] * 4, "FINISHED:COMPLETED"]
    session.log = [
        "one\ntwo\n",
        f"{cut}two\nthr\n",
        f"{cut}thr\nfou\n",
        f"{cut}fou\nfiv\n",
        f"{cut}six\nsev\n",
    ]
    # The last look shares nothing with the one before: it is shown whole, and marked as an end.
    assert read(session, follow=True) == f"one\ntwo\nthr\nfou\nfiv\n{cut}six\nsev\n"
    assert logs.added("one\ntwo\n", "new\n") == "new\n", "begun anew"


def test_a_log_that_is_not_there_yet_is_waited_for_and_one_that_never_comes_is_an_error() -> None:
    session = Session()
    session.at = None
    session.statuses = ["SUBMITTED", "RUNNING", "FINISHED:COMPLETED"]
    with pytest.raises(ConsoleError, match="there is no log of site-1 for job aa11"):
        read(session, follow=True, site="site-1")


class Ended(Session):
    """An ended job. FLARE puts its results into one folder for all clients."""

    def __init__(self, folder: Path, *logs: str) -> None:
        super().__init__()
        self.statuses = ["FINISHED:COMPLETED"]
        self._folder, self._logs = folder, logs

    def download_job_result(self, job: str, folder: str) -> str:
        assert jobs.downloading.locked()
        (self._folder / "workspace").mkdir(exist_ok=True)
        return str(self._folder)

    def get_job_logs(self, job: str, target: str) -> dict[str, Any]:
        return {"logs": dict.fromkeys(self._logs, "a line")}


def downloaded(call: Asked) -> list[str]:
    jobs.download(call, "aa11")
    with tarfile.open(fileobj=io.BytesIO(b"".join(call.said))) as tar:
        return [name for name in tar.getnames() if "logs/" in name]


def test_a_log_without_a_sites_name_is_left_out(tmp_path: Path) -> None:
    session = Ended(tmp_path, "server", "site-1", "../../out", "/x", "n" * 255, "")
    assert [Path(name).name for name in downloaded(Asked(session))] == ["server.log", "site-1.log"]


def summarized(folder: Path, events: str) -> dict[str, bytes]:
    """The files of a download with a summary."""
    (folder / "workspace").mkdir(parents=True)
    (folder / "workspace" / "events.jsonl").write_text(events)
    call = Asked(Ended(folder))
    jobs.download(call, "aa11", summarized=True)
    with tarfile.open(fileobj=io.BytesIO(b"".join(call.said))) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


ROUND = '{"event": "round", "round": 1, "t": 5.0}\n'


def test_a_summary_comes_with_the_results_when_it_is_asked_for(tmp_path: Path) -> None:
    found = summarized(tmp_path, ROUND)
    told = json.loads(found["summary.json"])
    assert told["status"] == "FINISHED:COMPLETED" and [entry["round"] for entry in told["rounds"]] == [1]
    assert found["workspace/events.jsonl"].decode() == ROUND


def test_events_that_cannot_be_summarized_keep_no_results_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*words: Any) -> dict[str, Any]:
        raise OverflowError("too large")

    monkeypatch.setattr(jobs, "SUMMARIZED_LIMIT", len(ROUND) - 1)
    found = summarized(tmp_path / "large", ROUND)
    assert "workspace/events.jsonl" in found and "summary.json" not in found
    monkeypatch.setattr(jobs, "SUMMARIZED_LIMIT", len(ROUND))
    monkeypatch.setattr(summary, "summarize", broken)
    found = summarized(tmp_path / "broken", ROUND)
    assert "workspace/events.jsonl" in found and "summary.json" not in found
    assert "events.jsonl has 41 bytes, more than 40" in caplog.text and "too large" in caplog.text


def test_a_slow_reader_holds_up_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Asked(Ended(tmp_path, "server"))
    held = []

    def write(data: bytes) -> None:
        held.append(jobs.downloading.locked())
        call.said.append(data)

    monkeypatch.setattr(call, "write", write)
    assert downloaded(call) and held and not any(held)


def test_a_site_that_is_not_in_the_job_is_an_error_that_names_those_that_are() -> None:
    session = Session()
    session.at, session.sites = None, ["site-1", "site-2"]
    for follow in (True, False):
        session.statuses = ["RUNNING", "FINISHED:COMPLETED"]
        with pytest.raises(
            ConsoleError, match=r"No site 'site-9' in this job\. There are: server, site-1, site-2"
        ):
            read(session, follow=follow, site="site-9")


def test_sites_come_in_order() -> None:
    clients = [SimpleNamespace(name=name, last_connect_time=0.0) for name in ("site-2", "site-1")]
    session = Session()
    info = SimpleNamespace(client_info=clients, server_info=SimpleNamespace(status="started"))
    session.get_system_info = lambda: info  # type: ignore[attr-defined]
    reports = [{"name": "site-1", "reported_seconds": 3.0, "report": {}}]
    meta = {"sites": reports, "server_version": {}, "joined": ["site-1"]}
    session._do_command = lambda name: {"meta": meta}  # type: ignore[attr-defined]
    call = Asked(session)
    jobs.status(call)
    assert [site["name"] for site in call.lines[0]["sites"]] == ["site-1", "site-2"]
    assert call.lines[0]["reports"] == reports and call.lines[0]["joined"] == ["site-1"]


class Store(Session):
    """A server that removes jobs."""

    def __init__(self, **statuses: str) -> None:
        super().__init__()
        self.stored = statuses

    def get_job_meta(self, job: str) -> dict[str, Any]:
        return {"status": self.stored[job], keys.STORED: 10}

    def delete_job(self, job: str) -> None:
        if job == "bad":
            raise api_spec.AuthorizationError("user 'lead' is not authorized")
        del self.stored[job]


def test_ended_jobs_are_removed_and_the_freed_bytes_shown() -> None:
    session = Store(a="FINISHED:COMPLETED", b="FINISHED:ABORTED", c="RUNNING")
    call = Asked(session)
    jobs.remove(call, ["a", "b"])
    assert call.lines == [{"removed": ["a", "b"], "freed_bytes": 20}] and [*session.stored] == ["c"]


@pytest.mark.parametrize("status", ["SUBMITTED", "APPROVED", "DISPATCHED", "RUNNING"])
def test_no_job_is_removed_if_one_has_not_ended(status: str) -> None:
    session = Store(a="FINISHED:COMPLETED", b=status)
    with pytest.raises(
        ConsoleError, match=f"job b has not ended: it is {status}. Nothing is removed.*abort b"
    ):
        jobs.remove(Asked(session), ["a", "b"])
    assert [*session.stored] == ["a", "b"]


def test_a_refused_job_ends_it_and_removed_jobs_are_named() -> None:
    session = Store(a="FINISHED:COMPLETED", bad="FINISHED:COMPLETED", c="FINISHED:COMPLETED")
    with pytest.raises(ConsoleError, match="job bad is not removed: refused by the server") as refused:
        jobs.remove(Asked(session), ["a", "bad", "c"])
    assert refused.value.facts == {"removed": ["a"], "freed_bytes": 10, "denied": True}
    assert [*session.stored] == ["bad", "c"]
