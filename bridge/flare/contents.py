"""Check a job's content: two of FLARE's configuration files for each part, their signatures, and the app's
FAB.

FLARE 2.9.0 deploys everything in a job's folder. It knows a job that brings code by one entry of its zip. It
builds the components in a configuration from a list of classes, some of which start programs. So this module
checks the files themselves: the stored zip at the server, the deployed folder at each site. Content that is
not listed here is refused, regardless of the submitter and of the job's meta.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from bridge.common import job_options, meta
from bridge.common.app import DEPLOYED, FAB_LIMIT, BadApp
from bridge.flare.job_files import (
    CLIENT_CONFIG,
    CONFIG,
    CUSTOM,
    META,
    NAME,
    SERVER_CONFIG,
    Files,
    Unfit,
    folder_files,
    foreign,
    zip_files,
)
from bridge.job import fab
from bridge.launch import environment

SIGNATURES = frozenset({".__nvfl_sig.json", ".__nvfl_submitter.crt"})
"""Files that FLARE's console puts into every folder of a job (nvflare 2.9.0 `lighter/tool_consts.py`)."""

TEXT_LIMIT = 4 * 1024 * 1024
"""Bytes of a configuration file or of a folder's signatures. Those of 10,000 sites fit in."""

CONTROLLER, EXECUTOR = "bridge.server.controller.FlowerController", "bridge.site.executor.FlowerExecutor"
COMPONENTS: Mapping[str, Mapping[str, frozenset[str]]] = {
    SERVER_CONFIG: {
        "bridge.server.trackers.TensorBoard": frozenset(),
        "bridge.server.trackers.MLflow": frozenset(),
        # FLARE's own, of a recipe's `add_experiment_tracking`.
        "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver": frozenset({"tb_folder", "events"}),
    },
    CLIENT_CONFIG: {
        # No more of their arguments, because some name files, and FLARE's process reads and sends those.
        "nvflare.app_common.widgets.metric_relay.MetricRelay": frozenset({"fed_event"}),
        "nvflare.app_common.logging.job_log_streamer.JobLogStreamer": frozenset({"target_parent_server"}),
    },
}
"""The classes that a job's configuration may name beside controller and executor, with their arguments."""

ERROR_SHOWN = 300
"""Characters that an error shows of Python's message about a zip, which quotes the zip."""

NUMBER_LIMIT = 2**64
"""The largest number in a job: a seed has at most 64 bits."""

MAPS, LISTS = frozenset({"run_config", "extra_env"}), frozenset({"run_config_quoted", "events"})
"""The arguments that are not single values."""

BUILT = frozenset({"path", "class_path", "name", "config_type", "class_attributes"})
"""Keys that make FLARE build a dictionary below `args` as a component (nvflare 2.9.0
`fuel/utils/component_builder.py`)."""

META_KEYS = frozenset(
    {"name", "resource_spec", "min_clients", "deploy_map", "mandatory_clients", "scope"}
    | {meta.RETRIES, meta.LATE_SITES}
)
"""The keys that a job's meta may have. Not `launcher_spec`, which chooses images and commands."""

_KEY = re.compile(r"[a-z][a-z_]{0,63}")
_DEPLOYED_APP = re.compile(rf"{DEPLOYED}/[^/{{}}\\\0]{{1,255}}")


@dataclass(frozen=True)
class Contents:
    """The content of a job, or of its part for one participant."""

    fab: str = ""
    """The SHA-256 of the app that it brings, or "" if it brings no code."""
    deployed: str = ""
    """The app on the server that it names instead, as `flower_app_path`. Only the server's part does."""
    environment: str = ""
    """The app's environment that it names, in the server's part."""
    app: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The brought app's `id`, `version` and `hash`, as Flower shows them. Empty: it brings none."""


def of_job(zipped: str | bytes | IO[bytes], folder: str) -> Contents:
    """Check a whole job, as the server has it.

    Args:
        zipped: the zip, or its path.
        folder: the name of the folder in it.

    Raises:
        Unfit: it holds forbidden content.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(zipped) if isinstance(zipped, bytes) else zipped) as archive:
            return _job(zip_files(archive, folder))
    except Unfit:
        raise
    except fab.NO_ZIP as error:
        raise Unfit(f"the job is not a readable zip file: {str(error)[:ERROR_SHOWN]}") from None


def of_part(folder: Path, *, server: bool) -> Contents:
    """Check the part of a job that was deployed to this participant, the server or a site.

    Raises:
        Unfit: it holds forbidden content.
    """
    try:
        files = dict(folder_files(folder))
    except OSError as error:
        raise Unfit(f"the job's part cannot be read: {error}") from None
    part = _part(folder.name, files)
    if server:
        _check_server(part)
    return part


def _job(files: Files) -> Contents:
    parts: dict[str, dict[str, Callable[[int], bytes]]] = {}
    for path, read in files.items():
        app, slash, rest = path.partition("/")
        if slash:
            parts.setdefault(app, {})[rest] = read
        elif path not in {META, *SIGNATURES}:
            raise foreign(path)
    if META not in files:
        raise Unfit(f"the job has no {META}")
    places = _check_meta(_parsed(META, files[META](TEXT_LIMIT)))
    if set(parts) != set(places):
        found, expected = ", ".join(sorted(parts)) or "none", ", ".join(sorted(places))
        raise Unfit(
            f"the job holds the parts {found[:200]}: expected those of its deploy_map, {expected[:200]}"
        )
    found_parts = {app: _part(app, part) for app, part in parts.items()}
    apps = {part.fab for part in found_parts.values()}
    if len(apps) > 1:
        raise Unfit(
            f"the job's parts hold different apps: expected {CUSTOM}/{fab.NAME} to be the same in all of them"
        )
    (server,) = (app for app, to_server in places.items() if to_server)
    _check_server(found_parts[server])
    return found_parts[server]


def _check_server(part: Contents) -> None:
    if bool(part.fab) == bool(part.deployed):
        found = "both" if part.fab else "neither"
        raise Unfit(
            f"expected the job to bring an app ({CUSTOM}/{fab.NAME}) or to name one on the server "
            f"(flower_app_path), found {found}. If an older Flowerbed made the job, export it again."
        )


def _part(app: str, files: Files) -> Contents:
    """One part of a job: its files by their path in it."""
    content, brought_app = "", dict[str, str]()
    for path in files:
        folder, _, name = path.rpartition("/")
        allowed = {
            "": SIGNATURES,
            CONFIG: SIGNATURES | {SERVER_CONFIG, CLIENT_CONFIG},
            CUSTOM: SIGNATURES | {fab.NAME},
        }.get(folder)
        if allowed is None or name not in allowed:
            raise foreign(f"{app}/{path}")
        if name in SIGNATURES:
            files[path](TEXT_LIMIT)
    if (brought := files.get(f"{CUSTOM}/{fab.NAME}")) is not None:
        app_file = brought(FAB_LIMIT)
        try:
            brought_app = fab.identity(app_file)
        except BadApp as error:
            raise Unfit(f"{app}/{CUSTOM}/{fab.NAME}: {error}") from None
        content = brought_app["hash"]
    elif any(path.startswith(f"{CUSTOM}/") for path in files):
        raise foreign(f"{app}/{CUSTOM}/")
    found: dict[str, Mapping[str, Any]] = {}
    for name in (SERVER_CONFIG, CLIENT_CONFIG):
        if (read := files.get(f"{CONFIG}/{name}")) is not None:
            where = f"{app}/{CONFIG}/{name}"
            found[name] = _check_config(
                where, name, _parsed(where, read(TEXT_LIMIT)), brings_code=bool(content)
            )
    deployed = "".join(str(given.get("flower_app_path") or "") for given in found.values())
    return Contents(
        content, deployed, str(found.get(SERVER_CONFIG, {}).get("environment") or ""), brought_app
    )


def _parsed(where: str, text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key appears twice")
        return dict(pairs)

    try:
        content = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise Unfit(f"{where} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise Unfit(f"{where}: expected a JSON object")
    return content


def _check_meta(content: dict[str, Any]) -> dict[str, bool]:
    """Return, by each part's name, whether it goes to the server."""
    foreign = sorted(set(content) - META_KEYS)
    if foreign:
        raise Unfit(f"{META} has {', '.join(foreign)[:200]!r}: expected {', '.join(sorted(META_KEYS))}")
    if not isinstance(content.get("name"), str) or not NAME.fullmatch(content["name"]):
        raise Unfit(f"{META}: expected a name of letters, digits, '.', '_' and '-'")
    resources = content.get("resource_spec") or {}
    if not isinstance(resources, dict) or not all(
        isinstance(spec, dict) and all(_is_number(value) and value >= 0 for value in spec.values())
        for spec in resources.values()
    ):
        raise Unfit(f"{META}: expected resource_spec to hold numbers from 0 for each site")
    retries = content.get(meta.RETRIES, 0)
    if type(retries) is not int or retries < 0:
        raise Unfit(f"{META}: expected {meta.RETRIES} to be a whole number")
    (bounds,) = (option for option in job_options.options() if option.name == "retries")
    if problem := bounds.problem(retries):
        raise Unfit(f"{META}: {meta.RETRIES} {problem}")
    if not isinstance(content.get(meta.LATE_SITES, True), bool):
        raise Unfit(f"{META}: expected {meta.LATE_SITES} to be true or false")
    places = content.get("deploy_map")
    if not isinstance(places, dict) or not places:
        raise Unfit(f"{META}: expected a deploy_map")
    found = {}
    for app, sites in places.items():
        if not NAME.fullmatch(app) or app.casefold() in (META, *SIGNATURES):
            raise Unfit(f"{META}: a part cannot be called {app[:200]!r}")
        if not isinstance(sites, list) or not all(isinstance(site, str) for site in sites):
            raise Unfit(f"{META}: expected deploy_map to list the names of sites")
        found[app] = any(site == "server" or site.casefold() == "@all" for site in sites)
    if list(found.values()).count(True) != 1:
        raise Unfit(f"{META}: expected deploy_map to name the server once")
    return found


def _check_config(where: str, name: str, content: dict[str, Any], *, brings_code: bool) -> Mapping[str, Any]:
    """Check one configuration file. Returns the arguments of its controller or executor."""
    _see_no_references(where, content)
    main = _main_component(where, name, content)
    for key, value in content.items():
        if key in ("workflows", "executors", "components"):
            continue
        if key in ("task_data_filters", "task_result_filters"):
            good = value == []
        elif key == "server":
            good = isinstance(value, dict) and all(_is_setting(*item) for item in value.items())
        else:
            good = _is_setting(key, value)
        if not good:
            raise Unfit(f"{where}: {key[:60]!r} is not expected there")
    components = content.get("components", [])
    if not isinstance(components, list):
        raise Unfit(f"{where}: expected components to be a list")
    for component in components:
        allowed = COMPONENTS[name]
        path = _check_component(where, component, allowed)
        if foreign := set(component.get("args", {})) - allowed[path]:
            raise Unfit(f"{where}: {path} with {', '.join(sorted(foreign))[:200]}, which a job may not set")
    arguments = main.get("args", {})
    extra = arguments.get("extra_env") or {}
    if extra and not brings_code:
        raise Unfit(f"{where}: {environment.NOT_WITHOUT_CODE}")
    try:
        environment.check_extra(extra)
    except ValueError as error:
        raise Unfit(f"{where}: {error}") from None
    path = arguments.get("flower_app_path") or ""
    if path and (not isinstance(path, str) or not _DEPLOYED_APP.fullmatch(path)):
        raise Unfit(f"{where}: expected flower_app_path to be {DEPLOYED}/NAME, found {str(path)[:200]!r}")
    try:
        job_options.given_to(job_options.SERVER if name == SERVER_CONFIG else job_options.SITE, arguments)
    except (TypeError, ValueError) as error:
        raise Unfit(f"{where}: {str(error)[:200]}") from None
    return dict(arguments)


def _main_component(where: str, name: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return the controller, or the executor. There is one, and nothing beside it."""
    key, foreign, path = (
        ("workflows", "executors", CONTROLLER)
        if name == SERVER_CONFIG
        else ("executors", "workflows", EXECUTOR)
    )
    listed = content.get(key)
    if foreign in content or not isinstance(listed, list) or len(listed) != 1:
        raise Unfit(f"{where}: expected {key} with {path}, and nothing else")
    (component,) = listed
    if name == CLIENT_CONFIG:
        if not isinstance(component, dict) or set(component) != {"tasks", "executor"}:
            raise Unfit(f"{where}: expected tasks and executor, nothing else")
        if component["tasks"] != ["*"]:
            raise Unfit(f"{where}: expected the executor to be for all tasks")
        component = component["executor"]
    _check_component(where, component, {path: frozenset()})
    return dict(component)


def _check_component(where: str, component: Any, allowed: Mapping[str, frozenset[str]]) -> str:
    """Check that a component is one of `allowed`, in the one form that our jobs have. Returns its class."""
    if not isinstance(component, dict) or not set(component) <= {"id", "path", "args"}:
        raise Unfit(f"{where}: expected a component with id, path and args, nothing else")
    path, arguments = component.get("path"), component.get("args", {})
    if path not in allowed:
        raise Unfit(f"{where}: expected {' or '.join(allowed)}, found {str(path)[:200]!r}")
    if not isinstance(component.get("id", ""), str) or not isinstance(arguments, dict):
        raise Unfit(f"{where}: {path}: expected its id to be text, and its args to have names")
    for key, value in arguments.items():
        if key in MAPS:
            good = value is None or (
                isinstance(value, dict) and not BUILT & set(value) and all(map(_is_value, value.values()))
            )
        elif key in LISTS:
            good = value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))
        else:
            good = key not in BUILT and (value is None or isinstance(value, str) or _is_number(value))
        if not good:
            raise Unfit(f"{where}: {path}: expected no such argument {key[:60]!r}")
    return str(path)


def _see_no_references(where: str, value: Any) -> None:
    """Refuse references in a configuration's strings. FLARE replaces `{NAME}` and `${secret:file:PATH}` by
    values at the server or the site, a key for example (nvflare 2.9.0 `fuel/utils/secret_utils.py`)."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, str) and ("{" in item or "}" in item):
            raise Unfit(f"{where}: {item[:60]!r}: expected no braces, which FLARE takes for references")


def _is_number(value: Any) -> bool:
    # No NaN, nothing infinite, and no number that overflows a float: all bounds let these pass.
    return isinstance(value, bool | int | float) and abs(value) <= NUMBER_LIMIT


def _is_setting(key: str, value: Any) -> bool:
    """Return whether this is one of FLARE's own numbers, such as `get_task_timeout`."""
    return _KEY.fullmatch(key) is not None and _is_number(value)


def _is_value(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
