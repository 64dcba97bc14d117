"""Hand in a Flower app (or an exported job folder) as a FLARE job; prints the job's id.

  ./flowerbed submit apps/pytorch-quickstart
  ./flowerbed submit apps/pytorch-quickstart --rounds 5 --run-config "learning-rate=0.01 batch-size=64" --wait
  ./flowerbed submit my-app --sites site-1,site-3 --as lead
  ./flowerbed submit --deployed my-app --rounds 5    an app in the server's folder deployed/: no code travels
  ./flowerbed submit my-app --export jobs/my-job     write the job folder instead, for FLARE's own submit_job
The app stays as it is: what runs with `flwr run` runs here. It is checked before anything is sent.
"""

from __future__ import annotations

import argparse
import shutil
import tarfile
from pathlib import Path
from typing import Any

from scripts import app as apps
from scripts import console, data, ownership, wait
from scripts.core import Failure, Misuse, say, unpack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """APP and how to run it."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "app", metavar="APP", type=Path, nargs="?", help="a Flower app's folder, the one with pyproject.toml"
    )
    which.add_argument(
        "--deployed",
        metavar="NAME",
        help="instead, an app that the server has already, in the folder deployed/: the job brings no code, "
        "and runs also where that is forbidden",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help=f"sets {apps.ROUNDS_KEY} of the app's run config"
    )
    parser.add_argument(
        "--run-config",
        action="append",
        default=[],
        metavar="K=V",
        help="override the app's run config, as for `flwr run`; may be repeated",
    )
    parser.add_argument("--name", help="the job's name (default: the app's)")
    parser.add_argument(
        "--sites", type=_names, metavar="A,B", help="the sites that take part (default: all there are)"
    )
    parser.add_argument(
        "--min-sites",
        type=int,
        metavar="N",
        help="the fewest sites to start with (default: all that take part)",
    )
    parser.add_argument(
        "--grace",
        type=float,
        metavar="SECONDS",
        help="how long a site may be out of reach before it is given up (default: 900)",
    )
    parser.add_argument(
        "--retries",
        type=int,
        metavar="N",
        help="submit it again by itself, up to N times, if the server restarts meanwhile (default: 0)",
    )
    parser.add_argument(
        "--cold",
        action="store_true",
        help="start a new interpreter for every message, as plain Flower does: slower, with the same results",
    )
    parser.add_argument(
        "--supernode",
        choices=["process", "inline"],
        help="a process of its own, or inside FLARE's process of the job: less memory (default: process)",
    )
    parser.add_argument(
        "--in-order",
        type=int,
        metavar="SEED",
        help="hand the ServerApp its replies in the sites' order, seed its random numbers, and record what "
        "passes it: the same to the last bit in every run, if the app is (see also: ./flowerbed compare)",
    )
    parser.add_argument(
        "--tracking",
        choices=["tensorboard", "mlflow", "none"],
        help="where the curves go, of what the app logs with FLARE's writers and of every reply "
        "(default: tensorboard; to see it: ./flowerbed up --tracking tensorboard)",
    )
    parser.add_argument("--wait", action="store_true", help="show the progress until the job has ended")
    wait.add_timeout(parser)
    parser.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="write the FLARE job folder to DIR instead of submitting it",
    )
    console.add_identity(parser)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(
            "expected the names of sites with commas between, such as site-1,site-2"
        )
    return names


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check, pack and hand in the app; wait if asked to."""
    app = apps.read(args.app) if args.deployed is None else apps.read_deployed(args.deployed)
    options = _options(app, args)
    ownership.check()
    service = console.service(args.identity)
    if args.export is not None:
        return export(service, app, args.export, options)
    outcome = submit(service, app, options)
    if args.format == "text":
        print(outcome["job_id"], flush=True)
    if args.wait:
        return {**outcome, **wait.follow(service, outcome["job_id"], timeout=args.timeout)}
    say(f"  progress: ./flowerbed wait {outcome['job_id']}   then: ./flowerbed results {outcome['job_id']}")
    return outcome


def _options(app: apps.App, args: argparse.Namespace) -> list[str]:
    """The console program's job options, checked as far as the host can."""
    if app.ready:
        given = [
            args.rounds,
            args.name,
            args.sites,
            args.min_sites,
            args.grace,
            args.retries,
            args.supernode,
            args.in_order,
            args.tracking,
            args.export,
        ]
        if args.run_config or args.cold or any(value is not None for value in given):
            raise Misuse(
                f"{args.app} is a job folder and is submitted as it is: expected none of --rounds, "
                "--run-config, --name, --sites, --min-sites, --grace, --retries, --cold, --supernode, "
                "--in-order, --tracking, --export. Give the app's own folder to set them."
            )
        return []
    words = [f"--deployed={args.deployed}"] if app.deployed else []
    words += [f"--run-config={pair}" for pair in apps.run_config(app, args.run_config, args.rounds)]
    if args.rounds is not None:
        words.append(f"--rounds={args.rounds}")
    if args.name:
        words.append(f"--name={args.name}")
    known = data.site_names()
    sites = args.sites or known
    unknown = [site for site in sites if site not in known]
    if unknown:
        raise Misuse(f"--sites: project.yml has no site {', '.join(unknown)}. It has: {', '.join(known)}.")
    if args.min_sites is not None and not 1 <= args.min_sites <= len(sites):
        raise Misuse(
            f"--min-sites {args.min_sites}: expected 1 to {len(sites)}; the sites are {', '.join(sites)}."
        )
    if args.sites:
        words.append(f"--sites={','.join(args.sites)}")
    if args.min_sites is not None:
        words.append(f"--min-sites={args.min_sites}")
    if args.grace is not None:
        words.append(f"--grace={args.grace}")
    if args.retries is not None:
        words.append(f"--retries={args.retries}")
    if args.cold:
        words.append("--cold")
    if args.supernode:
        words.append(f"--supernode={args.supernode}")
    if args.in_order is not None:
        words.append(f"--in-order={args.in_order}")
    if args.tracking:
        words.append(f"--tracking={args.tracking}")
    return words


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
    if warning := answer.get("warning"):
        say(f"  Note: {warning}")
    return {"job_id": answer["job_id"], "app": app.name, "version": app.version}


def export(service: str, app: apps.App, folder: Path, options: list[str]) -> dict[str, Any]:
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
