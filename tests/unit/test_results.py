"""Turn a job's events into its summary, its curves and its folder of results."""

from __future__ import annotations

import io
import json
import math
import tarfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job, RunStatus
from nvflare.app_common.job_schedulers.job_scheduler import DefaultJobScheduler

from bridge.common import summary
from bridge.common.meta import times
from bridge.flare.console import jobs
from scripts import compose, console, core, curves, engine, results, submit
from scripts.core import Failure, UsageError, unpack

START = 1_700_000_000.0
META = {
    "job_id": "j-1",
    "name": "mine",
    "status": "FINISHED:COMPLETED",
    "submit_time": START,
    "start_time": "2023-11-14T22:13:22+00:00",  # START + 2
    "duration": "0:00:30.500000",
}


def reply(
    number: int, site: str, kind: str, t: float, examples: int | None, **metrics: float
) -> dict[str, Any]:
    return {
        "event": "reply",
        "round": number,
        "site": site,
        "kind": kind,
        "num_examples": examples,
        "metrics": metrics,
        "error": "",
        "t": START + t,
    }


EVENTS = [
    {"event": "round", "round": 1, "t": START + 5},
    reply(1, "site-1", "train", 9, 300, train_loss=1.0, train_accuracy=0.5),
    reply(1, "site-2", "train", 10, 100, train_loss=2.0, train_accuracy=0.1),
    reply(1, "site-1", "evaluate", 12, 10, loss=0.5, accuracy=0.8),
    reply(1, "site-2", "evaluate", 13, 30, loss=0.9, accuracy=0.4),
    {"event": "round", "round": 2, "t": START + 14},
    reply(2, "site-1", "train", 20, 300, train_loss=0.5, train_accuracy=0.7),
    reply(2, "site-2", "train", 21, 100, train_loss=0.9, train_accuracy=0.3),
    reply(2, "site-1", "evaluate", 24, 10, loss=0.4, accuracy=0.9),
    reply(2, "site-2", "evaluate", 26, 30, loss=0.8, accuracy=0.5),
    {"event": "run ended", "reason": "", "t": START + 27},
]


def test_averages_are_weighted_by_examples() -> None:
    first = summary.rounds_of(EVENTS)[0]
    assert first["metrics"] == pytest.approx(
        {"loss": 0.8, "accuracy": 0.5, "train_loss": 1.25, "train_accuracy": 0.4}
    )
    assert first["loss"] == pytest.approx(0.8)
    assert first["sites"]["site-2"]["evaluate"] == {"loss": 0.9, "accuracy": 0.4, "num_examples": 30}


def test_sites_count_alike_when_one_does_not_say_how_many_examples() -> None:
    events = [reply(1, "a", "evaluate", 1, 10, loss=1.0), reply(1, "b", "evaluate", 1, None, loss=2.0)]
    assert summary.rounds_of(events)[0]["loss"] == 1.5


def test_a_site_without_a_metric_or_with_an_error_spoils_no_average() -> None:
    broken = {**reply(1, "b", "evaluate", 1, 0), "error": "RuntimeError: on purpose"}
    events = [
        reply(1, "a", "evaluate", 1, 10, loss=1.0, f1=0.5),
        broken,
        reply(1, "c", "evaluate", 1, 10, loss=3.0),
    ]
    entry = summary.rounds_of(events)[0]
    assert entry["metrics"] == {"loss": 2.0}
    assert entry["sites"]["b"]["evaluate"]["error"] == "RuntimeError: on purpose"


def test_a_metric_may_be_called_error() -> None:
    """A reply that failed has its reason under that name in summary.json."""
    events = [reply(1, site, "evaluate", 1, 10, error=error) for site, error in (("a", 1.0), ("b", 2.0))]
    rounds = summary.rounds_of([EVENTS[0], *events])
    assert rounds[0]["metrics"] == {"error": 1.5}
    assert results._last_round(rounds) == "round 1, average over 2 sites: error 1.5"
    assert curves.choose(rounds) == [curves.Panel("Error", "error", None)]


def test_a_training_metric_does_not_hide_the_evaluation_s() -> None:
    events = [reply(1, "a", "train", 1, 1, loss=4.0), reply(1, "a", "evaluate", 1, 1, loss=3.0)]
    entry = summary.rounds_of(events)[0]
    assert (entry["metrics"], entry["loss"]) == ({"loss": 3.0, "train_loss": 4.0}, 3.0)


def test_a_loss_of_nan_is_none_and_the_summary_is_json() -> None:
    outcome = summary.summarize("j", META, [reply(1, "a", "evaluate", 1, 1, loss=math.nan, accuracy=0.1)])
    assert json.loads(json.dumps(outcome, allow_nan=False))["rounds"][0]["loss"] is None
    assert outcome["rounds"][0]["metrics"] == {"accuracy": 0.1}


def test_seconds() -> None:
    seconds = summary.summarize("j", META, EVENTS)["seconds"]
    assert seconds == {
        "submit_to_first_round": 5,
        "rounds": [9, 12],
        "last_round_to_finished": 6.5,
        "total": 32.5,
    }


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("0:00:30.500000", 30.5),
        ("1:02:03", 3723.0),
        ("1 day, 0:00:01", 86401.0),
        ("2 days, 1:00:00", 176400.0),
    ],
)
def test_durations_as_flare_writes_them(duration: str, seconds: float) -> None:
    assert times({**META, "duration": duration}) == (START, START + 2, START + 2 + seconds)


@pytest.mark.parametrize("meta", [{"start_time": "", "duration": "N/A"}, {}, {**META, "duration": "N/A"}])
def test_a_job_that_never_started_has_no_times(meta: dict[str, Any]) -> None:
    assert times(meta)[2] is None


def test_a_round_that_was_begun_only_took_no_time() -> None:
    events = [*EVENTS[:-1], {"event": "round", "round": 3, "t": START + 27}]
    assert summary.seconds_of(events, START, START + 28)["rounds"] == [9.0, 13.0, None]


@pytest.mark.parametrize(
    ("events", "text"),
    [
        (EVENTS, "round 2, average over 2 sites: loss 0.7, accuracy 0.6"),
        (
            [*EVENTS, {"event": "round", "round": 3, "t": START + 27}],
            "round 2 (last complete), average over 2",
        ),
        ([EVENTS[0]], "round 1, average over 0 sites: no metrics"),
        ([EVENTS[0], *({**e, "error": "E"} for e in EVENTS[1:3])], "round 1: all 2 sites failed"),
        (
            [{**e, "error": "E"} if e.get("kind") == "train" else e for e in EVENTS],
            "round 2, nothing was trained: every train reply failed, 2 of 2: loss 0.7, accuracy 0.6",
        ),
        ([EVENTS[0], EVENTS[1], {**EVENTS[2], "error": "E"}], "round 1, average over 1 site (1 failed): "),
    ],
)
def test_the_last_round_with_numbers_is_shown(events: list[dict[str, Any]], text: str) -> None:
    assert results._last_round(summary.rounds_of(events)).startswith(text)


def test_a_round_in_which_every_training_failed_says_so() -> None:
    rounds = summary.rounds_of([{**e, "error": "E"} if e.get("kind") == "train" else e for e in EVENTS])
    assert [(entry["trained"], entry["metrics"]["accuracy"]) for entry in rounds] == [
        (False, 0.5),
        (False, 0.6),
    ]
    some = [{**e, "error": "E"} if e.get("kind") == "train" and e["site"] == "site-1" else e for e in EVENTS]
    assert all("trained" not in entry for events in (EVENTS, some) for entry in summary.rounds_of(events))


def test_a_metric_that_is_called_error_is_none() -> None:
    named = [
        {**e, "metrics": {**e["metrics"], "error": 0.25}} if e["event"] == "reply" else e for e in EVENTS
    ]
    for entry in summary.rounds_of(named):
        assert entry["metrics"]["error"] == 0.25 and "trained" not in entry
    told = results._last_round(summary.rounds_of(named))
    assert told.startswith("round 2, average over 2 sites: ") and "error 0.25" in told


def test_panels_are_loss_and_accuracy_with_their_training_twins() -> None:
    assert curves.choose(summary.rounds_of(EVENTS)) == [
        curves.Panel("Loss", "loss", "train_loss"),
        curves.Panel("Accuracy", "accuracy", "train_accuracy"),
    ]


@pytest.mark.parametrize(
    ("events", "panels"),
    [
        ([reply(1, "a", "evaluate", 1, 1, rmse=1.0)], [("Rmse", "rmse", None)]),
        (
            [reply(1, "a", "evaluate", 1, 1, eval_loss=1.0, eval_acc=1.0)],
            [("Loss", "eval_loss", None), ("Accuracy", "eval_acc", None)],
        ),
        (
            [reply(1, "a", "evaluate", 1, 1, loss=1.0, f1=0.5, accuracy=0.5)],
            [("Loss", "loss", None), ("Accuracy", "accuracy", None)],
        ),
        ([reply(1, "a", "train", 1, 1, train_loss=1.0)], [("Loss", None, "train_loss")]),
        ([reply(1, "a", "train", 1, 1)], []),
        ([], []),
    ],
)
def test_panels_follow_what_the_app_reports(
    events: list[dict[str, Any]], panels: list[tuple[str, Any, Any]]
) -> None:
    assert curves.choose(summary.rounds_of(events)) == [curves.Panel(*panel) for panel in panels]


AT_SERVER = [
    {"event": "evaluation", "round": n, "metrics": {"accuracy": 0.5 + n / 10, "auc": [0.5]}, "t": START + n}
    for n in (0, 1, 2)
]

SECOND = [
    {**event, "start": 2} if event["event"] in ("round", "reply") else event
    for event in [*EVENTS[:5], EVENTS[-1]]
]
"""A second start of one round."""


def test_the_servers_evaluation_has_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    told = summary.summarize("j-1", META, [*EVENTS, *AT_SERVER])
    assert told["central"][1] == {"round": 1, "metrics": {"accuracy": 0.6, "auc": [0.5]}}
    assert curves.draw(told, tmp_path / "curves.png")
    accuracy = figures[0].axes[1]
    lines = {line.get_label(): line for line in accuracy.lines}
    assert np.asarray(lines["server"].get_xdata()).tolist() == [0, 1, 2]
    assert np.asarray(lines["server"].get_ydata()).tolist() == [0.5, 0.6, 0.7]
    # Where the sites say nothing like it, it has a panel beside theirs.
    other = [{**event, "metrics": {"f1": 0.5}} for event in AT_SERVER]
    panels = curves.choose(summary.rounds_of(EVENTS), summary.central_of(other))
    assert panels[-1] == curves.Panel("F1", None, None, "f1")


def test_restarted_round_numbers_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    told = summary.summarize("j-1", META, [*EVENTS[:-1], *SECOND])
    assert [(entry.get("start"), entry["round"]) for entry in told["rounds"]] == [
        (None, 1),
        (None, 2),
        (2, 1),
    ]
    assert len(told["seconds"]["rounds"]) == 3
    assert curves.draw(told, tmp_path / "curves.png")
    (average,) = [line for line in figures[0].axes[1].lines if line.get_label() == "average"]
    # Nothing joins one start to the next.
    assert str(np.asarray(average.get_xdata()).tolist()) == "[1.0, 2.0, nan, 4.0]"
    labels = [label.get_text() for label in figures[0].axes[1].get_xticklabels()]
    assert labels == ["start 1", "start 2"]


def test_lists_are_averaged_number_by_number() -> None:
    one, other = reply(1, "a", "evaluate", 1, 10), reply(1, "b", "evaluate", 1, 30)
    one["metrics"] = {"curve": [1.0, math.nan], "odd": [1.0], "mixed": 1.0}
    other["metrics"] = {"curve": [5.0, 1.0], "odd": [1.0, 2.0], "mixed": [1.0]}
    (entry,) = summary.rounds_of([one, other])
    assert entry["metrics"] == {"curve": [4.0, None]}
    assert entry["sites"]["a"]["evaluate"]["curve"] == [1.0, None]


OUTCOME = {
    "event": "replies",
    "kinds": {"query": {"replies": 2, "failed": 1}, "train": {"replies": 2, "failed": 2}},
    "errors": {
        "site-1": {"kind": "query", "round": None, "error": "<class 'RuntimeError'>:<'no table here'>"},
        "site-2": {"kind": "train", "round": 3, "error": "first\nsecond"},
    },
    "t": START + 26,
}


def test_results_tell_what_the_server_evaluated_last(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told = summary.summarize("j-1", META, [*EVENTS, *AT_SERVER])
    results.tell({**told, "folder": str(tmp_path)})
    assert "  round 2, at the server: accuracy 0.7\n" in capsys.readouterr().err


GONE = "0a1b2c3d-0000-4000-8000-000000000000"


def test_results_of_a_job_that_was_removed_are_those_on_the_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(service: str, verb: str, **words: object) -> Any:
        raise UsageError("No job", no_job=True)

    monkeypatch.setattr(console, "service", lambda identity: "admin")
    send(monkeypatch, FILES)
    before = results.collect("admin", GONE)
    for name in ("ask", "fetch"):
        monkeypatch.setattr(console, name, nothing)
    for job in (GONE, GONE[:4]):
        assert results.run(job) == before
    told = capsys.readouterr().err
    assert f"The server no longer has job {GONE}. This was fetched before:\n" in told
    assert str(folder.parent / GONE) in told and "Job " in told
    for job in ("ffff", ".."):
        with pytest.raises(
            UsageError, match="it was removed, or never was, and results/ has no results of it"
        ):
            results.run(job)
    send(monkeypatch, FILES)
    results.collect("admin", GONE[:-1] + "1")
    monkeypatch.setattr(console, "fetch", nothing)
    with pytest.raises(UsageError, match="ambiguous"):
        results.run(GONE[:4])
    (folder.parent / GONE / "summary.json").write_text("[1")
    with pytest.raises(Failure, match=r"summary\.json is broken"):
        results.run(GONE)
    # Another failure is told as it is.
    monkeypatch.setattr(console, "fetch", lambda *words, **more: (_ for _ in ()).throw(Failure("down")))
    with pytest.raises(Failure, match="down"):
        results.run(GONE)


def test_failures_are_in_the_summary_and_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(json.dumps(event) + "\n" for event in [*EVENTS[:-1], OUTCOME, EVENTS[-1]])
    send(monkeypatch, {**FILES, "workspace/events.jsonl": lines})
    outcome = results.collect("admin", "j-1")
    assert (outcome["replies"], outcome["errors"]) == (OUTCOME["kinds"], OUTCOME["errors"])
    assert (folder / "events.jsonl").read_text() == lines
    results.tell(outcome)
    told = capsys.readouterr().err
    assert (
        "  1 of 2 query replies failed\n  all 2 train replies failed\n"
        "  site-1: RuntimeError: no table here\n  site-2, round 3: first\\nsecond\n"
    ) in told
    assert "    events.jsonl  all events, as they came\n" in told


def test_a_job_that_could_not_be_scheduled_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLARE's own scheduler has written the reason down."""
    scheduler = DefaultJobScheduler(1, max_schedule_count=3, min_schedule_interval=0.0)
    monkeypatch.setattr(scheduler, "_try_job", lambda job, ctx: (1, None, "missing required site site-2"))
    engine = SimpleNamespace(new_context=lambda: nullcontext(FLContext()))
    context = FLContext()
    monkeypatch.setattr(context, "get_engine", lambda: engine)
    job, blocked = Job("j", {}, {}, {}), list[Job]()
    for _ in range(4):
        scheduler._do_schedule_job([job], context, [], blocked)
    assert blocked == [job]
    known = {**job.meta, "status": RunStatus.FINISHED_CANT_SCHEDULE.value}
    why = "FLARE could not schedule the job, tried 3 times: missing required site site-2"
    assert summary.summarize("j", known, [])["reason"] == jobs.kept(known)["reason"] == why
    assert jobs.kept({**known, "schedule_history": None})["reason"].endswith("did not say why")
    assert jobs.kept({**known, "flowerbed_reason": "x"})["reason"] == "x"
    assert jobs.kept({**known, "status": "RUNNING"})["reason"] == ""


def test_panels_of_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    real = Figure.savefig

    def savefig(figure: Figure, path: Path) -> None:
        figures.append(figure)
        real(figure, path)

    monkeypatch.setattr(Figure, "savefig", savefig)
    assert curves.draw(summary.summarize("j-1", META, EVENTS), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    loss, accuracy = figures[0].axes
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in accuracy.lines}
    assert set(lines) == {"site-1", "site-2", "average", "average while training"}
    assert lines["site-2"] == [0.4, 0.5]
    assert lines["average"] == pytest.approx([0.5, 0.6])
    assert lines["average while training"] == pytest.approx([0.4, 0.6])
    assert loss.get_xticks().tolist() == [1, 2]
    assert figures[0].get_suptitle() == "mine"
    assert any("j-1" in text.get_text() for text in figures[0].texts)


def test_many_sites_and_many_rounds_can_be_drawn(tmp_path: Path) -> None:
    events = [reply(n, f"s{i}", "train", n, 1, score=0.1) for n in range(1, 60) for i in range(12)]
    assert curves.draw(summary.summarize("j", META, events), tmp_path / "c.png")


def test_without_metrics_there_is_no_picture(tmp_path: Path) -> None:
    assert not curves.draw(summary.summarize("j", META, []), tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


def archive(files: dict[str, str]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    buffer.seek(0)
    return buffer


FILES = {
    "meta.json": json.dumps(META),
    "logs/server.log": "served\n",
    "logs/site-1.log": "trained\n",
    "workspace/audit.log": "[U:site-1][A:flower.call.refused]\n",
    "workspace/events.jsonl": "".join(json.dumps(event) + "\n" for event in EVENTS),
    "workspace/serverapp/final_model.pt": "weights",
    "workspace/app/custom/big.py": "no result",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    return tmp_path / "results" / "j-1"


def send(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    monkeypatch.setattr(console, "fetch", lambda service, verb, job, limit: archive(files))


def test_a_folder_of_results(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send(monkeypatch, FILES)
    outcome = results.collect("admin", "j-1")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {
        "summary.json",
        "events.jsonl",
        "curves.png",
        "logs/audit.log",
        "logs/server.log",
        "logs/site-1.log",
        "serverapp/final_model.pt",
    }
    assert {**json.loads((folder / "summary.json").read_text()), "folder": str(folder)} == outcome
    assert (outcome["app"], outcome["status"], outcome["sites"]) == (
        "mine",
        "FINISHED:COMPLETED",
        ["site-1", "site-2"],
    )
    assert [path.name for path in folder.parent.iterdir()] == ["j-1"]


def test_results_have_the_reason_that_only_the_server_knows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"flowerbed_reason": "server restarted", "flowerbed_retried_as": "j-2"}
    meta = json.dumps({**META, "status": "FINISHED:ABNORMAL", **kept})
    send(monkeypatch, {"meta.json": meta, "logs/server.log": "x"})
    outcome = results.collect("admin", "j-1")
    assert (outcome["reason"], outcome["retried_as"]) == ("server restarted", "j-2")


def test_results_name_who_refused_the_job(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    why = {"site-3": "its policy forbids custom code (right byoc)"}
    send(monkeypatch, {"meta.json": json.dumps({**META, "flowerbed_refused": why})})
    outcome = results.collect("admin", "j-1")
    assert outcome["refused"] == why
    results.tell(outcome)
    assert f"site-3 refused the job: {why['site-3']}" in capsys.readouterr().err


def test_results_of_a_job_that_failed_before_its_first_round(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = json.dumps({"event": "run ended", "reason": "RuntimeError: on purpose\n  more", "t": START})
    meta = json.dumps({**META, "status": "FINISHED:EXECUTION_EXCEPTION"})
    send(monkeypatch, {"meta.json": meta, "logs/server.log": "x", "workspace/events.jsonl": end})
    outcome = results.collect("admin", "j-1")
    assert (outcome["status"], outcome["rounds"]) == ("FINISHED:EXECUTION_EXCEPTION", [])
    assert outcome["reason"].startswith("RuntimeError: on purpose")
    assert outcome["seconds"]["rounds"] == [] and outcome["seconds"]["submit_to_first_round"] is None
    assert not (folder / "curves.png").exists()
    results.tell(outcome)


def test_results_of_a_job_that_never_ran(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send(monkeypatch, {"meta.json": json.dumps({"name": "mine", "status": "FINISHED:CAN_NOT_SCHEDULE"})})
    assert results.collect("admin", "j-1")["rounds"] == []


def test_fetching_again_replaces_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send(monkeypatch, FILES)
    results.collect("admin", "j-1")
    (folder / "logs" / "stale.log").write_text("old")
    results.collect("admin", "j-1")
    assert not (folder / "logs" / "stale.log").exists()


@pytest.mark.parametrize(
    "files",
    [{"logs/server.log": "no meta"}, {"meta.json": "{"}, {"meta.json": json.dumps(META), "../../evil": "x"}],
)
def test_a_bad_download_leaves_the_old_results_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]
) -> None:
    send(monkeypatch, FILES)
    results.collect("admin", "j-1")
    send(monkeypatch, files)
    with pytest.raises(Failure, match=r"j-1|outside its folder"):
        results.collect("admin", "j-1")
    assert (folder / "summary.json").is_file()
    assert [path.name for path in folder.parent.iterdir()] == ["j-1"]
    assert not (folder.parent.parent / "evil").exists()


@pytest.mark.parametrize(
    "tail", ['{"event": "reply", "rou', "\\x00\\x00", "[1, 2]", '{"event": "round", "round": "1", "t": 1}']
)
def test_a_torn_or_foreign_last_line_costs_itself_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tail: str
) -> None:
    send(monkeypatch, {**FILES, "workspace/events.jsonl": FILES["workspace/events.jsonl"] + tail})
    assert results.collect("admin", "j-1")["rounds"] == summary.rounds_of(EVENTS)


NAMES = ["loss $\\frac{$", "loss\x1b[2K\r85 s  FINISHED:COMPLETED\n", "\u202eloss", "$", "損失 loss", "_loss"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("error")
def test_there_is_a_picture_whatever_the_names_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    events = [reply(n, name, kind, n, 1, **{name: 0.5}) for n in (1, 2) for kind in ("train", "evaluate")]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    meta = json.dumps({**META, "name": name})
    send(monkeypatch, {**FILES, "workspace/events.jsonl": lines, "meta.json": meta})
    outcome = results.collect("admin", "j-1")
    results.tell(outcome)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().err
    assert "No picture" not in told and "\x1b" not in told and "\r" not in told and "\u202e" not in told
    assert not any(line.startswith("85 s") for line in told.splitlines())


def test_results_arrive_without_a_picture_that_cannot_be_drawn(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def savefig(figure: Figure, path: Path) -> None:
        path.write_text("half")
        raise ValueError("too\x1b[2K large")

    monkeypatch.setattr(Figure, "savefig", savefig)
    send(monkeypatch, FILES)
    assert results.collect("admin", "j-1")["rounds"]
    assert not (folder / "curves.png").exists() and (folder / "summary.json").is_file()
    assert (
        r"No picture: the curves could not be drawn (ValueError: too\x1b[2K large)" in capsys.readouterr().err
    )


def test_numbers_that_are_too_large_for_json_or_a_picture(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [reply(n, "s", "train", n, 10**9, loss=1.7e308, accuracy=-(2.0**62)) for n in (1, 10**9 - 1)]
    send(
        monkeypatch,
        {**FILES, "workspace/events.jsonl": "".join(json.dumps(event) + "\n" for event in events)},
    )
    outcome = results.collect("admin", "j-1")
    json.dumps(outcome, allow_nan=False)
    assert (folder / "summary.json").is_file()


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    for name in ("../out", "/tmp/out"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        buffer.seek(0)
        with tarfile.open(fileobj=buffer) as tar, pytest.raises(Failure, match="outside its folder"):
            unpack(tar, tmp_path)


def test_others_can_read_unpacked_files(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo("app")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        tar.addfile(folder)
        file = tarfile.TarInfo("app/x")
        file.mode = 0o600
        tar.addfile(file, io.BytesIO())
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        unpack(tar, tmp_path)
    assert (tmp_path / "app").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "app" / "x").stat().st_mode & 0o777 == 0o644


# Disks do not fill


def test_no_results_are_fetched_when_the_folder_is_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(monkeypatch, FILES)
    monkeypatch.setenv(results.LIMIT, "1MB")
    results.collect("admin", "j-1")
    # Its own older copy does not count.
    (folder / "large").write_bytes(b"x" * 2**20)
    results.collect("admin", "j-1")
    (folder.parent / "j-0").mkdir()
    (folder.parent / "j-0" / "large").write_bytes(b"x" * 2**20)
    monkeypatch.setattr(console, "fetch", lambda *words, **more: pytest.fail("asked all the same"))
    with pytest.raises(Failure, match=r"results/ would have more than 1 MB.*FLOWERBED_RESULTS_LIMIT"):
        results.collect("admin", "j-1")
    assert (folder / "summary.json").is_file()


def test_a_limit_must_be_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(results.LIMIT, "much")
    with pytest.raises(UsageError, match="found 'much'"):
        results.limit()
    monkeypatch.setenv(results.LIMIT, "1000")
    assert results.limit() == 1000


def test_an_archive_that_says_it_is_too_large_is_not_unpacked(tmp_path: Path) -> None:
    """A sparse or forged header costs nothing: only its text counts."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(3):
            entry = tarfile.TarInfo(f"{number}")
            entry.size = 400
            tar.addfile(entry, io.BytesIO(b"x" * 400))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar, pytest.raises(Failure, match=r"more than .* files or "):
        unpack(tar, tmp_path, 1000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000


def test_an_archive_of_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "FILES_LIMIT", 10)
    with tarfile.open(fileobj=archive({f"{n}": "" for n in range(50)})) as tar, pytest.raises(Failure):
        unpack(tar, tmp_path, 10**6)
    assert len(list(tmp_path.iterdir())) == 10


def test_a_download_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "TAR_MORE", 0)
    monkeypatch.setattr(compose, "is_provisioned", lambda: True)
    (tmp_path / "docker").write_text("#!/bin/sh\nexec yes\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setattr(engine, "docker", lambda: str(tmp_path / "docker"))
    with pytest.raises(Failure, match="sends more than 3 MB"):
        console.fetch("admin", "download", limit=3 * 2**20, job="j-1")


@pytest.mark.parametrize("said", ["/tmp/x", "..", "../x", "", "a/b", "-rf", None, 5, ["x"], "a" * 65, "j\n"])
def test_a_server_chooses_no_folder_of_this_machine(
    said: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compromised server may answer anything for a job's ID."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(console, "ask", lambda *_, **__: {"job_id": said})
    monkeypatch.setattr(console, "fetch", lambda *_, **__: pytest.fail("asked for it"))
    with pytest.raises(Failure, match="not a job ID"):
        console.full_id("admin", "latest")
    with pytest.raises(Failure, match="not a job ID"):
        results.collect("admin", said)  # type: ignore[arg-type]
    app = SimpleNamespace(name="app", version="1", pack=lambda: b"")
    with pytest.raises(Failure, match="not a job ID"):
        submit.submit("admin", app, {})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
