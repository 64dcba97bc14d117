"""Sites report their state to the server, each for itself, and the reply carries what is newer."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from nvflare.apis.client import Client
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message
from nvflare.fuel.sec.authz import AuthorizationService
from nvflare.private.defs import CellMessageHeaderKeys

from bridge.common import site_report
from bridge.common.meta import REVOKED_FILE
from bridge.common.spool import Spool
from bridge.flare import relay_reporter, revocation, site_data, site_facts, site_reporter, site_reports
from bridge.flare.joins import JOINS
from bridge.flare.revocation import Revoked
from bridge.flare.site_reporter import ReportLink, SiteReporter
from bridge.flare.site_reports import SiteReports, SiteReportsCommand, is_relay
from scripts import site_table, terminal


class Server:
    """Takes the place of FLARE's engine, server and cell. Two sites are registered, one behind a relay."""

    def __init__(self) -> None:
        self.clients = {}
        for token, name, fqcn in (
            ("t1", "site-1", "site-1"),
            ("t2", "site-2", "relay-1.site-2"),
            # A console that claims to be a site.
            ("t3", "lead@flowerbed.example", "_admin_1"),
        ):
            self.clients[token] = Client(name, token)
            self.clients[token].set_fqcn(fqcn)
        self.callbacks: dict[str, Any] = {}
        self.disabled: set[str] = set()
        manager = SimpleNamespace(clients=self.clients, is_client_disabled=self.disabled.__contains__)
        self.server = SimpleNamespace(cell=self, client_manager=manager)
        self.core_cell = self
        self.job_runner = None
        self.reports = SiteReports()

    def get_component(self, name: str) -> None:
        return None

    def watch(self) -> SiteReports:
        self.reports.watch(self)
        return self.reports

    def register_request_cb(self, channel: str, topic: str, cb: Any) -> None:
        assert channel == site_report.CHANNEL
        self.callbacks[topic] = cb

    def say(
        self,
        body: Any,
        name: str = "site-1",
        token: str = "t1",
        origin: str = "site-1",
        topic: str = site_report.REPORT,
    ) -> Message:
        headers = {
            CellMessageHeaderKeys.CLIENT_NAME: name,
            CellMessageHeaderKeys.TOKEN: token,
            MessageHeaderKey.ORIGIN: origin,
            MessageHeaderKey.TOPIC: topic,
        }
        reply: Message = self.callbacks[topic](Message(headers, body))
        return reply


def code(reply: Message) -> str:
    return str(reply.get_header(MessageHeaderKey.RETURN_CODE))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr("bridge.flare.site_reports.APART", 0.0)
    return Server()


def test_the_last_report_of_each_site_is_kept_with_its_age(server: Server) -> None:
    reports = server.watch()
    for uptime in (1, 2):
        assert code(server.say(site_report.dumped({"uptime_seconds": uptime}))) == ReturnCode.OK
    behind = site_report.dumped({"clock": time.time() + 7, "round_trip_seconds": 0.0})
    assert code(server.say(behind, "site-2", "t2", "relay-1.site-2")) == ReturnCode.OK
    first, second = reports.now()
    assert (first["name"], first["report"]) == ("site-1", {"uptime_seconds": 2})
    assert first["reported_seconds"] < 5 and first["clock_ahead_seconds"] is None
    assert second["name"] == "site-2" and second["clock_ahead_seconds"] == pytest.approx(7, abs=1)


def test_a_clock_that_is_infinitely_ahead_is_no_number(server: Server) -> None:
    reports = server.watch()
    far = site_report.dumped({"clock": 1.7e308, "round_trip_seconds": 1.7e308})
    assert code(server.say(far)) == ReturnCode.OK
    (known,) = reports.now()
    assert known["clock_ahead_seconds"] is None


def test_a_site_reports_for_itself_only(server: Server) -> None:
    reports = server.watch()
    server.say(site_report.dumped({"uptime_seconds": 1}))
    forged = site_report.dumped({"name": "site-1", "uptime_seconds": 9})
    refused = str(ReturnCode.UNAUTHENTICATED)
    # Another site's name with the own token, or a job's process of the site, or a person, or an old token.
    assert code(server.say(forged, "site-1", "t2", "relay-1.site-2")) == refused
    assert code(server.say(forged, "site-2", "t2", "site-1")) == refused
    assert code(server.say(forged, "site-1", "t1", "site-1.4711")) == refused
    assert code(server.say(forged, "lead@flowerbed.example", "t3", "_admin_1")) == refused
    assert code(server.say(forged, "site-1", "old", "site-1")) == refused
    # Its own report changes its own entry.
    assert code(server.say(forged, "site-2", "t2", "relay-1.site-2")) == ReturnCode.OK
    assert {one["name"]: one["report"] for one in reports.now()} == {
        "site-1": {"uptime_seconds": 1},
        "site-2": {"uptime_seconds": 9},
    }


def test_a_relay_reports_for_itself_only(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLARE keeps no session of a relay. It has checked that the token is signed for the name."""
    for name, file in (("relay-1", "server.crt"), ("server", "server.crt"), ("site-1", "client.crt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    monkeypatch.setattr("bridge.flare.site_reports.is_relay", lambda name: is_relay(name, tmp_path))
    reports = server.watch()
    assert code(server.say(b'{"uptime_seconds": 1}', "relay-1", "t", "relay-0.relay-1")) == ReturnCode.OK
    (known,) = reports.now()
    assert (known["name"], known["kind"]) == ("relay-1", "relay")
    refused = str(ReturnCode.UNAUTHENTICATED)
    for name, origin in (
        # A site or a job behind the relay, and names that are no relay's.
        ("relay-1", "relay-1.site-2"),
        ("relay-1", ""),
        ("server", "server"),
        ("site-1", "site-1"),
        ("relay-2", "relay-2"),
    ):
        assert code(server.say(b"{}", name, "t", origin)) == refused, name
    assert not is_relay("../relay-1", tmp_path / "site-1") and not is_relay(None, tmp_path)
    server.disabled.add("relay-1")
    assert code(server.say(b"{}", "relay-1", "t", "relay-1")) == refused
    assert reports.now()[0]["report"] == {"uptime_seconds": 1}


def test_a_relay_hears_who_was_removed_and_a_site_which_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sha256:" + "a" * 64
    (tmp_path / REVOKED_FILE).write_text(json.dumps({"revoked": ["site-9", key]}))
    monkeypatch.setattr(site_reports, "REVOCATIONS", Revoked(tmp_path))
    monkeypatch.setattr(site_reports, "is_relay", lambda name: name == "relay-1")
    assert site_reports.tell_revoked("relay-1", {}) == {"revoked": [key, "site-9"]}
    # A site behind a relay has to know the keys of removed relays, and no names.
    assert site_reports.tell_revoked("site-1", {}) == {"revoked": [key]}
    assert site_reports.tell_revoked in site_reports.ANSWERS
    assert revocation.take in relay_reporter.RELAY_TAKERS and revocation.take in site_reporter.TAKERS


def test_a_removed_site_reports_no_more(server: Server) -> None:
    reports = server.watch()
    server.disabled.add("site-1")
    assert code(server.say(b"{}")) == ReturnCode.UNAUTHENTICATED and reports.now() == []


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"nonsense", b"[" * 60_000, b" " * 70_000 + b"{}", {"uptime_seconds": 1}, None]
)
def test_what_is_no_report_is_refused(server: Server, body: Any) -> None:
    reports = server.watch()
    assert code(server.say(body)) == ReturnCode.INVALID_REQUEST and reports.now() == []


def test_a_flood_of_reports_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    server.watch()
    assert code(server.say(b"{}")) == ReturnCode.OK
    monkeypatch.setattr(site_report, "loaded", lambda *words: pytest.fail("it was read"))
    assert code(server.say(b"{}")) == ReturnCode.SERVICE_UNAVAILABLE


def test_only_known_facts_are_kept_within_their_bounds() -> None:
    report = {
        "version": {"flare": "2.9.0\x1b]52;c;Zm9v\x07", "more": "x"},
        "disk": {"total": 10**30, "free": 5},
        "uptime_seconds": float("nan"),
        "clock": True,
        "gpus": [{"name": "G" * 1000, "memory": 1, "free": "much"}] * 1000,
        "data": "all",
        "policy": {"custom_code": False, "egress": ["any"]},
        "environments": [7, {"name": "0123", "flwr": "1.34.0"}],
        "__class__": "os.system",
    }
    found = site_report.cleaned(json.loads(json.dumps(report)))
    assert found["version"] == {"flare": r"2.9.0\x1b]52;c;Zm9v\x07"}
    assert found["disk"] == {"free": 5} and found["policy"] == {"custom_code": False}
    assert len(found["gpus"]) == site_report.LIST_LIMIT
    assert len(found["gpus"][0]["name"]) == site_report.TEXT_LIMIT and "free" not in found["gpus"][0]
    assert found["environments"] == [{"name": "0123", "flwr": "1.34.0"}]
    assert set(found) == {"version", "disk", "policy", "gpus", "environments"}


def test_each_answer_is_told_even_if_another_fails(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def fails(site: str, report: Any) -> dict[str, Any]:
        raise OSError("the disk is gone")

    server.reports.answers = [fails, lambda site, report: {"you": site, "up": report["uptime_seconds"]}]
    server.watch()
    with caplog.at_level(logging.CRITICAL):
        reply = server.say(site_report.dumped({"uptime_seconds": 3}))
    assert site_report.loaded(reply.payload, site_report.REPLY_LIMIT) == {"you": "site-1", "up": 3}


def test_other_messages_pass_the_same_door(server: Server) -> None:
    def part(site: str, body: bytes) -> bytes:
        if not body:
            raise ValueError("expected a name")
        return site.encode() + body

    server.reports.served = {"flowerbed.part": part}
    server.watch()
    assert server.say(b"/7", topic="flowerbed.part").payload == b"site-1/7"
    assert code(server.say(b"", topic="flowerbed.part")) == ReturnCode.INVALID_REQUEST
    assert code(server.say(b"x" * 70_000, topic="flowerbed.part")) == ReturnCode.INVALID_REQUEST
    forged = server.say(b"/7", "site-1", "t2", "relay-1.site-2", "flowerbed.part")
    assert code(forged) == ReturnCode.UNAUTHENTICATED


def test_sites_that_reported_long_ago_are_forgotten(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.flare.site_reports.KEPT", 1)
    reports = server.watch()
    server.say(b"{}")
    server.say(b"{}", "site-2", "t2", "relay-1.site-2")
    assert [one["name"] for one in reports.now()] == ["site-2"]


@pytest.mark.parametrize("allowed", [True, False])
def test_a_console_gets_them_with_the_right_to_check_the_status(
    server: Server, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    asked: list[str] = []

    def authorize(context: Any) -> tuple[bool, str]:
        asked.append(context.right)
        return allowed, ""

    monkeypatch.setattr(AuthorizationService, "authorize", authorize)
    monkeypatch.setattr(JOINS, "used", lambda: ["site-1"])
    reports = server.watch()
    server.say(site_report.dumped({"uptime_seconds": 1}))
    (spec,) = SiteReportsCommand(reports).get_spec().cmd_specs
    said: list[Any] = []
    conn = SimpleNamespace(
        get_prop=lambda name, default: default,
        append_error=lambda text, meta: said.append(meta),
        append_string=lambda text, meta: said.append(meta),
    )
    if spec.authz_func(conn, [spec.name]).name == "OK":
        spec.handler_func(conn, [spec.name])
    assert asked == ["check_status"]
    assert said[0]["status"] == ("ok" if allowed else "not_authorized") and ("sites" in said[0]) == allowed
    assert (said[0].get("joined") == ["site-1"]) == allowed


# At the site


class Cell:
    """Takes the place of the site's cell: answers with what the test gives."""

    def __init__(self, *replies: Message) -> None:
        self.replies, self.sent = list(replies), list[Any]()

    def send_request(self, **words: Any) -> Message:
        self.sent.append(words)
        return self.replies.pop(0)


def answer(**facts: Any) -> Message:
    return make_reply(ReturnCode.OK, "", site_report.dumped(facts))


def test_a_report_goes_to_the_server_and_its_reply_to_all_takers() -> None:
    reporter, taken, done = SiteReporter(), list[Any](), threading.Event()

    def fails(told: Any, link: ReportLink) -> None:
        raise OSError("no room")

    def takes(told: Any, link: ReportLink) -> None:
        taken.append((told, link.ask("flowerbed.part", b"1")))
        done.set()

    reporter.takers = [fails, takes]
    cell = Cell(answer(new=1), make_reply(ReturnCode.OK, "", b"part 1"))
    facts: Any = SimpleNamespace(now=lambda: {"uptime_seconds": 1}, round_trip=0.0)
    reporter.report(facts, ReportLink(cell))
    assert done.wait(10) and taken == [({"new": 1}, b"part 1")]
    assert [(sent["topic"], sent["target"]) for sent in cell.sent] == [
        (site_report.REPORT, "server"),
        ("flowerbed.part", "server"),
    ]
    assert site_report.loaded(cell.sent[0]["request"].payload, 100) == {"uptime_seconds": 1}


def test_a_slow_taker_delays_no_report() -> None:
    reporter, taken = SiteReporter(), list[Any]()
    begun, go_on = threading.Event(), threading.Event()

    def takes(told: Any, link: ReportLink) -> None:
        taken.append(told)
        begun.set()
        go_on.wait(10)

    reporter.takers = [takes]
    facts: Any = SimpleNamespace(now=dict, round_trip=0.0)
    for number in (1, 2, 3):
        reporter.report(facts, ReportLink(Cell(answer(number=number))))
    assert begun.wait(10) and taken == [{"number": 1}]
    go_on.set()


@pytest.mark.parametrize("body", [b"[]", b"nonsense", b" " * site_report.REPLY_LIMIT + b"{}"])
def test_a_broken_or_huge_reply_is_dropped(body: bytes) -> None:
    reporter = SiteReporter()
    reporter.takers = [lambda told, link: pytest.fail("it was taken")]
    facts: Any = SimpleNamespace(now=dict, round_trip=0.0)
    with pytest.raises(ValueError, match="xpect"):
        reporter.report(facts, ReportLink(Cell(make_reply(ReturnCode.OK, "", body))))


def test_silence_of_the_server_is_survived() -> None:
    reporter = SiteReporter()
    reporter.takers = [lambda told, link: pytest.fail("nothing was told")]
    facts: Any = SimpleNamespace(now=dict, round_trip=0.0)
    for said in (ReturnCode.TIMEOUT, ReturnCode.TARGET_UNREACHABLE, ReturnCode.UNAUTHENTICATED):
        reporter.report(facts, ReportLink(Cell(make_reply(said, "", None))))
    with pytest.raises(ValueError, match="too late"):
        ReportLink(Cell(make_reply(ReturnCode.INVALID_REQUEST, "too late", None))).ask("flowerbed.part", b"")


def test_facts_that_cannot_be_found_out_are_left_out(tmp_path: Path) -> None:
    facts = site_facts.SiteFacts(tmp_path, SimpleNamespace())
    found = facts.now()
    assert {"version", "uptime_seconds", "disk", "memory", "clock", "policy"} <= set(found)
    assert "certificate" not in found and "dialled" not in found
    # All that is there passes the server's door.
    assert site_report.cleaned(found).keys() == found.keys()
    assert len(site_report.dumped(found)) < site_report.REPORT_LIMIT


def test_a_job_with_a_running_app_is_known_by_its_processes() -> None:
    """As at a site: FLARE's job process, and below it the app's, with names only."""
    job = "01234567-89ab-cdef-0123-456789abcdef"
    app = [sys.executable, "-c", "import time; time.sleep(60)", "flwr-clientapp"]
    flare = f"import subprocess; subprocess.run({app!r})"
    with subprocess.Popen([sys.executable, "-c", flare, job]) as process:
        deadline = time.monotonic() + 30
        try:
            while job not in site_facts.jobs_with_apps():
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            for child in psutil.Process(process.pid).children():
                child.kill()
    assert job not in site_facts.jobs_with_apps()


def test_a_relay_reports_no_data_and_no_jobs(tmp_path: Path) -> None:
    found = site_facts.SiteFacts(tmp_path, None).now()
    assert {"version", "disk", "memory", "clock"} <= set(found)
    assert not {"data", "jobs", "policy", "environments", "gpus"} & set(found)


def test_a_data_folder_is_looked_at(tmp_path: Path) -> None:
    assert site_data.look(str(tmp_path / "lost"))["state"] == site_data.GONE
    assert site_data.look(str(tmp_path)) == {"state": site_data.EMPTY, "files": 0, "closed": 0}
    (tmp_path / "a.csv").write_text("1\n")
    assert site_data.look(str(tmp_path)) == {"state": site_data.OK, "files": 1, "closed": 0}


def test_a_look_at_data_tells_no_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = {"files": 3, "closed": 1, "first": "/data/jane-doe.dcm", "why": "Permission denied"}
    monkeypatch.setattr("bridge.common.readable.look", lambda *words: closed)
    seen = site_data.look(str(tmp_path))
    assert seen == {"state": site_data.UNREADABLE, "files": 3, "closed": 1, "why": "Permission denied"}


def test_a_change_of_data_shows_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_data, "LOOK_EVERY", 0.05)
    (tmp_path / "a.csv").write_text("1\n")
    watch = site_data.DataWatch([str(tmp_path)])

    def becomes(state: str) -> None:
        deadline = time.monotonic() + 10
        while watch.seen()[0]["state"] != state:
            assert time.monotonic() < deadline, watch.seen()
            time.sleep(0.02)

    becomes(site_data.OK)
    (tmp_path / "a.csv").unlink()
    becomes(site_data.EMPTY)
    tmp_path.rmdir()
    becomes(site_data.GONE)


def test_a_look_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    monkeypatch.setattr(site_data, "look", lambda folder: stop.wait(10) and {})
    watch = site_data.DataWatch([str(tmp_path)])
    monkeypatch.setattr(site_data, "HANGS_AFTER", -site_data.LOOK_EVERY - 1)
    assert watch.seen()[0]["state"] == site_data.HANGS
    stop.set()


def test_the_mounts_of_data_are_found(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    line = "36 35 8:1 /x {} ro,relatime - ext4 /dev/sda1 rw\n"
    places = ("/", "/data/scans", r"/data/with\040blank", "/database", "/workspace")
    mounts.write_text("".join(map(line.format, places)))
    assert site_data.mounted(mounts) == ["/data/scans", "/data/with blank"]


# The spool


def test_a_file_in_the_spool_is_whole_and_bounded(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit=100_000)
    assert spool.is_there
    assert spool.write("client.crt", b"one") and not spool.write("client.crt", b"one")
    assert spool.write("client.crt", b"two") and (tmp_path / "client.crt").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["client.crt"]
    with pytest.raises(OSError, match="holds more than"):
        spool.write("large", b"x" * 100_000)
    for name in ("../client.crt", ".hidden", "a/b", "", "x" * 200):
        with pytest.raises(ValueError, match="expected a file's name"):
            spool.write(name, b"")
    assert not Spool(tmp_path / "lost").is_there


# What a person sees

REPORT: dict[str, Any] = {
    "version": {"flowerbed": "", "code": "0123456789ab", "flare": "2.9.0"},
    "certificate": {"ends": time.time() + 359.6 * 86400},
    "disk": {"total": 9 * 2**30, "free": 5 * 2**30},
    "memory": {"total": 6 * 2**30, "used": 2**30},
    "gpus": [{"name": "H200", "memory": 2**37, "free": 2**36}],
    "data": [{"folder": "/data", "state": "ok", "files": 200, "more": True}],
    "environments": [{"name": "0123", "flwr": "1.40.0"}],
    "jobs": [{"job_id": "0123456789", "status": "started", "phase": "runs the app", "seconds": 90}],
}


def seen(reports: list[dict[str, Any]], heard: dict[str, float], missing: list[str]) -> list[list[str]]:
    sites = [{"name": name, "last_seen_seconds": since} for name, since in heard.items()]
    found = site_table.table(reports, sites, missing)
    assert found is not None
    return [re.split(r"\s{2,}", line) for line in terminal.plain(found).splitlines()[1:]]


def test_every_site_is_in_the_table_wherever_it_runs() -> None:
    ill = [{"folder": "/data/a", "state": "ok"}, {"folder": "/data/b", "state": "gone"}]
    reports = [
        {"name": "site-1", "reported_seconds": 4.0, "report": REPORT},
        {"name": "site-2", "reported_seconds": 400.0, "report": {"data": ill, "gpus": [], "jobs": []}},
    ]
    rows = seen(reports, {"site-1": 3.0, "site-4": 2.0}, ["site-3"])
    version, rest = "0123456 FLARE 2.9.0", ["1 H200, 64 GB free", "200+ files", "1, flwr 1.40.0"]
    assert rows[0] == [
        *("site-1", "3 s ago", version, "360 d left", "5 GB free", "1 GB of 6 GB"),
        *rest,
        "01234567 runs the app, 90 s old",
    ]
    assert rows[1][:2] == ["site-2", "not registered, reported 7 min ago"]
    assert rows[1][-4:] == ["none", "/data/b gone", "-", "nothing"]
    assert rows[2][:2] == ["site-3", "not registered"] and rows[3][:2] == ["site-4", "2 s ago"]


def test_a_sites_long_words_leave_room_for_the_others() -> None:
    long = {"version": {"flowerbed": "x" * 200, "flare": "y" * 200}, "jobs": [{"phase": "z" * 200}] * 64}
    reports = [{"name": name, "reported_seconds": 4.0, "report": long | REPORT} for name in ("a", "b")]
    reports[0]["report"] = long
    rows = seen(reports, {"a": 3.0, "b": 3.0}, [])
    assert all(len(cell) <= site_table.LONGEST for row in rows for cell in row)


def test_each_fact_is_stated_in_the_verbs_object() -> None:
    # Each may be missing: a site could not find it out, or a relay does not have it.
    stated = {key.removeprefix("reports[].report.") for key in site_table.JSON}
    assert {f"{fact}?" for fact in site_report.FACTS} <= stated


def test_a_column_of_what_nobody_has_is_left_out() -> None:
    report = {**REPORT, "gpus": []}
    found = site_table.table([{"name": "site-1", "reported_seconds": 1.0, "report": report}], [], [])
    assert found is not None and "GPU" not in [column.header for column in found.columns]
    assert "DISK" in [column.header for column in found.columns]


def test_a_relay_is_in_the_table_though_it_is_no_site() -> None:
    relay = {"name": "relay-1", "kind": "relay", "reported_seconds": 4.0, "report": {"disk": {"free": 2**30}}}
    ((name, heard, *_),) = seen([relay], {}, [])
    assert (name, heard) == ("relay-1", "4 s ago")


def test_an_expired_certificate_is_named() -> None:
    assert site_table.certificate({"certificate": {"ends": time.time() - 3 * 3600}}) == "expired 3 h ago"


def test_a_container_without_a_limit_reports_its_machines_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(site_facts, "CGROUPS", ((limit, used),))
    machine = site_facts.memory()
    limit.write_text("max\n")
    assert site_facts.memory()["total"] == machine["total"]
    limit.write_text("1000\n")
    used.write_text("10\n")
    assert site_facts.memory() == {"total": 1000, "used": 10}
