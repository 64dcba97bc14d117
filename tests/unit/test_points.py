"""Points on their way from an app's writer to FLARE's receivers: in order, each once, before the replies."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import inspect
import json
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.analytix import AnalyticsData, AnalyticsDataType, LogWriterName
from nvflare.apis.dxo import DXO
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.utils.analytix_utils import create_analytic_dxo

from bridge.flare import points, trackers
from bridge.flower import wire
from bridge.relay import Call, Caller, LinkFault, Request, Response

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
    """What the tracker hands on."""

    def __init__(self) -> None:
        self.points: list[tuple[str, DXO]] = []
        self.refused: list[str] = []

    def __call__(self, site: str, dxo: DXO) -> None:
        self.points.append((site, dxo))

    def steps(self, site: str = "site-1") -> list[int | None]:
        return [step_of(dxo) for name, dxo in self.points if name == site]


class TrackerLink:
    """A link that brings points to a tracker, and says in which order everything came."""

    def __init__(self, tracker: points.Tracker) -> None:
        self.tracker = tracker
        self.came: list[str] = []
        self.losses = 0
        """So many answers are lost, each after the server has acted."""
        self.up = asyncio.Event()
        self.up.set()

    async def send(self, call: Call) -> Response:
        await self.up.wait()
        self.came.append(call.request.path)
        response = Response(200)
        if call.request.path == points.PATH:
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
def tracker(fired: Fired) -> points.Tracker:
    return points.Tracker(fired, lambda site, reason: fired.refused.append(reason))


def put(waiting: points.Points, *dxos: DXO) -> None:
    """As FLARE's relay does: from another thread."""

    def put_all() -> None:
        for dxo in dxos:
            waiting.put(dxo)

    thread = threading.Thread(target=put_all)
    thread.start()
    thread.join()


async def begun(tracker: points.Tracker) -> tuple[points.Points, TrackerLink, Caller]:
    waiting, link = points.Points(asyncio.get_running_loop()), TrackerLink(tracker)
    caller = Caller(points.PointsFirst(link, waiting))
    waiting.send_by(caller)
    return waiting, link, caller


@pytest.mark.parametrize("number", [0.25, 3, float("inf")])
def test_a_point_comes_out_as_it_went_in(number: float) -> None:
    dxo = create_analytic_dxo(
        "a/b", number, AnalyticsDataType.SCALAR, LogWriterName.TORCH_TB, global_step=7, more="text"
    )
    back = points.decode(points.encode(dxo))
    assert (back.data, back.meta) == (dxo.data, dxo.meta)


def test_mlflows_parameters_and_texts_are_carried_too() -> None:
    for kind, value, more in (
        (AnalyticsDataType.PARAMETERS, {"lr": 0.1, "name": "x"}, {}),
        (AnalyticsDataType.TEXT, "hello\nthere", {"path": "notes/a.txt"}),
        (AnalyticsDataType.METRICS, {"loss": 0.5}, {"global_step": 2}),
    ):
        dxo = create_analytic_dxo("t", value, kind, LogWriterName.MLFLOW, **more)
        back = points.decode(points.encode(dxo))
        assert (back.data, back.meta) == (dxo.data, dxo.meta)


@pytest.mark.parametrize("value", ["x" * points.POINT_LIMIT, b"bytes"])
def test_what_is_too_large_or_no_text_is_left_out(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    kind = AnalyticsDataType.TEXT if isinstance(value, str) else AnalyticsDataType.IMAGE
    points.Points(asyncio.new_event_loop()).put(create_analytic_dxo("note", value, kind))
    assert "not tracked: note" in caplog.text


@pytest.mark.parametrize("losses", [0, 1, 3])
@on_a_loop
async def test_all_arrive_once_and_in_order_whatever_is_lost(
    tracker: points.Tracker, fired: Fired, losses: int
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
async def test_no_reply_overtakes_a_point(tracker: points.Tracker) -> None:
    waiting, link, caller = await begun(tracker)
    link.up.clear()
    put(waiting, scalar(1))
    reply = asyncio.ensure_future(caller.call(PUSH, wire.rule(PUSH)))
    pull = Request(wire.PREFIX + wire.PULL, (), b"")
    asked = asyncio.ensure_future(caller.call(pull, wire.rule(pull)))
    await asyncio.sleep(0.05)
    link.up.set()
    assert await reply == Response(200) == await asked
    tracker.close()
    assert link.came.index(points.PATH) < link.came.index(PUSH.path)


@on_a_loop
async def test_a_supernode_that_dies_loses_no_point(tracker: points.Tracker, fired: Fired) -> None:
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
async def test_the_end_waits_for_no_point(tracker: points.Tracker) -> None:
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
async def test_a_site_that_starts_anew_begins_a_new_stream(tracker: points.Tracker, fired: Fired) -> None:
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
        b'["stream", 0]\n' + b" " * points.BODY_LIMIT,
    ],
)
@on_a_loop
async def test_a_call_that_brings_no_points_is_refused(
    tracker: points.Tracker, fired: Fired, body: bytes
) -> None:
    response = await tracker.take("site-1", Request(points.PATH, (), body))
    tracker.close()
    assert response.status == 400
    assert len(fired.refused) == 1 and fired.points == []


@on_a_loop
async def test_one_bad_point_spoils_no_other(tracker: points.Tracker, fired: Fired) -> None:
    lines = [
        points.encode(scalar(1)),
        b'["t", "text", "SCALAR", "TORCH_TENSORBOARD", {}]',
        b'["t", 1, "NO SUCH", "TORCH_TENSORBOARD", {}]',
        b'["t", 1, "SCALAR", "TORCH_TENSORBOARD", {"global_step": "1"}]',
        b'["t", 1, "SCALAR", "TORCH_TENSORBOARD", {"sender": "x"}]',
        b'{"t": 1}',
        points.encode(scalar(2)),
    ]
    body = b"\n".join([b'["s", 0]', *lines])
    assert (await tracker.take("site-1", Request(points.PATH, (), body))).status == 200
    tracker.close()
    assert fired.steps() == [1, 2]


def test_replies_become_points_and_nothing_raises(tracker: points.Tracker, fired: Fired) -> None:
    event = {"event": "reply", "round": 2, "site": "site-1", "kind": "train", "num_examples": 10}
    tracker.add_reply({**event, "metrics": {"loss": 0.5}, "error": ""})
    for strange in ({"metrics": None}, {"metrics": {"a": "text"}}, {"round": "x", "metrics": {"a": 1}}):
        tracker.add_reply({**event, **strange})
    tracker.add_reply({})
    tracker.close()
    told = [AnalyticsData.from_dxo(dxo) for _, dxo in fired.points]
    assert [(data.tag, data.value, data.step) for data in told[:2]] == [
        ("flower/train/loss", 0.5, 2),
        ("flower/train/num_examples", 10, 2),
    ]
    assert tracker.taken == {}


def test_a_receiver_that_fails_or_hangs_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hang = threading.Event()

    def fire(site: str, dxo: DXO) -> None:
        if step_of(dxo) == 0:
            raise RuntimeError("its disk is full")
        hang.wait()

    monkeypatch.setattr(points, "WAITING", 5)
    monkeypatch.setattr(points, "TAKEN_WITHIN", 0.2)
    tracker = points.Tracker(fire, lambda site, reason: None)
    for number in range(20):
        tracker._put("site-1", scalar(number))
    tracker.close()
    hang.set()
    assert "its disk is full" in caplog.text
    assert "points were dropped" in caplog.text
    assert "points were not taken" in caplog.text


class Engine:
    """As much of FLARE's engine as receivers and `points.fire` ask for."""

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
    """In the place of FLARE's receiver."""

    def __init__(self, folder: Path) -> None:
        self.root_log_dir = str(folder)
        self.saved: list[str] = []
        self.writers_table: dict[str, Any] = {}
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
    points.fire(engine, "site-1", scalar(1))


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
    points.fire(engine, "site-1", scalar(2))
    with engine.new_context() as fl_ctx:
        engine.fire_event("_end_run", fl_ctx)
    assert caplog.text.count("the job is not tracked") == 1


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
    assert wire.call_name(points.PATH) is None


def test_what_is_told_of_the_points() -> None:
    told = points.logged({"b": 1, "a": 2})
    # As every event has, and whoever shows progress expects.
    assert abs(told.pop("t") - time.time()) < 60
    assert json.dumps(told) == '{"event": "tracked", "points": {"a": 2, "b": 1}}'
