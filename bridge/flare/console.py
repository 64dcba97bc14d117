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
import shutil
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from bridge import events
from bridge.flare import meta as keys
from bridge.flare import trackers
from bridge.flare.channel import EVENTS_FILE, EVENTS_TOPIC
from bridge.flower import versions
from bridge.flower.app import (
    DEPLOYED,
    ROUNDS_KEY,
    BadApp,
    ConfigValue,
    check_packages,
    check_run_config,
    read_app,
)

WORKSPACE = Path(os.environ.get("FLOWERBED_WORKSPACE", "/workspace"))
"""The folder that holds this identity's kit (`startup/`, `local/`) and takes what FLARE writes."""

CONNECT_WITHIN = 15.0
"""Seconds to reach the server and log in."""

BACK_WITHIN = 60.0
"""Seconds for a server that was there to come back, while somebody waits for a job: it takes about 10."""

RUNNING = ("DISPATCHED", "RUNNING")
"""The status of a job that has processes."""

NOT_STARTED = "FINISHED:FAILED_TO_RUN"
"""The status of a job that too many of its sites, or the server, have refused."""

NOTED_WITHIN = 3.0
"""Seconds after that status in which the server notes the reason beside it: a few hundredths of one."""

POLL = 0.5
"""Seconds between two questions after a job's events: FLARE's console can only ask."""

Session = Any


class Stop(Exception):
    """Ends the program with one JSON error."""

    def __init__(self, text: str, code: int = 1, **facts: Any) -> None:
        super().__init__(text)
        self.code = code
        self.facts = facts


class Denied(Exception):
    """The server does not let this identity do it; the text is FLARE's."""


class Unreachable(Stop):
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
    except Stop as stop:
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
    for name, run in (("export", _export), ("submit", _submit)):
        sub = verb(name, run)
        # The app is on the server, in a folder of this name; stdin brings no more than its pyproject.toml.
        sub.add_argument("--deployed", default="")
        sub.add_argument("--name", default="")
        sub.add_argument("--rounds", type=int)
        sub.add_argument("--run-config", action="append", default=[], metavar="KEY=VALUE")
        sub.add_argument("--min-sites", type=int)
        sub.add_argument("--sites", default="")
        sub.add_argument("--grace", type=float, default=keys.GRACE)
        sub.add_argument("--cold", action="store_true")
        sub.add_argument("--supernode", default="process")
        sub.add_argument("--retries", type=int, default=0)
        sub.add_argument("--in-order", type=int)
        sub.add_argument("--tracking", default=trackers.TENSORBOARD)
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
    """The folder that came as a tar through stdin."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as tar:
                # Debian 12's Python 3.11.2 has no extraction filters; the tar is our own user's.
                tar.extraction_filter = getattr(tarfile, "data_filter", None)
                tar.extractall(folder)
        except tarfile.TarError as error:
            raise Stop(f"expected a tar on stdin: {error}", 2) from None
        yield Path(folder)


def _check(args: argparse.Namespace) -> None:
    versions.generation()
    with _input() as app:
        config = read_app(app)
        check_packages(config)
        project = config.get("project", {})
        _say({"ok": True, "app": project.get("name", ""), "version": project.get("version", "")})


def _make_job(args: argparse.Namespace, app: Path, into: Path, default_min_sites: int) -> Path:
    """Check the app against this image and write its job folder; returns the folder."""
    # Here, since with an unsupported flwr it need not import.
    from bridge.flare.job import FlowerJob

    config = read_app(app)
    check_packages(config)
    run_config = _run_config(args, config)
    sites = [site for site in args.sites.split(",") if site] or None
    try:
        job = FlowerJob(
            None if args.deployed else app,
            flower_app_path=f"{DEPLOYED}/{args.deployed}" if args.deployed else "",
            name=args.name or config.get("project", {}).get("name", "flower-app"),
            run_config=run_config,
            min_sites=args.min_sites or (len(sites) if sites else default_min_sites),
            sites=sites,
            grace=args.grace,
            warm=not args.cold,
            supernode=args.supernode,
            retries=args.retries,
            in_order=args.in_order,
            tracking=args.tracking,
        )
    except ValueError as error:
        raise Stop(str(error), 2) from None
    with contextlib.redirect_stdout(sys.stderr):
        job.export_job(str(into))
    return into / str(job.name)


def _run_config(args: argparse.Namespace, config: dict[str, Any]) -> dict[str, ConfigValue]:
    """The overrides as TOML values, as `flwr run --run-config` reads them."""
    values: dict[str, ConfigValue] = {}
    for pair in args.run_config:
        key, equals, value = pair.partition("=")
        if not equals:
            raise Stop(f"--run-config expects KEY=VALUE, found {pair!r}", 2)
        try:
            values[key.strip()] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = value  # A bare word: a string without its quotes.
    if args.rounds is not None:
        if args.rounds < 1:
            raise Stop(f"--rounds expects at least 1, found {args.rounds}", 2)
        values[ROUNDS_KEY] = args.rounds
    check_run_config(config, values)
    return values


def _export(args: argparse.Namespace) -> None:
    versions.generation()
    with _input() as app, tempfile.TemporaryDirectory() as into:
        folder = _make_job(args, app, Path(into), default_min_sites=1)
        _send_tar(folder)


def _submit(args: argparse.Namespace) -> None:
    versions.generation()
    with _input() as folder, tempfile.TemporaryDirectory() as into, _session() as session:
        here = {client.name for client in session.get_system_info().client_info}
        if (folder / "meta.json").exists():
            try:
                meta = json.loads((folder / "meta.json").read_text())
            except ValueError as error:
                raise Stop(f"the job's meta.json is broken: {error}", 2) from None
            job = Path(into) / (meta.get("name") or "job")
            shutil.copytree(folder, job)
            wanted = int(meta.get("min_clients") or 1)
        else:
            job = _make_job(args, folder, Path(into), default_min_sites=max(1, len(here)))
            wanted = int(json.loads((job / "meta.json").read_text())["min_clients"])
        unknown = {site for site in args.sites.split(",") if site} - here
        if unknown:
            raise Stop(
                f"no site {', '.join(sorted(unknown))} is registered; "
                f"registered are: {', '.join(sorted(here)) or 'none'}",
                2,
            )
        if wanted > len(here):
            raise Stop(
                f"the job asks for {wanted} sites, but {len(here)} are registered"
                f"{': ' + ', '.join(sorted(here)) if here else ''}",
                2,
            )
        with _flare_errors():
            _say({"job_id": session.submit_job(str(job)), "sites": sorted(here)})


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
        raise Stop(f"refused by the server: {error}", denied=True) from None
    except api_spec.JobNotFound as error:
        raise Stop(f"{error}. The jobs there are: ./flowerbed jobs", 2) from None
    except api_spec.InvalidJobDefinition as error:
        raise Stop(f"refused by the server: {error}", 2) from None
    except Exception as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    if isinstance(error, Stop):
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
        raise Stop(f"there is no log of {args.site} for job {args.job}: {reason}")
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
    denied: bool = False
    """Whether this identity may not ask the running job for its events."""


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
                if site not in told.refused:
                    told.refused.add(site)
                    _say({"event": "refused", "site": site, "reason": why, "t": time.time()})
        if now.startswith("FINISHED"):
            break
        if now == "RUNNING" and not told.denied:
            try:
                for event in _new_events(session, args.job, told.events):
                    told.events += 1
                    _say(event)
            except Denied as denied:
                told.denied = True
                _say({"event": "no progress", "reason": str(denied), "t": time.time()})
        if deadline is not None and time.monotonic() > deadline:
            raise Stop(f"job {args.job} has not ended within {args.timeout:.0f} s: it is {now}")
        time.sleep(POLL)
    reason = ""
    for number, event in enumerate(_final_events(session, args.job)):
        if number >= told.events:
            _say(event)
        reason = event.get("reason", reason)
    noted_by = time.monotonic() + (NOTED_WITHIN if told.status == NOT_STARTED else 0.0)
    with _flare_errors():
        # Once more: what the keeper notes comes just after the status.
        while not (kept := _kept(session.get_job_meta(args.job)))["reason"] and time.monotonic() < noted_by:
            time.sleep(POLL)
    # What the server knows goes before what the job's own process saw: it may have been told to stop.
    kept["reason"] = kept["reason"] or reason
    _say({"event": "end", "status": told.status, "t": time.time(), **kept})


def _new_events(session: Session, job: str, since: int) -> list[dict[str, Any]]:
    """The running job's events from number `since` on; none while its process starts or ends.

    Raises:
        Denied: they are not for this identity.
    """
    from nvflare.fuel.flare_api import api_spec

    try:
        with _quiet():
            reply = session.do_app_command(job, EVENTS_TOPIC, {"since": since})
    except (api_spec.AuthorizationError, api_spec.AuthenticationError) as error:
        raise Denied(str(error)) from None
    except Exception:
        return []  # The job's status, asked for next, tells what matters.
    return list(reply.get("events", []))


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
                raise Stop(
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
