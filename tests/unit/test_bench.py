"""The benchmark's pure parts, its clock inside a real ServerApp, and its meter on real processes."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from dev.benchmarks import clock, comparison, picture, report
from dev.benchmarks.marked import Programs, RunFailed, having
from dev.benchmarks.meter import Meter
from dev.benchmarks.timed import ENTRY, NoRounds, Rounds, read_rounds, timed_copy
from scripts.__main__ import main


def context(partition: int, config: dict[str, Any]) -> Context:
    return Context(
        run_id=1,
        node_id=partition,
        node_config={"partition-id": partition},
        state=RecordDict(),
        run_config=config,
    )


class DirectGrid(Grid):
    """Two nodes. Asking one calls its ClientApp in place."""

    def __init__(self, app: ClientApp) -> None:
        self.app = app
        self.run_id = 1

    def set_run(self, run_id: int) -> None: ...

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [1, 2]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return [self.app(message, context(message.metadata.dst_node_id - 1, {})) for message in messages]


def test_the_clock_times_the_rounds_of_an_app_that_knows_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = timed_copy(comparison.ADDER, tmp_path / "adder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(app)
    serverapp: ServerApp = __import__(ENTRY).app
    clientapp: ClientApp = __import__("adder.client_app", fromlist=["app"]).app
    config = {"num-server-rounds": 2, "min-available-nodes": 2, "arrays": 3, "numbers": 100_000}
    for key in ("_run_id", "_node_id", "_task_id"):  # Flower 1.41 sets them in a ServerApp's process.
        monkeypatch.setattr(TaskIdentity, key, 1)
    begin = time.time()

    serverapp(DirectGrid(clientapp), context(0, config))  # Raises unless every number has grown as it must.

    rounds = read_rounds(tmp_path, 2)
    assert begin <= rounds.begins[0] <= rounds.begins[1] <= rounds.end <= time.time()
    assert sum(rounds.each) == pytest.approx(rounds.whole)
    with pytest.raises(NoRounds, match="expected 3 rounds, found 2"):
        read_rounds(tmp_path, 3)


def test_an_app_that_adds_wrongly_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(comparison.ADDER)
    adder = __import__("adder.server_app", fromlist=["app"])
    arrays = [array + 3 for array in adder.beginning(2, 100_000)]
    adder.check(arrays, 3.0)
    arrays[1][-1] += 1

    with pytest.raises(RuntimeError, match="array 1: expected every number to grow by 3"):
        adder.check(arrays, 3.0)


def test_no_two_chunks_of_a_large_model_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(comparison.ADDER)
    adder = __import__("adder")
    chunk = 1_310_720  # 5 MiB of float32, the size of Flower's chunks.
    model = adder.beginning(4, 2 * chunk)
    parts = [hash(array[k * chunk : (k + 1) * chunk].tobytes()) for array in model for k in (0, 1)]

    assert len(set(parts)) == 8


def test_rounds_that_never_began_have_no_figure(tmp_path: Path) -> None:
    with pytest.raises(NoRounds, match="no round began"):
        read_rounds(tmp_path, 1)
    (tmp_path / clock.FILE).write_text('{"round": 1, "t": 5.0}\n')
    with pytest.raises(NoRounds, match="the last one did not end"):
        read_rounds(tmp_path, 1)


def test_seconds_of_rounds() -> None:
    rounds = Rounds([10.0, 12.5, 13.0], 14.0)

    assert rounds.each == [2.5, 0.5, 1.0]
    assert rounds.whole == 4.0


def test_an_entry_has_medians_and_ratios_to_plain() -> None:
    values = {"plain": [8.0, 6.0, 7.0], "processes": [2.1, 0.7, 1.4], "containers": [3.5]}

    entry = report.entry(values, {}, "seconds a round")

    assert [entry[name] for name in report.SETUPS] == [7.0, None, 1.4, 3.5]
    assert (entry["ratio_upstream"], entry["ratio_processes"], entry["ratio_containers"]) == (None, 0.2, 0.5)
    assert entry["runs"]["plain"] == [8.0, 6.0, 7.0]
    assert "failures" not in entry


def test_a_failed_run_has_a_reason_instead_of_a_figure() -> None:
    values = {"plain": [8.0, 6.0], "processes": [2.0]}
    failures = {"processes": ["RunFailed: it hung\nlog"], "plain": []}
    content = {"apps": {"nothing": report.entry(values, failures, "seconds a round")}}

    assert content["apps"]["nothing"]["processes"] is None
    assert content["apps"]["nothing"]["ratio_processes"] is None
    assert content["apps"]["nothing"]["runs"]["processes"] == [2.0]
    assert report.failed(content) == ["nothing, processes: RunFailed: it hung"]


def test_without_plain_flower_there_is_no_ratio() -> None:
    assert report.entry({"processes": [2.0]}, {}, "seconds")["ratio_processes"] is None


def test_jobs_are_medians() -> None:
    seconds = [dict(zip(report.JOB, pair, strict=True)) for pair in ((9.0, 5.0), (7.0, 4.0), (8.0, 9.0))]

    assert report.jobs(seconds) == {"of": 3, "submit_to_first_round": 8.0, "last_round_to_finished": 5.0}
    assert report.jobs([])["submit_to_first_round"] is None


def test_growth_has_a_column_for_each_set_up_and_says_what_grows() -> None:
    runs = {
        (2, "plain"): [(7.0, 1.4, 0.4)],
        (4, "plain"): [(8.0, 2.0, 0.5), (9.0, 2.0, 0.5), (30.0, 2.0, 0.5)],
        (16, "plain"): [(20.0, 36.0, 2.0)],
        (2, "processes"): [(1.0, 1.0, 0.2)],
        (16, "processes"): [(10.0, 19.0, 1.0)],
    }

    content = report.growth([2, 4, 16], runs)

    assert content["seconds_a_round"] == {"plain": [7.0, 9.0, 20.0], "processes": [1.0, None, 10.0]}
    assert content["server_cpu_a_round"]["processes"] == [0.2, None, 1.0]
    assert report.growth_text(content, cores=2).splitlines()[1] == (
        "Flowerbed, processes, 2 to 16 sites: 1.0 to 10.0 s a round, in which all processes spend "
        "1.0 to 19.0 s of CPU (50% to 95% of 2 cores), the server's 0.20 to 1.00 s: 4% of what is added."
    )


def test_a_part_run_later_keeps_the_other_figures() -> None:
    old = {"apps": {"nothing": 1, "large_1": 2}, "jobs": 3, "load": "old"}
    new = {"apps": {"large_1": 4}, "peak_memory": 5, "load": "new"}

    assert report.merged(old, new) == {
        "apps": {"nothing": 1, "large_1": 4},
        "jobs": 3,
        "peak_memory": 5,
        "load": "new",
    }


def test_growth_measures_what_the_apps_do_not() -> None:
    cells = comparison.choose(["nothing", "growth"], ["plain", "containers"])

    assert cells == [
        ("nothing", "plain"),
        ("nothing", "containers"),
        ("sites_4", "plain"),
        ("sites_8", "plain"),
        ("sites_16", "plain"),
    ]
    assert comparison.choose(report.APPS, report.SETUPS) == [
        (a, s) for a in report.APPS for s in report.SETUPS
    ]


def test_the_pictures_show_a_report_with_holes(tmp_path: Path) -> None:
    entry = report.entry({"plain": [8.0, 6.0], "processes": [2.0]}, {"containers": ["no engine"]}, "seconds")
    growth = report.growth([2, 4], {(2, "plain"): [(7.0, 2.0, 0.4)], (4, "plain"): [(8.0, 3.0, 1.0)]})
    growth["text"] = report.growth_text(growth, 2)
    versions = {"flwr": "1.41.0", "nvflare": "2.9.0", "upstream_flwr": "1.34.0"}
    content = {
        "apps": {"nothing": entry},
        "peak_memory": report.entry({"plain": [4000.0]}, {}, "MB"),
        "growth": growth,
        "versions": versions,
        "machine": {"cores": 2},
    }
    for draw, name in ((picture.draw, "bench.png"), (picture.draw_growth, "growth.png")):
        draw(content, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


HOARDER = """
import subprocess, sys, time
if len(sys.argv) > 1:
    subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
hoard = bytearray(b"x") * 60_000_000
deadline = time.process_time() + 0.1
while time.process_time() < deadline: pass
print("there", flush=True)
time.sleep(60)
"""


def test_the_meter_sees_a_programs_descendants_and_the_end_ends_them(tmp_path: Path) -> None:
    with Programs(tmp_path, {}) as programs:
        with Meter(programs.needles()) as meter:
            begin = time.time()
            programs.start("hoarder", [sys.executable, "-c", HOARDER, HOARDER], role="server")
            log = tmp_path / "hoarder.log"
            programs.wait_for("both", lambda: log.read_text().count("there") == 2, within=20)
            seen = len(meter._samples) + 1
            programs.wait_for("another look", lambda: len(meter._samples) > seen, within=5)
        assert len(having(programs._mark)) == 2
    assert having(programs._mark) == []
    assert 120 < meter.peak < 250
    everything, server = meter.cpu(begin, time.time())
    assert 0.2 < everything == server < 3


def test_a_program_that_fails_or_hangs_is_named_with_what_it_said(tmp_path: Path) -> None:
    with Programs(tmp_path, {}) as programs:
        with pytest.raises(RunFailed, match=r"run ended with code 3:\nout\nthe reason"):
            script = "import sys; print('out'); sys.stderr.write('the reason'); sys.exit(3)"
            programs.call("run", [sys.executable, "-c", script], within=20)
        with pytest.raises(RunFailed, match="slow did not end within 0 s"):
            programs.call("slow", ["sleep", "60"], within=0.1)
        programs.start("gone", ["false"])
        with pytest.raises(RunFailed, match="false ended with code 1 before pigs fly"):
            programs.wait_for("pigs fly", lambda: False, within=5)


@pytest.mark.parametrize(
    "words", [["--apps", "quickest"], ["--setups", ","], ["--runs", "0"], ["relay", "--quick"]]
)
def test_wrong_use_is_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--format", "json", *words]) == 2
    said = json.loads(capsys.readouterr().out)["error"]
    assert re.search(
        r"expected (at least 1|no --apps|names .* such as plain)|unknown name \w+\. There are: nothing,", said
    )
