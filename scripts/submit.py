"""Submit a Flower app, or an exported job folder, as a FLARE job. Prints the job's id.

  ./flowerbed submit apps/pytorch-quickstart
  ./flowerbed submit my-app --rounds 5 --run-config "learning-rate=0.01" --wait
  ./flowerbed submit my-app --sites site-1,site-3 --as lead
  ./flowerbed submit --deployed my-app              run an app that the server has
  ./flowerbed submit my-app --export jobs/my-job    write a job folder for FLARE
An app that runs with `flwr run` runs here without an edit. It is checked before anything is sent. The job
names the app's environment, which `build --app APP` makes.
"""

from __future__ import annotations

import inspect
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bridge.common import app_environment, job_options, versions
from bridge.common.app import BadApp, job_name
from bridge.common.app_environment import AppEnvironment, NoEnvironment
from bridge.common.option import Option
from scripts import app as apps
from scripts import app_imports, console, core, offers, ownership, provision, refused, wait
from scripts.core import ENVIRONMENTS, Failure, UsageError, replaced, say, unpack
from scripts.json_object import JsonObject
from scripts.options import As, Timeout, duration, names


def _with_job_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function with `**given` the job's options as parameters, for Typer. None means not given."""
    signature = inspect.signature(function, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    function.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*own, *map(_parameter, job_options.of_submit())]
    )
    return function


def _parameter(option: Option) -> inspect.Parameter:
    kind: Any = str if option.type in (Mapping, Sequence) else option.type
    text = option.help_text[0].upper() + option.help_text[1:] + "."
    facts: dict[str, Any] = {"help": text, "metavar": option.metavar or None, "rich_help_panel": "The job"}
    if option.choices:
        kind = Literal[option.choices]
    elif option.type is Mapping:
        kind = list[str]
    elif option.unit == "seconds":
        facts["parser"] = duration
    annotation = Annotated[kind | None, typer.Option(option.flag, **facts)]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


SUBMITTED = {
    "job_id": "the new job",
    "app": "the app's name",
    "version": "its version",
    "missing_sites?": "the sites of project.yml that are not registered, if any",
}
JSON = JsonObject(
    SUBMITTED,
    {
        "With `--wait`": {**SUBMITTED, **wait.JSON.keys},
        "With `--export`": {
            "app": "the app's name",
            "version": "its version",
            "folder": "the job folder",
        },
    },
    {
        "missing": "what the app asks for, if no environment was made for it",
        "apt": "the missing Debian packages that made the last build of its environment fail",
    },
    {"With `--wait`": "summary.json"},
)


@_with_job_options
def run(
    app: Annotated[
        Path | None,
        typer.Argument(
            metavar="APP",
            help="The folder of a Flower app, with its pyproject.toml, or a job folder that --export wrote.",
        ),
    ] = None,
    deployed: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Run an app from the server's folder deployed/ instead of APP. The job brings no code, so "
            "it also runs on sites that forbid custom code.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--wait", help="Wait for the job to end, and show its progress.")
    ] = False,
    timeout: Timeout = None,
    folder: Annotated[
        Path | None,
        typer.Option("--export", metavar="DIR", help="Write the job folder to DIR and submit nothing."),
    ] = None,
    build: Annotated[
        bool,
        typer.Option(
            "--build",
            help="First make the app's environment if there is none, as `build --app APP` does. If the last "
            "build was refused for lack of Debian packages, submit fails and names them.",
        ),
    ] = False,
    identity: As = None,
    **given: Any,
) -> dict[str, Any]:
    """Check, pack and submit the app. Wait if asked to."""
    for option in job_options.of_submit():
        if option.is_switch:
            given[option.name] = not option.default if given[option.name] else None
    if timeout is not None and not follow:
        raise UsageError("--timeout: expected --wait with it.")
    chosen = _chosen(app, deployed)
    request = job_request(chosen, given, deployed=deployed or "", export=folder is not None)
    ownership.check()
    service = console.service(identity)
    request = in_environment(chosen, request, build=build)
    if folder is not None:
        return export(service, chosen, folder, request)
    outcome = submit(service, chosen, request)
    job = outcome["job_id"]
    if not core.as_json:
        print(job, flush=True)
    if follow:
        outcome |= wait.follow(service, job, timeout=timeout)
        wait.tell_results(outcome)
        return outcome
    say(f"  progress: ./flowerbed wait {job[: wait.SHORT]}   then: ./flowerbed results {job[: wait.SHORT]}")
    return outcome


def _chosen(app: Path | None, deployed: str | None) -> apps.App:
    if app is not None and deployed is not None:
        raise UsageError("--deployed NAME: not allowed with APP, because APP's code would travel.")
    if app is not None:
        return apps.read(app)
    if deployed is not None:
        return apps.read_deployed(deployed)
    raise UsageError("Expected one of the arguments APP and --deployed NAME.")


def job_request(
    app: apps.App, given: Mapping[str, Any], *, deployed: str = "", export: bool = False
) -> dict[str, Any]:
    """Return the console's request for a job: the given options, checked as far as the host can.

    Args:
        given: values by their name in `JobOptions`, or None if not given. `run_config` has the form of
            `--run-config`, and `sites` that of `--sites`.
        deployed: the folder of a deployed app on the server, if the app is not the host's.
        export: whether to write the job's folder.

    Raises:
        UsageError: a value is not allowed.
    """
    given = {name: value for name, value in given.items() if value not in (None, [])}
    if app.ready:
        if given or export:
            flags = ", ".join(option.flag for option in job_options.of_submit())
            raise UsageError(
                f"{app.folder} is a job folder and is submitted as it is: expected none of {flags}, "
                "--export. Give the app's own folder to set them."
            )
        return {}
    options = dict(given)
    run_config = apps.run_config(app, options.pop("run_config", []), given.get("rounds"))
    if "sites" in given:
        options["sites"] = names(given["sites"], "--sites", provision.site_names())
    for option in job_options.of_submit():
        if option.name in options and (problem := option.problem(options[option.name])):
            raise UsageError(f"{option.flag} {problem}.")
    sites = options.get("sites") or provision.site_names()
    fewest = options.get("min_sites", 1)
    if not 1 <= fewest <= len(sites):
        raise UsageError(
            f"--min-sites {fewest}: expected 1 to {len(sites)}. The sites are {', '.join(sites)}."
        )
    return {"deployed": deployed, "options": options, **run_config}


def in_environment(app: apps.App, request: Mapping[str, Any], *, build: bool = False) -> dict[str, Any]:
    """Return the request with the name of the app's environment.

    Args:
        build: whether to make a missing environment.

    Raises:
        UsageError: there is none. The text has the command that makes it.
    """
    if app.ready:
        return dict(request)
    named = request["options"].get("environment", "")
    try:
        if named:
            made: AppEnvironment | None = app_environment.named(named, ENVIRONMENTS)
        else:
            gpu = bool(request["options"].get("gpus"))
            made = app_environment.find(app.pyproject, ENVIRONMENTS, gpu=gpu)
    except NoEnvironment as missing:
        raise UsageError(f"--environment {missing}. ./flowerbed apps shows which there are.") from None
    except BadApp as bad:
        raise UsageError(f"{app.folder}/{bad}.") from None
    key = app_environment.key(app.pyproject) if made is None else ""
    if made is None and build and refused.apt_of(key):
        raise UsageError(
            f"The last build for {app.name} was refused, because it needs Debian packages: "
            f"{', '.join(refused.apt_of(key))}. Make its environment: {refused.command(app.folder, key)}",
            apt=refused.apt_of(key),
        )
    if made is None and build:
        # Imported here, since it takes a while, and is seldom needed.
        from scripts import app_builds

        with core.led():
            name = app_builds.make([app.folder], app_builds.Choice())[0]["name"]
        made = app_environment.named(name, ENVIRONMENTS)
    if made is None:
        more = "." if refused.apt_of(key) else ", or submit with --build."
        raise UsageError(
            f"{app.name} has no environment yet. Make one: {refused.command(app.folder, key)}{more}",
            missing=list(app_environment.requirements(app.pyproject)),
        )
    for module in _not_there(app, made):
        say(
            f"  Note: the app imports {module}, which its environment {made.name} lacks. Add the package to "
            f"dependencies in {app.folder}/pyproject.toml, then build again."
        )
    if warning := versions.newer(made.flwr):
        say(f"  Note: {warning}")
    # Sites on other machines fetch it from the server, and wait for it.
    offers.update([made.name])
    return {**request, "options": {**request["options"], "environment": made.name}}


def _not_there(app: apps.App, made: AppEnvironment) -> list[str]:
    """Return modules that the app imports only since its environment was made, and that it lacks."""
    new = {name.partition(".")[0] for name in app_imports.of_app(app.pyproject, app.files)}
    new -= {name.partition(".")[0] for name in made.facts.get("imports", ())} | sys.stdlib_module_names
    folders = list(made.programs.parent.glob("lib/python3*/site-packages"))
    return sorted(name for name in new if folders and not any(list(f.glob(f"{name}*")) for f in folders))


def submit(service: str, app: apps.App, request: Mapping[str, Any]) -> dict[str, Any]:
    """Submit an app. Return `{job_id, app, version}`, and `missing_sites` if there are any.

    Raises:
        Failure, UsageError: the console program's error.
    """
    try:
        answer = console.ask(service, "submit", app.pack(), **request)
    except Failure as failure:
        raise _advised(failure) from failure
    job = console.an_id(answer.get("job_id"))
    named = app.name if app.ready else request["options"].get("name", job_name(app.name))
    sites = answer.get("sites") or []
    missing = _missing(sites) if sites and not app.ready and "sites" not in request["options"] else []
    if missing:
        say(f"{_named(missing)} not registered: the job runs with {', '.join(sites)}")
    for site, seconds in (answer.get("silent") or {}).items():
        if site in (request.get("options", {}).get("sites") or sites):
            say(f"{site} was last heard from {seconds:.0f} s ago: the job may have to wait for it")
    said = f"Submitted {app.name} {app.version}".rstrip() + (f" under the name {named}" * (named != app.name))
    say(f"{said} as {service}: job {job}")
    outcome = {"job_id": job, "app": app.name, "version": app.version}
    return outcome | ({"missing_sites": missing} if missing else {})


def _missing(registered: Sequence[str]) -> list[str]:
    return [site for site in provision.site_names() if site not in registered]


def _named(missing: Sequence[str]) -> str:
    return f"{', '.join(missing)} of {provision.DEFAULT_PROJECT.name} {'is' if len(missing) == 1 else 'are'}"


def export(service: str, app: apps.App, folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Write the job folder to `folder`, which must be new, empty, or an earlier export."""
    if folder.exists() and not (
        folder.is_dir() and (not any(folder.iterdir()) or (folder / "meta.json").is_file())
    ):
        raise UsageError(
            f"--export {folder}: expected a new or empty folder, or an earlier export, found other files."
        )
    content = console.fetch(service, "export", app.pack(), **request)
    with content, tarfile.open(fileobj=content) as tar, replaced(folder) as fresh:
        fresh.chmod(0o755)  # The consoles read jobs/ as another user, under any umask here.
        unpack(tar, fresh, for_consoles=True)
    say(f"Job folder of {app.name}: {folder}")
    say(
        "  submit it with ./flowerbed submit, or, if it is in jobs/, in the admin console: "
        f"submit_job {folder.name}"
    )
    return {"app": app.name, "version": app.version, "folder": str(folder)}


def _advised(failure: Failure) -> Failure:
    """Return a failure of the console program, with advice about the missing sites."""
    if missing := _missing(failure.facts["registered"]) if "registered" in failure.facts else []:
        return type(failure)(f"{failure}. {_named(missing)} not registered.", **failure.facts)
    return failure
