"""Points on their way from an app's writer to FLARE's receivers: in order, each once, before the replies."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import inspect
import json
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from nvflare.apis.analytix import AnalyticsData, AnalyticsDataType, LogWriterName
from nvflare.apis.dxo import DXO
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.utils.analytix_utils import create_analytic_dxo

from bridge.fleet import wire
from bridge.job import metrics_relay
from bridge.relay.calls import Call, LinkFault, Request, Response, SiteRelay
from bridge.server import metric_receiver, trackers
from bridge.site import metric_uploader

PUSH = Request(wire.PREFIX + wire.PUSH, (), b"reply")


def scalar(number: int, tag: str = "train/loss") -> DXO:
    return create_analytic_dxo(tag, float(number), AnalyticsDataType.SCALAR, global_step=number)


def step_of(dxo: DXO) -> int | None:
    step: int | None = AnalyticsData.from_dxo(dxo).step
    return step


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test that is a coroutine."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    # pytest takes the arguments from there, and the function for a coroutine if it finds what it wraps.
    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    del run.__wrapped__  # type: ignore[attr-defined]
    return run


class Fired:
    """The events that the tracker fires."""

    def __init__(self) -> None:
        self.points: list[tuple[str, DXO]] = []
        self.refused: list[str] = []

    def __call__(self, site: str, dxo: DXO) -> None:
        self.points.append((site, dxo))

    def steps(self, site: str = "site-1") -> list[int | None]:
        return [step_of(dxo) for name, dxo in self.points if name == site]


class TrackerLink:
    """A link that brings points to a tracker, and records the order of everything."""

    def __init__(self, tracker: metric_receiver.MetricReceiver) -> None:
        self.tracker = tracker
        self.came: list[str] = []
        self.losses = 0
        """Number of lost answers, each lost after the server has acted."""
        self.up = asyncio.Event()
        self.up.set()

    async def send(self, call: Call) -> Response:
        await self.up.wait()
        self.came.append(call.request.path)
        response = Response(200)
        if call.request.path == metrics_relay.PATH:
            response = await self.tracker.take("site-1", call.request)
        if self.losses:
            self.losses -= 1
            raise LinkFault("lost on the way back")
        return response

    async def probe(self) -> None:
        pass


@pytest.fixture
def fired() -> Fired:
    return Fired()


@pytest.fixture
def tracker(fired: Fired) -> metric_receiver.MetricReceiver:
    return metric_receiver.MetricReceiver(fired, lambda site, reason: fired.refused.append(reason))


def put(waiting: metric_uploader.MetricUploader, *dxos: DXO) -> None:
    """Put points like FLARE's relay, from another thread."""

    def put_all() -> None:
        for dxo in dxos:
            waiting.put(dxo)

    thread = threading.Thread(target=put_all)
    thread.start()
    thread.join()


async def begun(
    tracker: metric_receiver.MetricReceiver,
) -> tuple[metric_uploader.MetricUploader, TrackerLink, SiteRelay]:
    waiting, link = metric_uploader.MetricUploader(asyncio.get_running_loop()), TrackerLink(tracker)
    caller = SiteRelay(metric_uploader.MetricsBeforeReplies(link, waiting))
    waiting.send_by(caller)
    return waiting, link, caller


@pytest.mark.parametrize("number", [0.25, 3, float("inf")])
def test_a_point_comes_out_as_it_went_in(number: float) -> None:
    dxo = create_analytic_dxo(
        "a/b", number, AnalyticsDataType.SCALAR, LogWriterName.TORCH_TB, global_step=7, more="text"
    )
    back = metrics_relay.decode(metrics_relay.encode(dxo))
    assert (back.data, back.meta) == (dxo.data, dxo.meta)


def test_mlflows_parameters_and_texts_are_carried_too() -> None:
    for kind, value, more in (
        (AnalyticsDataType.PARAMETERS, {"lr": 0.1, "name": "x"}, {}),
        (AnalyticsDataType.TEXT, "hello\nthere", {"path": "notes/a.txt"}),
        (AnalyticsDataType.METRICS, {"loss": 0.5}, {"global_step": 2}),
    ):
        dxo = create_analytic_dxo("t", value, kind, LogWriterName.MLFLOW, **more)
        back = metrics_relay.decode(metrics_relay.encode(dxo))
        assert (back.data, back.meta) == (dxo.data, dxo.meta)


@pytest.mark.parametrize("value", ["x" * metrics_relay.POINT_LIMIT, b"bytes"])
def test_values_too_large_or_not_text_are_left_out(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    kind = AnalyticsDataType.TEXT if isinstance(value, str) else AnalyticsDataType.IMAGE
    metric_uploader.MetricUploader(asyncio.new_event_loop()).put(create_analytic_dxo("note", value, kind))
    assert "not tracked: note" in caplog.text


@pytest.mark.parametrize("losses", [0, 1, 3])
@on_a_loop
async def test_all_arrive_once_and_in_order_whatever_is_lost(
    tracker: metric_receiver.MetricReceiver, fired: Fired, losses: int
) -> None:
    waiting, link, _ = await begun(tracker)
    link.losses = losses
    put(waiting, *(scalar(number) for number in range(30)))
    await asyncio.sleep(0)
    put(waiting, *(scalar(number) for number in range(30, 40)))
    await asyncio.sleep(0)
    await waiting.delivered()
    tracker.close()
    assert fired.steps() == list(range(40))
    assert tracker.taken == {"site-1": 40}


@on_a_loop
async def test_no_reply_overtakes_a_point(tracker: metric_receiver.MetricReceiver) -> None:
    waiting, link, caller = await begun(tracker)
    link.up.clear()
    put(waiting, scalar(1))
    reply = asyncio.ensure_future(caller.call(PUSH, wire.fleet_call(PUSH).rule))
    pull = Request(wire.PREFIX + wire.PULL, (), b"")
    asked = asyncio.ensure_future(caller.call(pull, wire.fleet_call(pull).rule))
    await asyncio.sleep(0.05)
    link.up.set()
    assert await reply == Response(200) == await asked
    tracker.close()
    assert link.came.index(metrics_relay.PATH) < link.came.index(PUSH.path)


@on_a_loop
async def test_a_supernode_that_dies_loses_no_point(
    tracker: metric_receiver.MetricReceiver, fired: Fired
) -> None:
    waiting, link, caller = await begun(tracker)
    link.up.clear()
    put(waiting, scalar(1), scalar(2))
    await asyncio.sleep(0.05)
    await caller.start_over()
    link.up.set()
    await waiting.delivered()
    tracker.close()
    assert fired.steps() == [1, 2]


@on_a_loop
async def test_the_end_waits_for_no_point(tracker: metric_receiver.MetricReceiver) -> None:
    waiting, link, caller = await begun(tracker)
    link.up.clear()
    put(waiting, scalar(1))
    await asyncio.sleep(0.05)
    waiting.close()
    async with asyncio.timeout(1):
        await waiting.delivered()
    await caller.close()
    tracker.close()


@on_a_loop
async def test_a_restarted_site_begins_a_new_stream(
    tracker: metric_receiver.MetricReceiver, fired: Fired
) -> None:
    for _ in range(2):
        waiting, _, _ = await begun(tracker)
        put(waiting, scalar(1), scalar(2))
        await asyncio.sleep(0)
        await waiting.delivered()
    tracker.close()
    assert fired.steps() == [1, 2, 1, 2]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'["stream", -1]\n',
        b'["stream", "x"]',
        b'["stream", true]',
        b'[1, 2]\n["t", 1, "SCALAR", "MLFLOW", {}]',
        b"[" * 100_000,
        b'["stream", 0]\n' + b" " * metrics_relay.BODY_LIMIT,
    ],
)
@on_a_loop
async def test_a_call_that_brings_no_points_is_refused(
    tracker: metric_receiver.MetricReceiver, fired: Fired, body: bytes
) -> None:
    response = await tracker.take("site-1", Request(metrics_relay.PATH, (), body))
    tracker.close()
    assert response.status == 400
    assert len(fired.refused) == 1 and fired.points == []


@on_a_loop
async def test_one_bad_point_spoils_no_other(tracker: metric_receiver.MetricReceiver, fired: Fired) -> None:
    lines = [
        metrics_relay.encode(scalar(1)),
        b'["t", "text", "SCALAR", "TORCH_TENSORBOARD", {}]',
        b'["t", 1, "NO SUCH", "TORCH_TENSORBOARD", {}]',
        b'["t", 1, "SCALAR", "TORCH_TENSORBOARD", {"global_step": "1"}]',
        b'["t", 1, "SCALAR", "TORCH_TENSORBOARD", {"sender": "x"}]',
        b'{"t": 1}',
        metrics_relay.encode(scalar(2)),
    ]
    body = b"\n".join([b'["s", 0]', *lines])
    assert (await tracker.take("site-1", Request(metrics_relay.PATH, (), body))).status == 200
    tracker.close()
    assert fired.steps() == [1, 2]


def test_replies_become_points_and_nothing_raises(
    tracker: metric_receiver.MetricReceiver, fired: Fired
) -> None:
    event = {"event": "reply", "round": 2, "site": "site-1", "kind": "train", "num_examples": 10}
    tracker.add_reply({**event, "metrics": {"loss": 0.5, "each": [1.0]}, "error": ""})
    tracker.add_reply({**event, "num_examples": None, "start": 2, "metrics": {"loss": 0.25}, "error": ""})
    for strange in ({"metrics": None}, {"metrics": {"a": "text"}}, {"round": "x", "metrics": {"a": 1}}):
        tracker.add_reply({**event, **strange})
    tracker.add_reply({})
    tracker.close()
    told = [AnalyticsData.from_dxo(dxo) for _, dxo in fired.points]
    assert [(data.tag, data.value, data.step) for data in told[:3]] == [
        ("flower/train/loss", 0.5, 2),
        ("flower/train/each/0", 1.0, 2),
        ("flower/train/num_examples", 10, 2),
    ]
    assert (told[3].tag, told[3].value, told[3].step) == ("flower/start-2/train/loss", 0.25, 2)
    assert tracker.taken == {}


def test_central_evaluation_becomes_points_too(tracker: metric_receiver.MetricReceiver, fired: Fired) -> None:
    event = {"event": "evaluation", "round": 0, "metrics": {"accuracy": 0.5, "each": [1, 2.0]}}
    tracker.add(event)
    tracker.add({**event, "start": 2, "metrics": {"all": [0.5] * 500}})
    tracker.add({"event": "round", "round": 1})
    tracker.add({**event, "event": "reply", "site": "site-1", "kind": "train", "error": "it raised"})
    strange: list[dict[str, Any]] = [{}, {"metrics": []}, {"metrics": {"a": "text"}, "round": None}]
    for one in strange:
        tracker.add_evaluation(one)
    tracker.close()
    told = [(site, AnalyticsData.from_dxo(dxo)) for site, dxo in fired.points]
    assert [(site, data.tag, data.value, data.step) for site, data in told[:4]] == [
        ("server", "flower/central/accuracy", 0.5, 0),
        ("server", "flower/central/each/0", 1, 0),
        ("server", "flower/central/each/1", 2.0, 0),
        ("server", "flower/start-2/central/all/0", 0.5, 0),
    ]
    assert len(told) == 3 + metric_receiver.LISTED, "a list may have any number, and a job so many tags"


def test_a_receiver_that_fails_or_hangs_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hang = threading.Event()

    def fire(site: str, dxo: DXO) -> None:
        if step_of(dxo) == 0:
            raise RuntimeError("its disk is full")
        hang.wait()

    monkeypatch.setattr(metrics_relay, "WAITING", 5)
    monkeypatch.setattr(metric_receiver, "TAKEN_WITHIN", 0.2)
    tracker = metric_receiver.MetricReceiver(fire, lambda site, reason: None)
    for number in range(20):
        tracker._put("site-1", scalar(number), 100)
    tracker.close()
    hang.set()
    assert "its disk is full" in caplog.text
    assert "points were dropped" in caplog.text
    assert "receivers did not accept" in caplog.text


class Engine:
    """The part of FLARE's engine that receivers and `metric_receiver.fire` need."""

    def __init__(self, run_dir: Path, receiver: trackers._Receiver) -> None:
        meta = {"name": "my job/é", "job_id": "0123456789"}
        props = {FLContextKey.JOB_META: meta}
        self.manager = FLContextManager(self, "server", "0123456789", props, {})
        self.run_dir, self.receiver = run_dir, receiver

    def new_context(self) -> Any:
        return self.manager.new_context()

    def fire_event(self, event_type: str, fl_ctx: Any) -> None:
        self.receiver.handle_event(event_type, fl_ctx)

    def get_workspace(self) -> Any:
        return SimpleNamespace(get_run_dir=lambda job: str(self.run_dir))

    def get_clients(self) -> list[Any]:
        return [SimpleNamespace(name="site-1")]


class Inner:
    """A substitute for FLARE's receiver."""

    def __init__(self, folder: Path) -> None:
        self.root_log_dir = str(folder)
        self.saved: list[str] = []
        self.writers_table: dict[str, Any] = {}
        self.buffer: dict[str, Any] = {"site-1": {}}
        self.flushes = threading.Event()

    def save(self, fl_ctx: Any, shareable: Any, record_origin: str) -> None:
        self.saved.append(record_origin)
        self.writers_table = {record_origin: SimpleNamespace(flush=self.flushes.set)}
        (Path(self.root_log_dir) / "events").write_text("x")

    def finalize(self, fl_ctx: Any) -> None:
        self.saved.append("end")


def run_through(engine: Engine) -> None:
    with engine.new_context() as fl_ctx:
        engine.fire_event("_start_run", fl_ctx)
    metric_receiver.fire(engine, "site-1", scalar(1))


def test_tensorboards_files_are_shown_at_once_and_are_results_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, run_dir = tmp_path / "shown", tmp_path / "run"
    shown.mkdir()
    monkeypatch.setattr(trackers, "FLUSH_AFTER", 0.01)
    receiver, inner = trackers.TensorBoard(), Inner(shown)
    monkeypatch.setattr(receiver, "_open", lambda fl_ctx: inner)
    engine = Engine(run_dir, receiver)
    run_through(engine)
    assert inner.flushes.wait(5)
    with engine.new_context() as fl_ctx:
        engine.fire_event("_end_run", fl_ctx)
    assert inner.saved == ["site-1", "end"]
    assert (run_dir / "tb_events" / "events").is_file()


def test_a_job_without_its_tracker_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    receiver = trackers.MLflow()
    engine = Engine(tmp_path, receiver)
    assert importlib.util.find_spec("mlflow") is None, "this test is of a job without MLflow's client"
    run_through(engine)
    metric_receiver.fire(engine, "site-1", scalar(2))
    with engine.new_context() as fl_ctx:
        engine.fire_event("_end_run", fl_ctx)
    assert caplog.text.count("the job is not tracked") == 1


class MlflowClient:
    """A substitute for MLflow's client, with the calls by run."""

    runs: ClassVar[dict[str, list[Any]]] = {}

    def __init__(self, *_: Any) -> None:
        pass

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name)

    def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> Any:
        self.runs[run_name] = []
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

    def set_terminated(self, run_id: str) -> None:
        pass

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self.runs[run_id] += [(metric.key, metric.value, metric.step) for metric in metrics]


@pytest.fixture
def mlflow_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The part of MLflow's client that FLARE's receiver needs, which the tests' environment lacks."""

    def kept(key: str, value: Any, timestamp: int = 0, step: int = 0) -> SimpleNamespace:
        return SimpleNamespace(key=key, value=value, step=step)

    for name, values in (
        ("mlflow", {"set_tracking_uri": lambda uri: None}),
        ("mlflow.entities", dict.fromkeys(("Metric", "Param", "RunTag"), kept)),
        ("mlflow.tracking", {}),
        ("mlflow.tracking.client", {"MlflowClient": MlflowClient}),
    ):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules[name]).update(values)
    MlflowClient.runs.clear()
    yield
    sys.modules.pop("nvflare.app_opt.tracking.mlflow.mlflow_receiver", None)


@pytest.mark.usefixtures("mlflow_client")
def test_the_server_and_a_late_site_have_a_run_in_mlflow(tmp_path: Path) -> None:
    receiver = trackers.MLflow()
    engine = Engine(tmp_path, receiver)
    run_through(engine)
    metric_receiver.fire(engine, "site-9", scalar(2))
    tracker = metric_receiver.MetricReceiver(
        functools.partial(metric_receiver.fire, engine), lambda site, reason: None
    )
    tracker.add_evaluation({"event": "evaluation", "round": 3, "metrics": {"loss": 0.5, "each": [7.0]}})
    tracker.close()
    with engine.new_context() as fl_ctx:
        engine.fire_event("_end_run", fl_ctx)
    assert {name.split("-012345")[0]: points for name, points in MlflowClient.runs.items()} == {
        "site-1": [("train/loss", 1.0, 1)],
        "site-9": [("train/loss", 2.0, 2)],
        "server": [("flower/central/loss", 0.5, 3), ("flower/central/each/0", 7.0, 3)],
    }


def test_a_board_that_comes_late_has_all_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "OPEN_AGAIN", 0.01)
    receiver, inner, tries = trackers.MLflow(), Inner(tmp_path), [ConnectionError("not yet")] * 3

    def open_it(fl_ctx: Any) -> Inner:
        if tries:
            raise tries.pop()
        return inner

    monkeypatch.setattr(receiver, "_open", open_it)
    run_through(Engine(tmp_path, receiver))
    assert inner.saved == ["site-1"]


def test_the_name_under_which_a_job_is_shown(tmp_path: Path) -> None:
    engine = Engine(tmp_path, trackers.TensorBoard())
    with engine.new_context() as fl_ctx:
        assert trackers.shown_as(fl_ctx) == "my-job--01234567"


def test_no_gateway_lets_points_through() -> None:
    assert wire.call_name(metrics_relay.PATH) is None


def test_the_log_of_the_points() -> None:
    told = metric_receiver.logged({"b": 1, "a": 2})
    # Every event has this, and progress displays expect it.
    assert abs(told.pop("t") - time.time()) < 60
    assert json.dumps(told) == '{"event": "tracked", "points": {"a": 2, "b": 1}}'


# A site that is hostile


class EventFileWriter:
    """A substitute for TensorBoard's writer. As there, each has a file and a thread."""

    all: ClassVar[list[EventFileWriter]] = []

    def __init__(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.events: list[Any] = []
        self.file = Path(folder) / f"events.out.{len(self.all)}"
        self.file.write_text("x")
        self.end = threading.Event()
        threading.Thread(target=self.end.wait, name="writer", daemon=True).start()
        self.all.append(self)

    def add_event(self, event: Any) -> None:
        self.events.append(event)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.end.set()


def noted(**values: Any) -> SimpleNamespace:
    """Return an event or a summary of TensorBoard's."""
    return SimpleNamespace(**values)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[trackers.TensorBoard, Engine]]:
    """Ours around FLARE's own receiver, with files in `tmp_path/run/tb_events`."""
    names = (
        "tensorboard",
        "tensorboard.compat",
        "tensorboard.compat.proto",
        "tensorboard.compat.proto.event_pb2",
        "tensorboard.compat.proto.summary_pb2",
        "tensorboard.plugins",
        "tensorboard.plugins.text",
        "tensorboard.plugins.text.summary_v2",
        "tensorboard.summary",
        "tensorboard.summary.writer",
        "tensorboard.summary.writer.event_file_writer",
    )
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, values in (
        ("compat.proto.event_pb2", {"Event": noted}),
        ("compat.proto.summary_pb2", {"Summary": type("Summary", (), {"__new__": staticmethod(summed)})}),
        ("plugins.text.summary_v2", {"text_pb": lambda tag, text: noted(tag=tag, text=text)}),
        ("summary.writer.event_file_writer", {"EventFileWriter": EventFileWriter}),
    ):
        vars(sys.modules[f"tensorboard.{name}"]).update(values)
    for name in ("tb_event_writer", "tb_receiver"):
        monkeypatch.delitem(sys.modules, f"nvflare.app_opt.tracking.tb.{name}", raising=False)
    sys.modules["tensorboard.compat.proto.summary_pb2"].Summary.Value = noted  # type: ignore[attr-defined]
    EventFileWriter.all.clear()
    receiver = trackers.TensorBoard()
    engine = Engine(tmp_path / "run", receiver)
    with engine.new_context() as fl_ctx:
        engine.fire_event("_start_run", fl_ctx)
    yield receiver, engine
    for writer in EventFileWriter.all:
        writer.close()
    for name in ("tb_event_writer", "tb_receiver"):
        sys.modules.pop(f"nvflare.app_opt.tracking.tb.{name}", None)


def summed(kind: Any, value: Any) -> SimpleNamespace:
    return noted(value=value)


def scalars(tag: str, values: dict[str, float]) -> bytes:
    """Return a hostile site's points, which none of our writers has checked."""
    return json.dumps([tag, values, "SCALARS", "TORCH_TENSORBOARD", {"global_step": 1}]).encode()


def sent(tracker: metric_receiver.MetricReceiver, *lines: bytes, site: str = "site-1") -> Response:
    body = b"\n".join([json.dumps([uuid.uuid4().hex, 0]).encode(), *lines])
    return asyncio.run(tracker.take(site, Request(metrics_relay.PATH, (), body)))


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_one_point_makes_a_handful_of_threads_and_files(
    board: tuple[trackers.TensorBoard, Engine], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The review's trigger: 4,000 keys of add_scalars in one point of 64 KiB made 4,000 threads."""
    tracker = metric_receiver.MetricReceiver(
        functools.partial(metric_receiver.fire, board[1]), lambda site, reason: None
    )
    before = threading.active_count()
    for site in ("site-1", "site-2"):
        # Too many for one site: left out, with a line.
        assert sent(tracker, scalars("x", {f"t{i}": 1.0 for i in range(4000)}), site=site).status == 200
        assert sent(tracker, scalars("x", {f"t{i}": 1.0 for i in range(1900)}), site=site).status == 200
        # All that comes after it finds no more.
        assert sent(tracker, *(scalars(f"y{n}", {"a": 1.0}) for n in range(90)), site=site).status == 200
    tracker.close()
    assert threading.active_count() - before <= 2 * (trackers.SITE_RUNS + 1) + 1
    assert len(EventFileWriter.all) == 2 * (trackers.SITE_RUNS + 1)
    # Nothing of it is lost: the others are scalars of the site's own run.
    own = next(w for w in EventFileWriter.all if w.file.parent.name == "site-1")
    assert len(own.events) == 1900 + 90 - trackers.SITE_RUNS
    assert "become scalars tag/key" in caplog.text and "more than 2000 tags" in caplog.text


def test_a_job_has_a_bound_on_runs_whatever_its_sites(board: tuple[trackers.TensorBoard, Engine]) -> None:
    tracker = metric_receiver.MetricReceiver(
        functools.partial(metric_receiver.fire, board[1]), lambda site, reason: None
    )
    for number in range(20):
        sent(tracker, scalars("x", {f"t{i}": 1.0 for i in range(20)}), site=f"site-{number}")
    tracker.close()
    assert len(EventFileWriter.all) == 20 + trackers.JOB_RUNS


OUTSIDE = [
    "/../../../../workspace/local/resources.json/y",
    "../../../../out",
    "a/../../../../../out",
    "..",
    ".",
    "/out",
    "a//out",
    "a/",
    " .. /x",
    "a\\..\\x",
    "a\x00b",
    "a\x1b[2Kb",
    "a\u202eb",
    "a\nb",
    "",
    "x" * 201,
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_tag_and_no_key_leads_out_of_the_folder(
    board: tuple[trackers.TensorBoard, Engine], tmp_path: Path, name: str
) -> None:
    """The review's second trigger: a key made a folder named like FLARE's configuration file."""
    tracker = metric_receiver.MetricReceiver(
        functools.partial(metric_receiver.fire, board[1]), lambda site, reason: None
    )
    good = scalars("good", {"a/b": 1.0, "c": 2.0})
    path = json.dumps(["t", "text", "TEXT", "MLFLOW", {"path": name}]).encode()
    scalar = json.dumps([name, 1.0, "SCALAR", "TORCH_TENSORBOARD", {}]).encode()
    sent(tracker, scalars("x", {name: 1.0}), scalars(name, {"a": 1.0}), scalar, path, good)
    tracker.close()
    found = files_below(tmp_path)
    assert [path for path in found if path.endswith("good_c")] == ["run/tb_events/site-1/good_c"]
    assert len(EventFileWriter.all) == 2 and all(path.startswith("run") for path in found), found
    own = next(w for w in EventFileWriter.all if w.file.parent.name == "site-1")
    assert [event.summary.value[0].tag for event in own.events] == ["good/a/b"]


def test_tags_have_a_bound_for_each_site_and_the_rest_goes_on(
    tracker: metric_receiver.MetricReceiver,
    fired: Fired,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metric_receiver, "SITE_TAGS", 50)
    lines = [metrics_relay.encode(scalar(n, f"tag {n}")) for n in range(300)]
    for _ in range(2):
        sent(tracker, *lines)
    sent(tracker, *lines[:3], site="site-2")
    sent(tracker, *lines[:3])
    tracker.close()
    assert len(fired.points) == 50 + 50 + 3 + 3
    # A bad point may cost a line, and a site so many.
    assert len(caplog.records) == 200 and "further ones are not logged" in caplog.text


def test_tags_have_a_bound_for_the_job(
    tracker: metric_receiver.MetricReceiver, fired: Fired, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_receiver, "JOB_TAGS", 100)
    for number in range(30):
        sent(tracker, *(metrics_relay.encode(scalar(n)) for n in range(3)), site=f"s{number}")
        sent(tracker, *(metrics_relay.encode(scalar(n, f"t{n}")) for n in range(9)), site=f"s{number}")
    tracker.close()
    assert len({(site, dxo.data["track_key"]) for site, dxo in fired.points}) == 100


@pytest.mark.parametrize(
    "point",
    [
        ["t", 1, "IMAGE", "TORCH_TENSORBOARD", {}],
        ["t", "x", "MODEL", "MLFLOW", {}],
        ["t", "x", "INIT_DATA", "WEIGHTS_AND_BIASES", {}],
        ["t", "x", "LOG_RECORD", "MLFLOW", {}],
        ["t", 1, "SCALAR", "TORCH_TENSORBOARD", {"global_step": -1}],
        ["t", 1, "SCALAR", "TORCH_TENSORBOARD", {"global_step": 2**63}],
        ["t", 1, "SCALAR", "TORCH_TENSORBOARD", {"global_step": True}],
        ["t", 1, "SCALAR", "TORCH_TENSORBOARD", {"global_step": 1.5}],
        ["t", 10**400, "SCALAR", "TORCH_TENSORBOARD", {}],
        ["t", [1], "SCALAR", "TORCH_TENSORBOARD", {}],
        ["t", {"a": [1]}, "SCALARS", "TORCH_TENSORBOARD", {}],
        ["t", {"a": "x"}, "METRICS", "MLFLOW", {}],
        ["t", {"a": "x" * 6001}, "PARAMETERS", "MLFLOW", {}],
        ["t", {"a": {"b": 1}}, "TAGS", "MLFLOW", {}],
        ["t", None, "TAG", "MLFLOW", {}],
        ["t", 1, "SCALAR", "TORCH_TENSORBOARD", {"more": "x" * 300}],
        ["t", 1, "SCALAR", "TORCH_TENSORBOARD", {"more": {"a": 1}}],
        ["t", 1, "SCALAR", "TORCH_TENSORBOARD", {f"m{n}": 1 for n in range(9)}],
        ["t", 1, "SCALAR", "TORCH_TENSORBOARD", {"value": 1}],
        [1, 1, "SCALAR", "TORCH_TENSORBOARD", {}],
        ["t", "x" * metrics_relay.POINT_LIMIT, "TEXT", "TORCH_TENSORBOARD", {}],
    ],
    ids=lambda point: json.dumps(point)[:50],
)
def test_a_point_without_its_form_is_not_taken(point: list[Any]) -> None:
    with pytest.raises(ValueError) as error:
        metrics_relay.decode(json.dumps(point).encode())
    assert len(str(error.value)) < 300 and str(error.value).isprintable()


def test_a_call_brings_so_many_points(tracker: metric_receiver.MetricReceiver, fired: Fired) -> None:
    line = metrics_relay.encode(scalar(1))
    assert sent(tracker, *[line] * metrics_relay.AT_ONCE).status == 200
    assert sent(tracker, *[line] * (metrics_relay.AT_ONCE + 1)).status == 400
    assert sent(tracker, *[b""] * 10_000).status == 400
    tracker.close()
    assert len(fired.points) == metrics_relay.AT_ONCE


def test_a_site_that_floods_costs_no_other_sites_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_relay, "WAITING_BYTES", 10_000)
    go, fired = threading.Event(), Fired()

    def fire(site: str, dxo: DXO) -> None:
        go.wait()
        fired(site, dxo)

    tracker = metric_receiver.MetricReceiver(fire, lambda site, reason: None)
    text = json.dumps(["t", "x" * 5000, "TEXT", "TORCH_TENSORBOARD", {}]).encode()
    sent(tracker, *[text] * 400)
    sent(tracker, metrics_relay.encode(scalar(1)), site="site-2")
    go.set()
    tracker.close()
    assert len([site for site, _ in fired.points if site == "site-1"]) < 5
    assert fired.steps("site-2") == [1]


def test_points_that_mlflow_refuses_cost_no_other_site(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []

    def flush(site: str) -> None:
        flushed.append(site)
        if site == "site-1":
            raise RuntimeError("Invalid metric name\x1b[2K")

    receiver, inner = trackers.MLflow(), Inner(tmp_path)
    inner.buffer = {site: {"METRICS": [1]} for site in ("site-1", "site-2")}
    monkeypatch.setattr(inner, "flush_buffers", flush, raising=False)
    monkeypatch.setattr(receiver, "_inner", inner)
    receiver._flush()
    assert flushed == ["site-1", "site-2"]
    assert r"MLflow refused what site-1 logged: Invalid metric name\x1b[2K" in caplog.text
    assert trackers._mlflow_name("acc (top-5) %$\\frac") == "acc _top-5_ ___frac"
