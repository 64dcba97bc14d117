"""The server's end of the logs that sites stream: FLARE's, with bounds against hostile sites.

FLARE's `JobLogReceiver` (nvflare 2.9.0 `app_common/logging/job_log_receiver.py`) writes all data that comes,
as long as it comes, under any job's name, with a thread for each stream. It keeps its notes, among them the
path of the file to be stored, in a dictionary that the site has sent. So a site could have any file of the
server moved into the job store, which shows logs. Here
- a log is accepted for a known job that the site takes part in,
- the streams of a site at a time, and the logs of a site in a job, are limited,
- data beyond `limits.log` is dropped, with a line that says so,
- nothing of FLARE's notes comes from the site.

FLARE takes a log's site from the message, not from the connection. A site can still write under another
site's name, within that one's bounds.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from nvflare.apis.fl_constant import ReturnCode, RunProcessKey, SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.streaming import ObjectConsumer, StreamContext
from nvflare.app_common.logging import job_log_receiver
from nvflare.app_common.logging.constants import LIVE_LOG_TOPIC, Channels
from nvflare.app_common.logging.job_log_receiver import JobLogReceiver
from nvflare.app_common.streamers.log_streamer import LogChunkConsumerFactory, dispatch_stream_done
from nvflare.app_common.streamers.streamer_base import KEY_FILE_NAME, KEY_STREAM_DONE_CB

from bridge.common import meta
from bridge.common.disk import JOB_ID
from bridge.common.log_limit import LogLimit
from bridge.common.text import one_line
from bridge.job import replaced, settings

log = logging.getLogger(__name__)

SITE_STREAMS = 32
"""Streams of one site that are open at a time. Each has a thread, and a job has two."""

JOB_LOGS = 4
"""Logs of one site and job, by their names. FLARE's are log.txt and error_log.txt."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""The form of a log's name."""

REMEMBERED = 4096
"""Sites' parts in jobs that are remembered, the newest, at some hundred bytes each."""

_PART = "flowerbed.part"
_OPEN = "flowerbed.open"

OURS = (
    job_log_receiver._KEY_RECV_FILE,
    job_log_receiver._KEY_RECV_PATH,
    KEY_STREAM_DONE_CB,
    _PART,
    _OPEN,
)
"""Keys of FLARE and this module in a stream's context. The context itself comes from the site."""

Part = tuple[str, str]
"""A site and a job."""


class LogReceiver(JobLogReceiver):
    """See the module. Its arguments are those of FLARE's."""

    def __init__(self, dest_dir: str | None = None, idle_timeout: float = 30.0) -> None:
        super().__init__(dest_dir, idle_timeout)
        self._lock = threading.Lock()
        self._limit = settings.Limits().log
        self._written: OrderedDict[Part, dict[str, int]] = OrderedDict()
        """The bytes of each part's logs."""
        self._streams: Counter[str] = Counter()
        self._told = LogLimit()

    def _register(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE when streams can come. Registers as FLARE does, with our factory."""
        self._limit = settings.read(settings.workspace_of(fl_ctx)).limits.log
        fl_ctx.get_engine().register_stream_processing(
            channel=Channels.LOG_STREAMING_CHANNEL,
            topic=LIVE_LOG_TOPIC,
            factory=_Factory(self, self._idle_timeout),
            stream_done_cb=dispatch_stream_done,
        )

    def opens(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> bool:
        """Return whether a stream that begins may continue. Its context holds the site's data."""
        name = stream_ctx.get(KEY_FILE_NAME)
        for key in OURS:
            stream_ctx.pop(key, None)
        site, job = part = self._get_trusted_stream_identity(fl_ctx)
        why = ""
        if not isinstance(name, str) or not NAME.fullmatch(name) or not JOB_ID.fullmatch(job):
            why = "its name or its job's name is not valid"
        elif not takes_part(site, job, fl_ctx):
            why = "the site takes no part in that job"
        else:
            with self._lock:
                logs = self._written.setdefault(part, {})
                self._written.move_to_end(part)
                while len(self._written) > REMEMBERED:
                    self._written.popitem(last=False)
                if self._streams[site] >= SITE_STREAMS or (name not in logs and len(logs) >= JOB_LOGS):
                    why = (
                        f"at most {SITE_STREAMS} streams of a site and {JOB_LOGS} logs of a job are accepted"
                    )
                else:
                    # The stream starts over, and so does its file.
                    logs[name] = 0
                    self._streams[site] += 1
                    stream_ctx[_PART], stream_ctx[_OPEN] = (*part, name), site
        if why:
            said = one_line(f"{name!r} for job {job!r}: {why}", 300)
            self._told.warn(log, site, "refused a log of %s: %s", one_line(site, 100), said)
        return not why

    def closed(self, stream_ctx: StreamContext) -> None:
        """Take note that a stream has ended, for any reason."""
        with self._lock:
            site = stream_ctx.pop(_OPEN, None)
            if site is not None:
                self._streams[site] -= 1

    def _on_chunk_received(self, data: bytes, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        """Called by FLARE with the next bytes of a log."""
        site, job, name = stream_ctx[_PART]
        with self._lock:
            logs = self._written.setdefault((site, job), {})
            room = self._limit - logs.get(name, 0)
            logs[name] = logs.get(name, 0) + min(len(data), max(room, 0))
            # True once, because these bytes count, and the next chunk finds less than nothing.
            last = 0 <= room < len(data)
            if last:
                logs[name] += 1
        if room > 0:
            super()._on_chunk_received(data[:room], stream_ctx, fl_ctx)
        if last:
            note = f"the log of {site} is longer than {self._limit / 2**20:g} MB. The rest is dropped"
            note += " (limits.log of the server, project.yml)"
            log.warning("job %s: %s", job, note)
            super()._on_chunk_received(f"\n{note}\n".encode(), stream_ctx, fl_ctx)


class _Factory(LogChunkConsumerFactory):
    """Makes FLARE's consumer of a stream that may begin."""

    def __init__(self, receiver: LogReceiver, idle_timeout: float) -> None:
        super().__init__(receiver._on_chunk_received, idle_timeout, receiver._on_stream_done, {})
        self._receiver = receiver

    def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        if not self._receiver.opens(stream_ctx, fl_ctx):
            return _Nothing()
        return super().get_consumer(stream_ctx, fl_ctx)

    def return_consumer(self, consumer: ObjectConsumer, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        self._receiver.closed(stream_ctx)


class _Nothing(ObjectConsumer):
    """Accepts nothing of a stream, and ends it."""

    def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable]:
        return False, make_reply(ReturnCode.TASK_ABORTED)


def show_logs_of_sites_alone() -> None:
    """Show only logs of a job's sites to readers of the job's logs, from now on, and no file that another
    name leads to."""

    def of_a_site(read: Callable[..., str | None]) -> Callable[..., str | None]:
        def read_live(module: Any, engine: Any, job: str, name: str, *more: Any, **named: Any) -> str | None:
            with engine.new_context() as fl_ctx:
                if not takes_part(name, job, fl_ctx):
                    return None
            return read(module, engine, job, name, *more, **named)

        return read_live

    replaced.replace(replaced.LIVE_LOG, of_a_site)


def takes_part(site: str, job: str, fl_ctx: FLContext) -> bool:
    """Return whether a site is, or was, one of a job's. Asked in the server's process, or in the job's
    own."""
    engine: Any = fl_ctx.get_engine()
    process = (getattr(engine, "run_processes", None) or {}).get(job)
    if process is not None:
        return site in {client.name for client in process[RunProcessKey.PARTICIPANTS].values()}
    if fl_ctx.get_job_id() == job:
        return site in {client.name for client in engine.get_clients()}
    manager = engine.get_component(SystemComponents.JOB_MANAGER)
    known = manager.get_job(job, fl_ctx) if manager is not None else None
    if known is None:
        return False
    clients = known.meta.get(JobMetaKey.JOB_CLIENTS.value) or known.meta.get(JobMetaKey.JOB_CLIENTS) or ()
    names = {client.get("name") for client in clients if isinstance(client, dict)}
    return site in names | set(known.meta.get(meta.SITES) or ())
