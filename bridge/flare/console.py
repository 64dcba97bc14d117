"""The researcher's tool inside a console container: `python -m bridge.flare.console VERB ...`.

The verbs of `flowerbed` run it there, under the console's own FLARE identity (its kit), so that the
host needs neither that identity nor a name for the server. It speaks JSON lines on stdout; an app or
a job travels as a tar through stdin and stdout. Errors are `{"error": ...}`, the last line of
stderr, with exit code 1 (failed) or 2 (wrong use).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from bridge.common import events, job_options, versions
from bridge.common import meta as keys
from bridge.common.app import DEPLOYED, ROUNDS_KEY, BadApp, check_packages, check_run_config, read_app
from bridge.common.errors import FlowerbedError
from bridge.job import fab, news
from bridge.job.channel import EVENTS_FILE, EVENTS_TOPIC

WORKSPACE = Path(os.environ.get("FLOWERBED_WORKSPACE", "/workspace"))
"""The folder that holds this identity's kit (`startup/`, `local/`) and takes what FLARE writes."""

CONNECT_WITHIN = 15.0
"""Seconds to reach the server and log in."""

ANSWER_WITHIN = 10.0
"""Seconds for an answer, beyond those for which the server may keep the question."""

BACK_WITHIN = 60.0
"""Seconds for a server that was there to come back, while somebody waits for a job: it takes about 10."""

RUNNING = ("DISPATCHED", "RUNNING")
"""The status of a job that has processes."""

NOT_STARTED = "FINISHED:FAILED_TO_RUN"
"""The status of a job that too many of its sites, or the server, have refused."""

NOTED_WITHIN = 3.0
"""Seconds after that status in which the server notes the reason beside it: a few hundredths of one."""

POLL = 0.5
"""Seconds between two questions, at the least. Each is a line in the server's audit log."""

NEWS_WITHIN = 15.0
"""Seconds for which the server may keep a question after a job's events until there are some (`news.py`)."""

GATHERED = 2.0
"""Seconds to which the pause between two answers grows in five minutes, where there is news all the time."""

QUEUED = 5.0
"""Seconds to which the pause grows while a job waits for its turn."""

STATUS_FIRST, STATUS_EVERY = 2.0, 30.0
"""Seconds between two questions after the status of a job that runs: at first, and later."""

INPUT_LIMIT = 256 * 1024 * 1024
"""Bytes of all files of an app or a job: four times what the host's side sends."""

FOLDER = "job"
"""The folder in which a job goes to the server, whatever its own name is."""

RUN_ENDED = "run ended"
"""The event that says why a run has failed. A site's refusal has a reason too, and is none of the job's."""

Session = Any


@dataclass(frozen=True)
class JobRequest:
    """Of what a job is made, beside the app that comes through stdin."""

    deployed: str = ""
    """The app is on the server, in a folder of this name; stdin brings no more than its pyproject.toml."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `JobOptions`, as far as they are given."""


def _request(text: str) -> JobRequest:
    """The type of that argument: JSON."""
    return JobRequest(**json.loads(text))


class ConsoleError(FlowerbedError):
    """Ends the program with one JSON error."""

    def __init__(self, text: str, code: int = 1, **facts: Any) -> None:
        super().__init__(text)
        self.code = code
        self.facts = facts


class Denied(FlowerbedError):
    """The server does not let this identity do it; the text is FLARE's."""


class Unreachable(ConsoleError):
    """The server does not answer, or has lost the session."""


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except BadApp as bad:
        return _error(str(bad), 2, bad.facts)
    except versions.UnsupportedFlower as wrong:
        return _error(str(wrong), 2, {})
    except ConsoleError as stop:
        return _error(str(stop), stop.code, stop.facts)
    except KeyboardInterrupt:
        return 130
    return 0


def _error(text: str, code: int, facts: dict[str, Any]) -> int:
    print(json.dumps({"error": text, **facts}), file=sys.stderr, flush=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="console", description="FLARE jobs from inside a console container."
    )
    verbs = parser.add_subparsers(required=True)

    def verb(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name)
        sub.set_defaults(run=run)
        return sub

    verb("check", _check)
    verb("hash", _hash)
    for name, run in (("export", _export), ("submit", _submit)):
        sub = verb(name, run)
        sub.add_argument("request", type=_request, nargs="?", default=JobRequest())
    verb("list", _list)
    verb("sites", _sites)
    wait = verb("wait", _wait)
    wait.add_argument("job")
    wait.add_argument("--timeout", type=float)
    logs = verb("logs", _logs)
    logs.add_argument("job")
    logs.add_argument("--site", default="server")
    verb("abort", _abort).add_argument("job")
    verb("end", _end).add_argument("--within", type=float, required=True)
    verb("download", _download).add_argument("job")
    return parser


def _say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


# Apps and jobs


@contextlib.contextmanager
def _input() -> Iterator[Path]:
    """The folder that came as a tar through stdin: files and folders only, nothing outside it.

    Our own check, since the Python 3.11.2 of Debian 12 has no extraction filters.
    """
    with tempfile.TemporaryDirectory() as folder:
        size = 0
        try:
            with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                        raise ConsoleError(f"expected files below one folder, found {member.name[:200]!r}", 2)
                    size += member.size
                    if size > INPUT_LIMIT:
                        raise ConsoleError(f"expected at most {INPUT_LIMIT} bytes of files, found more", 2)
                    tar.extract(member, folder, set_attrs=False)
        except (tarfile.TarError, OSError) as error:
            raise ConsoleError(f"expected a tar on stdin: {error}", 2) from None
        yield Path(folder)


def _check(args: argparse.Namespace) -> None:
    versions.generation()
    with _input() as app:
        config = read_app(app)
        check_packages(config)
        project = config.get("project", {})
        _say({"ok": True, "app": project.get("name", ""), "version": project.get("version", "")})


def _make_job(request: JobRequest, app: Path, into: Path, default_min_sites: int) -> Path:
    """Check the app against this image and write its job folder; returns the folder."""
    # Here, since with an unsupported flwr it need not import.
    from bridge.flare.job import FlowerJob

    config = read_app(app)
    check_packages(config)
    options = {**job_options.submit_defaults(), **request.options}
    options.setdefault("name", config.get("project", {}).get("name", "flower-app"))
    options.setdefault("min_sites", len(options.get("sites") or ()) or default_min_sites)
    rounds = {} if options.get("rounds") is None else {ROUNDS_KEY: options["rounds"]}
    check_run_config(config, {**(options.get("run_config") or {}), **rounds})
    if request.deployed:
        options["flower_app_path"] = f"{DEPLOYED}/{request.deployed}"
    try:
        job = FlowerJob(None if request.deployed else app, **options)
    except (TypeError, ValueError) as error:
        raise ConsoleError(str(error), 2) from None
    with contextlib.redirect_stdout(sys.stderr):
        job.export_job(str(into))
    return into / str(job.name)


def _export(args: argparse.Namespace) -> None:
    versions.generation()
    with _input() as app, tempfile.TemporaryDirectory() as into:
        folder = _make_job(args.request, app, Path(into), default_min_sites=1)
        _send_tar(folder)


def _submit(args: argparse.Namespace) -> None:
    versions.generation()
    with _input() as folder, tempfile.TemporaryDirectory() as into, _session() as session:
        here = {client.name for client in session.get_system_info().client_info}
        if (folder / "meta.json").exists():
            job = Path(shutil.copytree(folder, Path(into) / FOLDER))
            wanted = _wanted(job)
        else:
            job = _make_job(args.request, folder, Path(into), default_min_sites=max(1, len(here)))
            wanted = _wanted(job)
        unknown = set(args.request.options.get("sites") or ()) - here
        if unknown:
            raise ConsoleError(
                f"no site {', '.join(sorted(unknown))} is registered; "
                f"registered are: {', '.join(sorted(here)) or 'none'}",
                2,
            )
        if wanted > len(here):
            raise ConsoleError(
                f"the job asks for {wanted} sites, but {len(here)} are registered"
                f"{': ' + ', '.join(sorted(here)) if here else ''}",
                2,
            )
        with _flare_errors():
            answer = {"job_id": session.submit_job(str(job)), "sites": sorted(here)}
        _say(answer | ({"warning": warning} if (warning := versions.newer()) else {}))


def _wanted(job: Path) -> int:
    """The fewest sites of a job. Its name is looked at too: FLARE, and people, take it for a name."""
    try:
        meta = json.loads((job / "meta.json").read_text())
        name, wanted = meta.get("name"), int(meta.get("min_clients") or 1)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConsoleError(f"the job's meta.json is broken: {error}", 2) from None
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", name):
        raise ConsoleError(
            f"the job's meta.json has the name {str(name)[:200]!r}: expected letters, digits, '.', '_', '-'",
            2,
        )
    return wanted


def _hash(args: argparse.Namespace) -> None:
    """Say by which hash sites know an app: that of the FAB which a job of it carries."""
    with _input() as app:
        content = fab.build(app)
    project = fab.read(content).get("project", {})
    _say({"hash": fab.sha256(content), "app": project.get("name", ""), "version": project.get("version", "")})


def _send_tar(folder: Path) -> None:
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, arcname=path.name)
    sys.stdout.buffer.flush()


# FLARE


@contextlib.contextmanager
def _session() -> Iterator[Session]:
    """A logged-in session of this container's identity."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    user = json.loads((WORKSPACE / "startup" / "fed_admin.json").read_text())["admin"]["username"]
    with _flare_errors(), _quiet():
        session = new_secure_session(user, str(WORKSPACE), timeout=CONNECT_WITHIN)
    try:
        yield session
    finally:
        with _quiet():
            session.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep FLARE's own printing out of stdout, which holds our JSON lines."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _flare_errors() -> Iterator[None]:
    """Turn FLARE's exceptions into one error for people."""
    from nvflare.fuel.flare_api import api_spec

    try:
        yield
    except api_spec.NoConnection as error:
        raise Unreachable(
            f"the server cannot be reached: {error}. Is the federation up? ./flowerbed status"
        ) from None
    except (api_spec.AuthorizationError, api_spec.AuthenticationError) as error:
        raise ConsoleError(f"refused by the server: {error}", denied=True) from None
    except api_spec.JobNotFound as error:
        raise ConsoleError(f"{error}. The jobs there are: ./flowerbed jobs", 2) from None
    except api_spec.InvalidJobDefinition as error:
        raise ConsoleError(f"refused by the server: {error}", 2) from None
    except Exception as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    if isinstance(error, ConsoleError):
        raise error
    raise Unreachable(f"FLARE: {type(error).__name__}: {error}") from None


def _list(args: argparse.Namespace) -> None:
    with _session() as session, _flare_errors():
        jobs = session.list_jobs(detailed=True)
    _say(
        {
            "jobs": [
                {
                    "job_id": job.get("job_id"),
                    "name": job.get("job_name") or job.get("name"),
                    "status": job.get("status"),
                    "submit_time": job.get("submit_time"),
                    "duration": job.get("duration"),
                    "submitter": job.get("submitter_name"),
                    **_kept(job),
                }
                for job in jobs
            ]
        }
    )


def _kept(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What the server's keeper has noted of a job: its reason, who refused it, which jobs repeat which."""
    return {
        "reason": meta.get(keys.REASON, ""),
        "refused": meta.get(keys.REFUSED) or {},
        "retry_of": meta.get(keys.RETRY_OF),
        "retried_as": meta.get(keys.RETRIED_AS),
        "retries_left": int(meta.get(keys.RETRIES) or 0),
    }


def _sites(args: argparse.Namespace) -> None:
    with _session() as session, _flare_errors():
        info = session.get_system_info()
    now = time.time()
    _say(
        {
            "server": str(info.server_info.status),
            "sites": [
                {"name": c.name, "last_seen_seconds": round(now - float(c.last_connect_time), 1)}
                for c in info.client_info
            ],
        }
    )


def _logs(args: argparse.Namespace) -> None:
    with _session() as session, _flare_errors():
        reply = session.get_job_logs(args.job, target=args.site)
    text = reply["logs"].get(args.site)
    if text is None:
        reason = reply.get("unavailable", {}).get(args.site) or "FLARE has none"
        raise ConsoleError(f"there is no log of {args.site} for job {args.job}: {reason}")
    print(text, end="")


def _abort(args: argparse.Namespace) -> None:
    with _session() as session, _flare_errors():
        with _quiet():
            session.abort_job(args.job)
        _say({"job_id": args.job, "status": session.get_job_meta(args.job).get("status")})


def _end(args: argparse.Namespace) -> None:
    """Abort all jobs that run, and wait until they have ended; tells which there were, and which are left."""
    deadline = time.monotonic() + args.within
    asked: set[str] = set()
    with _session() as session, _flare_errors():
        jobs = _unfinished(session)
        while (left := [job["job_id"] for job in _unfinished(session) if job["status"] in RUNNING]) and (
            time.monotonic() < deadline
        ):
            for job in set(left) - asked:
                # FLARE may be too busy, or the job just starting: then it is asked again.
                with _quiet(), contextlib.suppress(Exception):
                    session.abort_job(job)
                    asked.add(job)
            time.sleep(POLL)
    _say({"jobs": jobs, "left": left})


def _unfinished(session: Session) -> list[dict[str, Any]]:
    with _quiet():
        jobs = session.list_jobs(detailed=True)
    return [
        {"job_id": job.get("job_id"), "name": job.get("name"), "status": str(job.get("status"))}
        for job in jobs
        if not str(job.get("status")).startswith("FINISHED")
    ]


@dataclass
class _Told:
    """What was told of a job so far."""

    status: str = ""
    events: int = 0
    refused: set[str] = field(default_factory=set)
    contact: float | None = None
    """When the server answered last, by the monotonic clock."""
    began: float = field(default_factory=time.monotonic)
    denied: bool = False
    """Whether this identity may not ask the running job for its events."""

    def tell(self, event: dict[str, Any]) -> None:
        """Tell an event; of a site that refused only once, since job and keeper both know of it."""
        if event.get("event") == "refused":
            if event["site"] in self.refused:
                return
            self.refused.add(event["site"])
        _say(event)


def _wait(args: argparse.Namespace) -> None:
    """Tell the job's events as they come, until it has ended; also when the server restarts meanwhile."""
    deadline = None if args.timeout is None else time.monotonic() + args.timeout
    told = _Told()
    while True:
        try:
            with _session() as session:
                return _follow(session, args, deadline, told)
        except Unreachable:
            if told.contact is None or time.monotonic() - told.contact > BACK_WITHIN:
                raise
        time.sleep(POLL)


def _follow(session: Session, args: argparse.Namespace, deadline: float | None, told: _Told) -> None:
    while True:
        with _flare_errors():
            meta = session.get_job_meta(args.job)
        told.contact = time.monotonic()
        now = str(meta.get("status"))
        if now != told.status and not now.startswith("FINISHED"):
            submitted = meta.get("submit_time")
            _say({"event": "status", "status": now, "submitted": submitted, "t": time.time()})
        told.status = now
        if now != NOT_STARTED:  # There, it is the reason.
            for site, why in _kept(meta)["refused"].items():
                told.tell({"event": "refused", "site": site, "reason": why, "t": time.time()})
        if now.startswith("FINISHED"):
            break
        if now == "RUNNING" and not told.denied:
            _tell_news(session, args.job, deadline, told)
        if deadline is not None and time.monotonic() > deadline:
            raise ConsoleError(f"job {args.job} has not ended within {args.timeout:.0f} s: it is {now}")
        if now != "RUNNING" or told.denied:
            time.sleep(_pause(told, QUEUED, deadline))
    reason = ""
    for number, event in enumerate(_final_events(session, args.job)):
        if number >= told.events:
            told.tell(event)
        if event.get("event") == RUN_ENDED:
            reason = event.get("reason", "")
    noted_by = time.monotonic() + (NOTED_WITHIN if told.status == NOT_STARTED else 0.0)
    with _flare_errors():
        # Once more: what the keeper notes comes just after the status.
        while not (kept := _kept(session.get_job_meta(args.job)))["reason"] and time.monotonic() < noted_by:
            time.sleep(POLL)
    # What the server knows goes before what the job's own process saw: it may have been told to stop.
    kept["reason"] = kept["reason"] or reason
    _say({"event": "end", "status": told.status, "t": time.time(), **kept})


def _tell_news(session: Session, job: str, deadline: float | None, told: _Told) -> None:
    """Tell a running job's events as they come; return when its status is worth a question."""
    asked = time.monotonic()
    every = STATUS_EVERY if asked - told.began > STATUS_EVERY else STATUS_FIRST
    while True:
        before = time.monotonic()
        wait = NEWS_WITHIN if deadline is None else min(NEWS_WITHIN, max(0.0, deadline - before))
        try:
            found = _new_events(session, job, told.events, wait)
        except Denied as denied:
            told.denied = True
            _say({"event": "no progress", "reason": str(denied), "t": time.time()})
            return
        for event in found or ():
            told.events += 1
            told.tell(event)
        now = time.monotonic()
        told.contact = told.contact if found is None else now
        # Not at once again, whatever comes; but what waited for news has paused already.
        time.sleep(max(0.0, _pause(told, GATHERED, deadline) - (0.0 if found else now - before)))
        if found is None or now - asked > every or (deadline is not None and now > deadline):
            return


def _pause(told: _Told, most: float, deadline: float | None) -> float:
    """Seconds until the next question: a person who has just begun to watch gets answers sooner."""
    watched = time.monotonic() - told.began
    pause = min(most, POLL + most * watched / 300)
    return pause if deadline is None else min(pause, max(POLL / 5, deadline - time.monotonic()))


def _new_events(session: Session, job: str, since: int, wait: float) -> list[dict[str, Any]] | None:
    """The running job's events from number `since` on: when there are some, or after `wait` seconds. None
    while its process starts or ends.

    Raises:
        Denied: they are not for this identity.
    """
    from nvflare.fuel.flare_api import api_spec

    try:
        with _quiet():
            session.set_timeout(wait + ANSWER_WITHIN)
            try:
                reply = session.do_app_command(job, EVENTS_TOPIC, {news.SINCE: since, news.WAIT: wait})
            finally:
                session.unset_timeout()
    except (api_spec.AuthorizationError, api_spec.AuthenticationError) as error:
        raise Denied(str(error)) from None
    except Exception:
        return None  # The job's status, asked for next, tells what matters.
    return list(reply.get(news.EVENTS, [])) or (None if reply.get("over") else [])


def _final_events(session: Session, job: str) -> list[dict[str, Any]]:
    """All events of an ended job, from its stored workspace."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _quiet():
                location = session.download_job_result(job, folder)
        except Exception:
            return []  # A job that never ran has no workspace.
        files = sorted(Path(location or folder).rglob(EVENTS_FILE))
        return list(events.read(files[0])) if files else []


def _download(args: argparse.Namespace) -> None:
    """Send the ended job's results: workspace/, logs/ and meta.json, as a tar."""
    with _session() as session, tempfile.TemporaryDirectory() as folder:
        with _flare_errors():
            meta = session.get_job_meta(args.job)
            if not str(meta.get("status", "")).startswith("FINISHED"):
                raise ConsoleError(
                    f"job {args.job} has not ended: it is {meta.get('status')}. "
                    f"Wait for it: ./flowerbed wait {args.job}"
                )
            with _quiet():
                location = Path(session.download_job_result(args.job, folder) or folder)
            logs = session.get_job_logs(args.job, target="all")["logs"]
        out = Path(folder) / "out"
        (out / "logs").mkdir(parents=True)
        (out / "meta.json").write_text(json.dumps(meta))
        for site, text in logs.items():
            (out / "logs" / f"{site}.log").write_text(text)
        workspace = location / "workspace"
        if workspace.is_dir():
            workspace.rename(out / "workspace")
        _send_tar(out)


if __name__ == "__main__":
    sys.exit(main())
