"""The verbs of Flower's Control API (`bridge/flare/control_api`): an app as a run, runs, and a run's log."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.common import app_environment, meta, versions
from bridge.common.app import BadApp
from bridge.common.app_environment import AppEnvironment
from bridge.common.job_options import ConfigValue
from bridge.common.text import shown
from bridge.flare.console import apps, archive, waiting
from bridge.flare.console.call import ConsoleCall, ConsoleError
from bridge.flare.console.jobs import kept
from bridge.flare.console.logs import SERVER, added, log_of
from bridge.job import fab

PRINTED = re.compile(r"[0-9-]{10} [0-9:]{8},[0-9]+ - serverapp - [A-Z]+ - (.*)", re.DOTALL)
"""A line of the job's log that the ServerApp has printed. No app prints such a line for another process
(`bridge/common/log_lines.py`)."""

LOOK_AGAIN, LOOK_SELDOM = 0.5, 2.0
"""Seconds between two checks of a run's log, in the first minute and later."""

WAITS_AFTER, WAITS_EVERY = 2.0, 30.0
"""Seconds for which a run is watched before its log says for what it waits, and between two looks at that."""


def start(
    call: ConsoleCall,
    run_config: Mapping[str, ConfigValue] | None = None,
    min_sites: int | None = None,
    gpus: int = 0,
) -> None:
    """Hand in the FAB that came with the request as a job, for all sites that are registered.

    Args:
        run_config: overrides of the app's run config.
        min_sites: the fewest sites, if not all that are registered.
        gpus: those that the app needs at each site.
    """
    versions.generation()
    with archive.unpacked(call) as folder, tempfile.TemporaryDirectory() as into:
        file = folder / fab.NAME
        if not file.is_file():
            raise ConsoleError(f"expected {fab.NAME} in the request's tar", 2)
        made = _environment(fab.config(file), gpu=gpus > 0)
        with call.session() as session:
            here = waiting.registered(session)
        options: dict[str, Any] = {"run_config": dict(run_config or {}), "gpus": gpus}
        options |= {"environment": made.name} if made else {}
        options |= {"min_sites": min_sites} if min_sites else {}
        job = apps.make_job(file, Path(into), options, deployed="", default_min_sites=max(1, len(here)))
        warning = versions.newer(made.flwr) if made else ""
        call.say(apps.hand_in(call, job, here) | ({"warning": warning} if warning else {}))


def _environment(config: Mapping[str, Any], *, gpu: bool) -> AppEnvironment | None:
    """The app's environment. A console of another machine sees none, and leaves the choice to the server.

    Raises:
        BadApp: there is none here for what the app asks for.
    """
    if not app_environment.ROOT.is_dir():
        return None
    if (made := app_environment.find(config, gpu=gpu)) is None:
        wanted = app_environment.requirements(config)
        raise BadApp(
            f"The app has no environment yet. It asks for {', '.join(wanted)}. Make one on the "
            "federation's machine: ./flowerbed build --app APP",
            missing=list(wanted),
        )
    return made


def listed(call: ConsoleCall, prefix: str = "") -> None:
    """Say which jobs there are, with what Flower tells of a run.

    Args:
        prefix: only jobs with ids that begin so.
    """
    with call.session() as session:
        jobs = session.list_jobs(detailed=True, **({"id_prefix": prefix} if prefix else {}))
        wait = any(job.get("status") in waiting.WAITING for job in jobs)
        sites = waiting.registered(session) if wait else {}
    call.say({"runs": [_run(job, sites) for job in jobs], "now": time.time()})


def _run(job: Mapping[str, Any], sites: Mapping[str, float]) -> dict[str, Any]:
    submitted, started, ended = meta.times(job)
    noted = kept(job)
    status = str(job.get("status"))
    return {
        "job_id": job.get("job_id"),
        "name": job.get("job_name") or job.get("name"),
        "app": job.get(meta.APP) or {},
        "status": status,
        "submitter": job.get("submitter_name"),
        "submitted": submitted,
        "started": started,
        "ended": ended if status.startswith("FINISHED") else None,
        "reason": noted["reason"] or job.get(meta.SAID, "") or waiting.waits_for(job, sites),
    }


def log(call: ConsoleCall, job: str) -> None:
    """Tell what the ServerApp prints, to the job's end: `lines`, or a `note` of ours.

    An empty object says that this was all so far. The last one has `status`, and the `reason` of a failure.
    """
    began, text, looked, told = time.monotonic(), "", None, ""
    while True:
        with call.session() as session:
            found = dict(session.get_job_meta(job))
        status = str(found.get("status"))
        ended = status.startswith("FINISHED")
        if status in waiting.WAITING:
            now = time.monotonic()
            if now - began > WAITS_AFTER and (looked is None or now - looked > WAITS_EVERY):
                looked = now
                with call.session() as session:
                    waits = waiting.waits_for(found, waiting.registered(session))
                if waits and waits != told:
                    told = waits
                    call.say({"note": f"The run {waits}"})
        else:
            latest = _whole_lines(_serverapp_log(call, job, ended=ended), ended=ended)
            if not text.startswith(latest):
                if lines := printed(added(text, latest)):
                    call.say({"lines": lines})
                text = latest
        if ended:
            break
        call.say({})
        call.pause(min(LOOK_SELDOM, max(LOOK_AGAIN, (time.monotonic() - began) / 120)))
    call.say({"status": status, "reason": kept(found)["reason"] or found.get(meta.SAID, "")})


def _serverapp_log(call: ConsoleCall, job: str, *, ended: bool) -> str:
    try:
        return log_of(call, job, SERVER, ended=ended)
    except ConsoleError as error:
        if error.facts.get("denied"):
            raise
        return ""  # A job that never ran has none. Its reason says why.


def printed(text: str) -> list[str]:
    """Return the ServerApp's lines in a piece of the job's log."""
    found = (PRINTED.fullmatch(line) for line in text.split("\n"))
    return [shown(line[1]) for line in found if line is not None]


def _whole_lines(text: str, *, ended: bool) -> str:
    return text if ended else text[: text.rfind("\n") + 1]
