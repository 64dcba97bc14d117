"""Hand a job's points to FLARE's receivers for TensorBoard and for MLflow, as this stack has them.

The receivers are FLARE's own. This module adds three things. A receiver begins with the first point, so that
neither its imports nor an absent server delay the job. Points show within a second. TensorBoard's files are
where its container finds them while the job runs, and become part of the job's results afterwards.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

from nvflare.apis.analytix import AnalyticsData, AnalyticsDataType, LogWriterName
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.shareable import Shareable
from nvflare.app_common.widgets.streaming import AnalyticsReceiver

from bridge.common.job_options import MLFLOW, TENSORBOARD
from bridge.common.log_limit import LogLimit
from bridge.common.text import one_line

log = logging.getLogger(__name__)

SHOWN = Path("/tracking")
"""The folder that the server's container shares with TensorBoard's (`compose/tensorboard.yaml`). Elsewhere,
as in FLARE's simulator, it does not exist. The files are then in the job's folder from the beginning."""

FILES = "tb_events"
"""The folder of TensorBoard's files in the job's own, by FLARE's name for it. It has one folder a site."""

MLFLOW_URI, MLFLOW_SERVICE = "MLFLOW_TRACKING_URI", "http://mlflow:5000"
"""MLflow's own variable, and the address of its container."""

FLUSH_AFTER = 1.0
"""Seconds until a point shows. TensorBoard's writer would keep it for two minutes."""


SITE_RUNS, JOB_RUNS = 8, 64
"""Keys of `add_scalars` that get a separate run, and so a thread and a file: of one site, and of one job.
Further ones become scalars of the site's own run, tagged `tag/key`."""

RUN_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. +-]{0,60}")
"""The form of a tag, with `_` for its slashes, and of a key that can name a folder."""

OPEN_WITHIN, OPEN_AGAIN = 60.0, 1.0
"""Seconds until a silent server is given up for the whole job, and between two tries. A job that ends first
gives it up at once."""


class _Receiver(AnalyticsReceiver):
    """One of FLARE's receivers, made with the first point."""

    def __init__(self) -> None:
        super().__init__()
        self._inner: Any = None
        self._broken = False
        self._flushing: threading.Timer | None = None
        self._told = LogLimit()

    @abstractmethod
    def _open(self, fl_ctx: FLContext) -> Any:
        """Make FLARE's receiver and initialize it."""

    @abstractmethod
    def _flush(self) -> None:
        """Write the points that the receiver holds."""

    @abstractmethod
    def _save(self, fl_ctx: FLContext, shareable: Shareable, site: str) -> None:
        """Hand one point to FLARE's receiver, except for parts that could harm it."""

    def initialize(self, fl_ctx: FLContext) -> None:
        """Called by FLARE at the run's start. Nothing is done yet."""

    def save(self, fl_ctx: FLContext, shareable: Shareable, record_origin: str) -> None:
        """Called by FLARE with the points of the site `record_origin`, one after the other."""
        if self._broken:
            return
        if self._inner is None:
            try:
                self._inner = self._opened(fl_ctx)
            except Exception as error:
                self._broken = True
                log.error("the job is not tracked: could not open %s: %s", type(self).__name__, error)
                return
        try:
            self._save(fl_ctx, shareable, record_origin)
        except Exception as error:
            # FLARE would write a line for each point.
            what = one_line(repr(error), 300)
            self._told.warn(log, record_origin, "a point of %s could not be saved: %s", record_origin, what)
        if self._flushing is None:
            self._flushing = threading.Timer(FLUSH_AFTER, self._flush_now)
            self._flushing.daemon = True
            self._flushing.start()

    def _opened(self, fl_ctx: FLContext) -> Any:
        """Open the receiver, in several tries if its server does not answer. The points wait meanwhile."""
        deadline = time.monotonic() + OPEN_WITHIN
        while True:
            try:
                return self._open(fl_ctx)
            except Exception as error:
                if isinstance(error, ImportError) or self._end or time.monotonic() > deadline:
                    raise
            time.sleep(OPEN_AGAIN)

    def _flush_now(self) -> None:
        with self._save_lock:
            if self._flushing is None:
                return  # The run has ended meanwhile.
            self._flushing = None
            try:
                self._flush()
            except Exception as error:
                log.warning("%s could not write: %s", type(self).__name__, error)

    def finalize(self, fl_ctx: FLContext) -> None:
        """Called by FLARE at the run's end."""
        self._flushing = None
        if self._inner is not None:
            self._inner.finalize(fl_ctx)


class TensorBoard(_Receiver):
    """Writes TensorBoard's files: a folder for each job, with one folder for each site."""

    def __init__(self) -> None:
        super().__init__()
        self._runs: dict[str, set[tuple[str, str]]] = {}
        """By site: the tags and keys that have a separate run."""

    def _save(self, fl_ctx: FLContext, shareable: Shareable, site: str) -> None:
        point = AnalyticsData.from_dxo(from_shareable(shareable))
        if point is None or point.data_type != AnalyticsDataType.SCALARS:
            self._inner.save(fl_ctx, shareable, site)
            return
        # FLARE's receiver joins each key to a path unchanged, and starts a thread for it (nvflare 2.9.0
        # `tb_event_writer.py`, `add_scalars`).
        keys = {key for key in point.value if self._may_have_run(site, point.tag, key)}
        parts = (
            [(point.tag, {key: point.value[key] for key in keys}, AnalyticsDataType.SCALARS)] if keys else []
        )
        parts += [
            (f"{point.tag}/{key}", value, AnalyticsDataType.SCALAR)
            for key, value in point.value.items()
            if key not in keys
        ]
        for tag, value, data_type in parts:
            part = AnalyticsData(tag, value, data_type, point.sender, **point.kwargs)
            self._inner.save(fl_ctx, part.to_dxo().to_shareable(), site)

    def _may_have_run(self, site: str, tag: str, key: str) -> bool:
        runs = self._runs.setdefault(site, set())
        if (tag, key) in runs:
            return True
        fits = all(RUN_KEY.fullmatch(name) for name in (tag.replace("/", "_"), key))
        if not fits or len(runs) >= SITE_RUNS or sum(map(len, self._runs.values())) >= JOB_RUNS:
            return False
        runs.add((tag, key))
        if len(runs) == SITE_RUNS:
            log.warning(
                "%s: %d keys of add_scalars have a run. Further ones become scalars tag/key", site, SITE_RUNS
            )
        return True

    def _open(self, fl_ctx: FLContext) -> Any:
        # Imported here, because it takes a while and needs the package.
        from nvflare.app_opt.tracking.tb.tb_receiver import TBAnalyticsReceiver

        inner = TBAnalyticsReceiver(FILES)
        inner.initialize(fl_ctx)
        if os.access(SHOWN, os.W_OK):
            folder = SHOWN / shown_as(fl_ctx)
            folder.mkdir(exist_ok=True)
            inner.root_log_dir = str(folder)
        return inner

    def _flush(self) -> None:
        for writer in self._inner.writers_table.values():
            writer.flush()

    def finalize(self, fl_ctx: FLContext) -> None:
        """Called by FLARE at the run's end. The files become part of the results."""
        super().finalize(fl_ctx)
        folder = Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id())) / FILES
        if self._inner is not None and Path(self._inner.root_log_dir) != folder:
            shutil.copytree(self._inner.root_log_dir, folder, dirs_exist_ok=True)


class MLflow(_Receiver):
    """Sends points to an MLflow server: an experiment for each job name, with a run for each site or server
    of each job."""

    def _save(self, fl_ctx: FLContext, shareable: Shareable, site: str) -> None:
        point = AnalyticsData.from_dxo(from_shareable(shareable), receiver=LogWriterName.MLFLOW)
        if point is None:
            return
        if site not in self._inner.buffer:
            self._add_run(site, fl_ctx)
        # One name that MLflow refuses would cost a whole batch.
        value = point.value
        if isinstance(value, dict):
            value = {_mlflow_name(key): part for key, part in value.items()}
        part = AnalyticsData(
            _mlflow_name(point.tag), value, point.data_type, LogWriterName.MLFLOW, **point.kwargs
        )
        self._inner.save(fl_ctx, part.to_dxo().to_shareable(), site)

    def _open(self, fl_ctx: FLContext) -> Any:
        from mlflow.tracking.client import MlflowClient
        from nvflare.app_opt.tracking.mlflow.mlflow_receiver import MLflowReceiver

        uri = os.environ.get(MLFLOW_URI, MLFLOW_SERVICE)
        name = _job_name(fl_ctx)
        # First without a place for its artifacts, because FLARE would name one on this machine.
        client = MlflowClient(uri)
        if client.get_experiment_by_name(name) is None:
            client.create_experiment(name)
        told = {"experiment_name": name, "run_name": "Flower", "experiment_tags": {}, "run_tags": {}}
        inner = MLflowReceiver(tracking_uri=uri, kw_args=told)
        inner.initialize(fl_ctx)
        return inner

    def _add_run(self, site: str, fl_ctx: FLContext) -> None:
        """Make the run of a site that came late, or of the server. FLARE makes runs for the sites that are
        there at the start (nvflare 2.9.0 `mlflow_receiver.py`, `initialize`)."""
        self._inner._mlflow_setup("", _job_name(fl_ctx), {}, [site], fl_ctx)
        self._inner._init_buffer([site])

    def _flush(self) -> None:
        for site, kept in self._inner.buffer.items():
            if any(kept.values()):
                self._flush_site(site)

    def _flush_site(self, site: str) -> None:
        """Send one site's points, so that one refused by the server holds back no other site's."""
        try:
            self._inner.flush_buffers(site)
        except Exception as error:
            self._told.warn(log, site, "MLflow refused what %s logged: %s", site, one_line(str(error), 300))

    def finalize(self, fl_ctx: FLContext) -> None:
        """Called by FLARE at the run's end."""
        if self._inner is not None:
            self._flush()
        super().finalize(fl_ctx)


RECEIVERS: dict[str, type[_Receiver]] = {TENSORBOARD: TensorBoard, MLFLOW: MLflow}
"""By choice. Without a choice no points are received."""


def _mlflow_name(name: str) -> str:
    """Return a name in the form that MLflow accepts."""
    return re.sub(r"[^\w.\- :/]", "_", name)


def shown_as(fl_ctx: FLContext) -> str:
    """Return the name under which TensorBoard shows a job: its own, and the beginning of its id."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{_job_name(fl_ctx)}-{fl_ctx.get_job_id()[:8]}").lstrip(".-")


def _job_name(fl_ctx: FLContext) -> str:
    meta = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
    return str(meta.get(JobMetaKey.JOB_NAME.value) or meta.get(JobMetaKey.JOB_NAME) or "job")
