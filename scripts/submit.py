"""Hand in a Flower app (or an exported job folder) as a FLARE job; prints the job's id.

  ./flowerbed submit apps/pytorch-quickstart
  ./flowerbed submit apps/pytorch-quickstart --rounds 5 --run-config "learning-rate=0.01 batch-size=64" --wait
  ./flowerbed submit my-app --sites site-1,site-3 --as lead
  ./flowerbed submit --deployed my-app --rounds 5    an app in the server's folder deployed/: no code travels
  ./flowerbed submit my-app --export jobs/my-job     write the job folder instead, for FLARE's own submit_job
The app stays as it is: what runs with `flwr run` runs here. It is checked before anything is sent.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from scripts import app as apps
from scripts import console, core, ownership, provision
from scripts import wait as waiting
from scripts.core import Failure, Misuse, say, unpack
from scripts.options import As, RunConfig, Timeout, duration


def run(
    app: Annotated[
        Path | None,
        typer.Argument(metavar="APP", help="A Flower app's folder, the one with pyproject.toml."),
    ] = None,
    deployed: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead, an app that the server has already, in the folder deployed/: the job brings no "
            "code, and runs also where that is forbidden.",
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(metavar="N", help=f"Sets {apps.ROUNDS_KEY} of the app's run config.")
    ] = None,
    run_config: RunConfig = None,
    name: Annotated[str | None, typer.Option(help="The job's name (default: the app's).")] = None,
    sites: Annotated[
        str | None, typer.Option(metavar="A,B", help="The sites that take part (default: all there are).")
    ] = None,
    min_sites: Annotated[
        int | None,
        typer.Option(metavar="N", help="The fewest sites to start with (default: all that take part)."),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            metavar="TIME",
            parser=duration,
            help="How long a site may be out of reach before it is given up (default: 900).",
        ),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Submit it again by itself, up to N times, if the server restarts meanwhile (default: 0).",
        ),
    ] = None,
    cold: Annotated[
        bool,
        typer.Option(
            "--cold",
            help="Start a new interpreter for every message, as plain Flower does: slower, with the same "
            "results.",
        ),
    ] = False,
    supernode: Annotated[
        Literal["process", "inline"] | None,
        typer.Option(
            help="A process of its own, or inside FLARE's process of the job: less memory (default: process)."
        ),
    ] = None,
    in_order: Annotated[
        int | None,
        typer.Option(
            metavar="SEED",
            help="Hand the ServerApp its replies in the sites' order, seed its random numbers, and record "
            "what passes it: the same to the last bit in every run, if the app is (see also: ./flowerbed "
            "compare).",
        ),
    ] = None,
    tracking: Annotated[
        Literal["tensorboard", "mlflow", "none"] | None,
        typer.Option(
            help="Where the curves go, of what the app logs with FLARE's writers and of every reply "
            "(default: tensorboard; to see it: ./flowerbed up --tracking tensorboard)."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show the progress until the job has ended.")] = False,
    timeout: Timeout = None,
    export: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the FLARE job folder to DIR instead of submitting it."),
    ] = None,
    identity: As = None,
) -> dict[str, Any]:
    """Check, pack and hand in the app; wait if asked to."""
    chosen = _chosen(app, deployed)
    options = _options(
        chosen,
        rounds=rounds,
        run_config=run_config or None,
        name=name,
        sites=sites,
        min_sites=min_sites,
        grace=grace,
        retries=retries,
        cold=cold or None,
        supernode=supernode,
        in_order=in_order,
        tracking=tracking,
        export=export,
    )
    ownership.check()
    service = console.service(identity)
    if export is not None:
        return write(service, chosen, export, options)
    outcome = submit(service, chosen, options)
    job = outcome["job_id"]
    if not core.as_json:
        print(job, flush=True)
    if wait:
        return {**outcome, **waiting.follow(service, job, timeout=timeout)}
    say(f"  progress: ./flowerbed wait {job}   then: ./flowerbed results {job}")
    return outcome


def _chosen(app: Path | None, deployed: str | None) -> apps.App:
    if app is not None and deployed is not None:
        raise Misuse("--deployed NAME: not allowed with APP, whose code would travel.")
    if app is not None:
        return apps.read(app)
    if deployed is not None:
        return apps.read_deployed(deployed)
    raise Misuse("Expected one of the arguments APP and --deployed NAME.")


def _options(app: apps.App, **given: Any) -> list[str]:
    """The console program's job options, checked as far as the host can."""
    if app.ready:
        if any(value is not None for value in given.values()):
            none_of = ", ".join(f"--{key.replace('_', '-')}" for key in given)
            raise Misuse(
                f"{app.folder} is a job folder and is submitted as it is: expected none of {none_of}. "
                "Give the app's own folder to set them."
            )
        return []
    words = [f"--deployed={app.folder.name}"] if app.deployed else []
    words += [
        f"--run-config={pair}" for pair in apps.run_config(app, given["run_config"] or (), given["rounds"])
    ]
    known = provision.site_names()
    sites = known if given["sites"] is None else _names(given["sites"])
    unknown = [site for site in sites if site not in known]
    if unknown:
        raise Misuse(f"--sites: project.yml has no site {', '.join(unknown)}. It has: {', '.join(known)}.")
    fewest = given["min_sites"]
    if fewest is not None and not 1 <= fewest <= len(sites):
        raise Misuse(f"--min-sites {fewest}: expected 1 to {len(sites)}; the sites are {', '.join(sites)}.")
    given["sites"] = given["sites"] and ",".join(sites)
    for key in (
        "rounds",
        "name",
        "sites",
        "min_sites",
        "grace",
        "retries",
        "supernode",
        "in_order",
        "tracking",
    ):
        if given[key] is not None:
            words.append(f"--{key.replace('_', '-')}={given[key]}")
    return [*words, "--cold"] if given["cold"] else words


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise Misuse("--sites: expected the names of sites with commas between, such as site-1,site-2.")
    return names


def submit(service: str, app: apps.App, options: list[str]) -> dict[str, Any]:
    """Hand in an app; returns `{job_id, app, version}`.

    Raises:
        Failure, Misuse: with what the console program said; for missing packages, what adds them.
    """
    try:
        answer = console.ask(service, "submit", *options, payload=app.pack())
    except Failure as failure:
        raise _advised(failure, app) from failure
    say(f"Submitted {app.name} {app.version}".rstrip() + f" as {service}: job {answer['job_id']}")
    return {"job_id": answer["job_id"], "app": app.name, "version": app.version}


def write(service: str, app: apps.App, folder: Path, options: list[str]) -> dict[str, Any]:
    """Write the job folder to `folder`, which must be new, empty, or an earlier export."""
    if folder.exists() and not (
        folder.is_dir() and (not any(folder.iterdir()) or (folder / "meta.json").is_file())
    ):
        raise Misuse(
            f"--export {folder}: expected a new or empty folder, or an earlier export; found other files."
        )
    try:
        content = console.fetch(service, "export", *options, payload=app.pack())
    except Failure as failure:
        raise _advised(failure, app) from failure
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    fresh.chmod(0o755)  # the consoles read jobs/ as another user, whatever the umask here
    with content, tarfile.open(fileobj=content) as tar:
        unpack(tar, fresh, for_consoles=True)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    say(f"Job folder of {app.name}: {folder}")
    say(
        "  hand it in with ./flowerbed submit, or, if it is in jobs/, in the admin console: "
        f"submit_job {folder.name}"
    )
    return {"app": app.name, "version": app.version, "folder": str(folder)}


def _advised(failure: Failure, app: apps.App) -> Failure:
    """A failure of the console program, with the command that mends it where there is one."""
    if failure.facts.get("missing"):
        command = f"./flowerbed build --app {app.folder}"
        return type(failure)(
            f"{failure}\n  Add them to the images: {command}, then ./flowerbed up", **failure.facts
        )
    return failure
