"""Where a job's points go: FLARE's receivers for TensorBoard and for MLflow, as this stack has them.

The receivers are FLARE's own. What is added: they begin with the first point, so that neither their imports
nor a server that is away hold up the job; what they have is shown within a second; and TensorBoard's files
lie where its container finds them while the job runs, and are part of the job's results after it.
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

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.shareable import Shareable
from nvflare.app_common.widgets.streaming import AnalyticsReceiver

log = logging.getLogger(__name__)

NONE, TENSORBOARD, MLFLOW = "none", "tensorboard", "mlflow"
CHOICES = (TENSORBOARD, MLFLOW, NONE)
"""What a job's points may be written for."""

SHOWN = Path("/tracking")
"""What the server's container shares with TensorBoard's (`compose/tensorboard.yaml`). Elsewhere, as in
FLARE's simulator, it is not there: then the files are in the job's folder from the beginning."""

FILES = "tb_events"
"""The folder of TensorBoard's files in the job's own, FLARE's name for it; one folder a site."""

MLFLOW_URI, MLFLOW_SERVICE = "MLFLOW_TRACKING_URI", "http://mlflow:5000"
"""MLflow's own variable, and where its container is."""

FLUSH_AFTER = 1.0
"""Seconds from a point to its being shown. TensorBoard's writer would keep it for two minutes."""


OPEN_WITHIN, OPEN_AGAIN = 60.0, 1.0
"""Seconds until a server that does not answer is given up for the whole job, and between two tries. A job
that ends first gives it up at once."""


class _Receiver(AnalyticsReceiver):
    """One of FLARE's receivers, made with the first point."""

    def __init__(self) -> None:
        super().__init__()
        self._inner: Any = None
        self._broken = False
        self._flushing: threading.Timer | None = None

    @abstractmethod
    def _open(self, fl_ctx: FLContext) -> Any:
        """Make FLARE's receiver and initialize it."""

    @abstractmethod
    def _flush(self) -> None:
        """Write what it keeps."""

    def initialize(self, fl_ctx: FLContext) -> None:
        """Called by FLARE at the run's start: nothing is to be done yet."""

    def save(self, fl_ctx: FLContext, shareable: Shareable, record_origin: str) -> None:
        """Called by FLARE with a point of the site `record_origin`, one after the other."""
        if self._broken:
            return
        if self._inner is None:
            try:
                self._inner = self._opened(fl_ctx)
            except Exception as error:
                self._broken = True
                log.error("the job is not tracked: %s cannot be had: %s", type(self).__name__, error)
                return
        self._inner.save(fl_ctx, shareable, record_origin)
        if self._flushing is None:
            self._flushing = threading.Timer(FLUSH_AFTER, self._flush_now)
            self._flushing.daemon = True
            self._flushing.start()

    def _opened(self, fl_ctx: FLContext) -> Any:
        """Open it, in several tries if it is a server that does not answer. The points wait meanwhile."""
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
    """Writes TensorBoard's files: a folder a job, in it one a site."""

    def _open(self, fl_ctx: FLContext) -> Any:
        # Here, not above: it takes a while, and needs the package.
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
        """Called by FLARE at the run's end: what was shown becomes part of the results."""
        super().finalize(fl_ctx)
        folder = Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id())) / FILES
        if self._inner is not None and Path(self._inner.root_log_dir) != folder:
            shutil.copytree(self._inner.root_log_dir, folder, dirs_exist_ok=True)


class MLflow(_Receiver):
    """Tells an MLflow server: an experiment a job's name, in it a run a job and site."""

    def _open(self, fl_ctx: FLContext) -> Any:
        from mlflow.tracking.client import MlflowClient
        from nvflare.app_opt.tracking.mlflow.mlflow_receiver import MLflowReceiver

        uri = os.environ.get(MLFLOW_URI, MLFLOW_SERVICE)
        name = _job_name(fl_ctx)
        # First, without a place for its artifacts: FLARE would name one on this machine.
        client = MlflowClient(uri)
        if client.get_experiment_by_name(name) is None:
            client.create_experiment(name)
        told = {"experiment_name": name, "run_name": "Flower", "experiment_tags": {}, "run_tags": {}}
        inner = MLflowReceiver(tracking_uri=uri, kw_args=told)
        inner.initialize(fl_ctx)
        return inner

    def _flush(self) -> None:
        for site, kept in self._inner.buffer.items():
            if any(kept.values()):
                self._inner.flush_buffers(site)


RECEIVERS: dict[str, type[_Receiver]] = {TENSORBOARD: TensorBoard, MLFLOW: MLflow}
"""By choice. No points are received where there is none."""


def shown_as(fl_ctx: FLContext) -> str:
    """The name under which TensorBoard shows a job: its own, and the beginning of its id."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{_job_name(fl_ctx)}-{fl_ctx.get_job_id()[:8]}").lstrip(".-")


def _job_name(fl_ctx: FLContext) -> str:
    meta = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
    return str(meta.get(JobMetaKey.JOB_NAME.value) or meta.get(JobMetaKey.JOB_NAME) or "job")
