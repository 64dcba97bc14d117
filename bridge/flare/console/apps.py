"""The verbs that take an app: check it, make a job of it, submit it."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.common import job_options, versions
from bridge.common.app import DEPLOYED, ROUNDS_KEY, check_packages, check_run_config, job_name, read_app
from bridge.common.option import JOB_NAME
from bridge.flare.console import archive, waiting
from bridge.flare.console.call import ConsoleCall, ConsoleError
from bridge.flare.console.run_config import overrides
from bridge.job import fab

FOLDER = "job"
"""The folder that a job goes to the server in, under any original name."""

_making = threading.Lock()
"""FLARE's job API is not thread-safe."""


def check(call: ConsoleCall) -> None:
    """Check that an app can run in this image."""
    versions.generation()
    with archive.unpacked(call) as app:
        config = read_app(app)
        check_packages(config)
        project = config.get("project", {})
        call.say({"ok": True, "app": project.get("name", ""), "version": project.get("version", "")})


def hash(call: ConsoleCall) -> None:
    """Report the hash that sites know an app by: that of its FAB in a job."""
    with archive.unpacked(call) as app:
        content = fab.build(app)
    project = fab.read(content).get("project", {})
    name, version = project.get("name", ""), project.get("version", "")
    call.say({"hash": fab.sha256(content), "app": name, "version": version})


def export(
    call: ConsoleCall,
    deployed: str = "",
    options: Mapping[str, Any] | None = None,
    run_config: Sequence[str] = (),
    run_config_file: str | None = None,
) -> None:
    """Answer with the job's folder. The arguments are those of `submit`."""
    versions.generation()
    options = _with_overrides(options, run_config, run_config_file)
    with archive.unpacked(call) as app, tempfile.TemporaryDirectory() as into:
        archive.send(call, make_job(app, Path(into), options, deployed=deployed, default_min_sites=1))


def submit(
    call: ConsoleCall,
    deployed: str = "",
    options: Mapping[str, Any] | None = None,
    run_config: Sequence[str] = (),
    run_config_file: str | None = None,
) -> None:
    """Submit an app as a job, or a job's folder unchanged.

    Args:
        deployed: the name of an app that the server has.
        options: fields of `JobOptions`.
        run_config: overrides of the app's run config, as `flwr run --run-config` takes them.
        run_config_file: the content of a TOML file in their place.
    """
    versions.generation()
    options = _with_overrides(options, run_config, run_config_file)
    with archive.unpacked(call) as folder, tempfile.TemporaryDirectory() as into:
        with call.session() as session:
            here = waiting.registered(session)
        if (folder / "meta.json").exists():
            job = Path(shutil.copytree(folder, Path(into) / FOLDER))
        else:
            fewest = max(1, len(here))
            job = make_job(folder, Path(into), options, deployed=deployed, default_min_sites=fewest)
        call.say(hand_in(call, job, here, options.get("sites") or ()))


def hand_in(
    call: ConsoleCall, job: Path, here: Mapping[str, float], sites: Sequence[str] = ()
) -> dict[str, Any]:
    """Submit a job's folder. Returns its id and the sites that are there.

    Args:
        here: the registered sites, as `waiting.registered` returns them.
        sites: those that were asked for.

    Raises:
        ConsoleError: a site that it needs is not registered.
    """
    wanted, needed = _wanted(job)
    if unknown := {*sites, *needed} - {*here}:
        raise ConsoleError(
            f"no site {', '.join(sorted(unknown))} is registered. "
            f"Registered are: {', '.join(here) or 'none'}",
            2,
        )
    if wanted > len(here):
        raise ConsoleError(
            f"the job asks for {wanted} sites, but {len(here)} are registered"
            f"{': ' + ', '.join(here) if here else ''}",
            2,
            registered=[*here],
        )
    with call.session() as session:
        answer = {"job_id": session.submit_job(str(job)), "sites": [*here]}
    return answer | ({"silent": gone} if (gone := waiting.silent(here)) else {})


def _with_overrides(
    options: Mapping[str, Any] | None, given: Sequence[str], file: str | None
) -> Mapping[str, Any]:
    found = overrides(given, file) if given or file is not None else {}
    return {**(options or {}), **({"run_config": found} if found else {})}


def make_job(
    app: Path, into: Path, options: Mapping[str, Any], *, deployed: str, default_min_sites: int
) -> Path:
    """Check the app against this image and write its job folder. Returns the folder.

    Args:
        app: the app's folder, or its FAB. Of one that is on the server, only its pyproject.toml is there.
        options: fields of `JobOptions`, as far as they are given.
        deployed: the name of the app's folder on the server, or "" if the job brings the app.
        default_min_sites: the fewest sites, if neither they nor the sites are given.
    """
    # Imported here, since with an unsupported flwr the import may fail.
    from bridge.flare.job import FlowerJob

    config = fab.config(app)
    fab.check(config)
    options = {**job_options.submit_defaults(), **options}
    options.setdefault("name", job_name(config["project"]["name"].strip()))
    options.setdefault("min_sites", len(options.get("sites") or ()) or default_min_sites)
    rounds = {} if options.get("rounds") is None else {ROUNDS_KEY: options["rounds"]}
    check_run_config(config, {**(options.get("run_config") or {}), **rounds})
    if deployed:
        options["flower_app_path"] = f"{DEPLOYED}/{deployed}"
    with _making:
        try:
            job = FlowerJob(None if deployed else app, **options)
        except (TypeError, ValueError) as error:
            raise ConsoleError(str(error), 2) from None
        job.export_job(str(into))
    return into / str(job.name)


def _wanted(job: Path) -> tuple[int, list[str]]:
    """Return the fewest sites of a job, and those that it does not start without. Its name is checked too,
    because FLARE and people use it as a name."""
    try:
        meta = json.loads((job / "meta.json").read_text())
        name, wanted = meta.get("name"), int(meta.get("min_clients") or 1)
        needed = [str(site) for site in meta.get("mandatory_clients") or ()]
    except (ValueError, TypeError, AttributeError) as error:
        raise ConsoleError(f"the job's meta.json is not valid: {error}", 2) from None
    if not isinstance(name, str) or not JOB_NAME.fullmatch(name):
        raise ConsoleError(
            f"the job's meta.json has the name {str(name)[:200]!r}: expected letters, digits, '.', '_', '-'",
            2,
        )
    return wanted, needed
