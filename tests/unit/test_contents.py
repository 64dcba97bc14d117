"""A job's allowed content: every form of bringing anything else is refused, by name."""

from __future__ import annotations

import io
import json
import os
import random
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.common.app import FAB_LIMIT
from bridge.common.job_options import ConfigValue
from bridge.flare import contents
from bridge.flare.job import FlowerJob
from bridge.flare.job_files import Unfit
from bridge.job import fab
from bridge.server.controller import FlowerController

APP = Path(__file__).parents[1] / "apps" / "numpy-add"
Files = dict[str, bytes]


def exported(tmp_path: Path, *, deployed: bool = False, **options: Any) -> Files:
    """The files of a job as `flowerbed submit --export` writes it, with FLARE's signatures beside them."""
    if deployed:
        options["flower_app_path"] = "local/custom/adding"
    FlowerJob(None if deployed else APP, name="add", **options).export_job(str(tmp_path))
    files = {
        path.relative_to(tmp_path / "add").as_posix(): path.read_bytes()
        for path in (tmp_path / "add").rglob("*")
        if path.is_file()
    }
    folders = {name.rpartition("/")[0] for name in files}
    for folder in {"", *folders, *(f.split("/")[0] for f in folders)}:
        for name in contents.SIGNATURES:
            files[f"{folder}/{name}".lstrip("/")] = b"{}"
    return files


def zipped(files: Files, folder: str = "add", *, folders: bool = True) -> bytes:
    """Zip files like FLARE's console, or without entries of folders, as others may."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{folder}/{name}", content)
        if folders:
            above = {str(parent) for name in files for parent in Path(name).parents} - {"."}
            for name in sorted(above):
                archive.writestr(f"{folder}/{name}/", b"")
    return buffer.getvalue()


@pytest.mark.parametrize("tracking", ["none", "tensorboard", "mlflow"])
@pytest.mark.parametrize("sites", [None, ["site-1", "site-3"]])
@pytest.mark.parametrize("folders", [True, False])
def test_flowerbeds_exports_are_accepted(
    tmp_path: Path, tracking: str, sites: list[str] | None, folders: bool
) -> None:
    options: dict[str, Any] = {"tracking": tracking, "sites": sites, "run_config": {"array-size": 3}}
    brought = exported(tmp_path / "a", extra_env={"APP_DEPTH": "3"}, mandatory=["site-1"], **options)
    found = contents.of_job(zipped(brought, folders=folders), "add")
    # The zip need not say that there is a folder `custom`.
    assert found.fab == fab.sha256(fab.build(APP)) and not found.deployed
    deployed = exported(tmp_path / "b", deployed=True, **options)
    found = contents.of_job(zipped(deployed, folders=folders), "add")
    assert (found.fab, found.deployed) == ("", "local/custom/adding")


def test_a_run_config_that_flare_would_take_for_its_own_arrives(tmp_path: Path) -> None:
    keys: dict[str, ConfigValue] = {"path": "os.system", "name": "x", "text": '{"a": 1}', "number": 3}
    app = tmp_path / "app"
    for name, text in fab.files(fab.build(APP)).items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_bytes(text)
    pyproject = (app / "pyproject.toml").read_text()
    lines = "\n".join(f"{key} = {0 if key == 'number' else json.dumps('')}" for key in keys)
    pyproject = pyproject.replace("[tool.flwr.app.config]\n", '[tool.flwr.app.config]\npath = ""\n')
    (app / "pyproject.toml").write_text(pyproject + f"\n[tool.flwr.app.config.of]\n{lines}\n")
    given: dict[str, ConfigValue] = {f"of.{key}": value for key, value in keys.items()}
    given["path"] = "os.system"
    FlowerJob(app, name="add", run_config=given).export_job(str(tmp_path / "exported"))
    job = tmp_path / "exported" / "add"
    files = {p.relative_to(job).as_posix(): p.read_bytes() for p in job.rglob("*") if p.is_file()}
    assert contents.of_job(zipped(files), "add").fab
    arguments = json.loads(files[SERVER])["workflows"][0]["args"]
    assert set(arguments["run_config"]) == {"of.path", "of.name", "of.number"}
    assert FlowerController(**arguments)._overrides == given


SERVER, CLIENT = "app/config/config_fed_server.json", "app/config/config_fed_client.json"


def added(name: str, content: bytes = b"x") -> Callable[[Files], None]:
    return lambda files: files.update({name: content})


def bundle(files: Files) -> bytes:
    """Return a FAB with these files, even if they compress well."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def bomb(files: Files) -> None:
    """Add a FAB that unpacks to more than is allowed. It takes a while to make, so only its test does."""
    files["app/custom/app.fab"] = bundle({"zeros": b"\0" * (fab.UNPACKED_LIMIT + 1)})


def removed(name: str) -> Callable[[Files], None]:
    def remove(files: Files) -> None:
        del files[name]

    return remove


def edited(file: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Files], None]:
    def edit(files: Files) -> None:
        content = json.loads(files[file])
        change(content)
        files[file] = json.dumps(content).encode()

    return edit


def component(path: str, **arguments: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["components"].append({"id": "x", "path": path, "args": arguments})


def main_of(config: dict[str, Any]) -> dict[str, Any]:
    found = config["workflows"][0] if "workflows" in config else config["executors"][0]["executor"]
    assert isinstance(found, dict)
    return found


def argument(**arguments: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: main_of(config)["args"].update(arguments)


LAUNCHER = "nvflare.app_common.launchers.subprocess_launcher.SubprocessLauncher"
RELAY = "nvflare.app_common.widgets.metric_relay.MetricRelay"
STREAMER = "nvflare.app_common.logging.job_log_streamer.JobLogStreamer"

HOSTILE: dict[str, tuple[Callable[[Files], None], str]] = {
    # Files
    "a module in custom": (added("app/custom/evil.py"), "app/custom/evil.py"),
    "an app that is not bundled": (added("app/custom/pyproject.toml"), "expected meta.json"),
    "a library beside the configuration": (added("app/config/evil.so"), "app/config/evil.so"),
    "OpenSSL's configuration": (added("app/config/openssl.cnf"), "openssl.cnf"),
    "another format": (added("app/config/config_fed_server.conf"), "config_fed_server.conf"),
    "yet another": (added("app/config/config_fed_client.yml"), "config_fed_client.yml"),
    "another format of the meta": (added("meta.conf"), "'meta.conf'"),
    "FLARE's decomposers": (added("app/custom/nvflare_decomposers/x.py"), "nvflare_decomposers"),
    "a nested archive": (added("app/custom/more.zip", zipped({"a": b"x"})), "more.zip"),
    "a nested archive for a FAB": (added("app/custom/app.fab", zipped({"a": b"x"})), "no pyproject.toml"),
    "no FAB": (added("app/custom/app.fab", b"#!/bin/sh"), "not a Flower App Bundle"),
    "an app whose pyproject.toml takes minutes to read": (
        added("app/custom/app.fab", bundle({"pyproject.toml": b"k=[" + b"[]," * 100_000 + b"]"})),
        "pyproject.toml has more than 262144 bytes",
    ),
    "an app that unpacks to more than it may": (bomb, "268435456 are allowed"),
    "an app whose tables are none": (
        added("app/custom/app.fab", bundle({"pyproject.toml": b"tool = 'x'"})),
        "expected tool to be a table",
    ),
    "an app without a project": (
        added("app/custom/app.fab", bundle({"pyproject.toml": b"project = []"})),
        "expected project to be a table",
    ),
    "a folder below config": (added("app/config/sub/config_fed_server.json", b"{}"), "app/config/sub/"),
    "a part that goes nowhere": (added("other/config/config_fed_server.json", b"{}"), "parts app, other"),
    "a name with ..": (added("app/../../evil.py"), "evil.py"),
    "an absolute name": (added("/etc/passwd"), "the parts , app"),
    "a name with a backslash": (added("app\\custom\\evil.py"), "odd name"),
    "a name with an escape": (added("app/custom/\x1b[2Japp.fab"), "odd name"),
    "a name in other letters": (added("app/custom/\uff41pp.fab"), "odd name"),
    "the same in capitals": (added("app/Config/config_fed_server.json", b"{}"), "two spellings"),
    "a hidden file": (added("app/config/.pth"), r"config/\.pth"),
    "a large configuration": (added(SERVER, b" " * (contents.TEXT_LIMIT + 1)), "more than 4194304 bytes"),
    "a large app": (added("app/custom/app.fab", b"\0" * (FAB_LIMIT + 1)), "more than"),
    "large signatures": (
        added("app/.__nvfl_sig.json", b" " * (contents.TEXT_LIMIT + 1)),
        "more than 4194304 bytes",
    ),
    # Configurations
    "no JSON": (added(SERVER, b"{"), "is not JSON"),
    "a duplicate key": (added(SERVER, b'{"workflows": [], "workflows": []}'), "appears twice"),
    "a deep one": (added(SERVER, b"[" * 100_000), "is not JSON"),
    "a launcher of programs": (edited(CLIENT, component(LAUNCHER, script="sh -c id")), "SubprocessLauncher"),
    "one for the server": (edited(SERVER, component(LAUNCHER, script="sh")), "SubprocessLauncher"),
    "another executor": (edited(CLIENT, lambda c: main_of(c).update(path="os.system")), r"os\.system"),
    "a second executor": (
        edited(CLIENT, lambda c: c["executors"].append(c["executors"][0])),
        "expected executors",
    ),
    "a second controller": (
        edited(SERVER, lambda c: c["workflows"].append(c["workflows"][0])),
        "expected workflows",
    ),
    "an executor at the server": (edited(SERVER, lambda c: c.update(executors=[])), "nothing else"),
    "a class by its name": (
        edited(CLIENT, lambda c: c["components"].append({"id": "x", "name": "y"})),
        "path",
    ),
    "a class by class_path": (
        edited(CLIENT, lambda c: c["components"][0].update(class_path=LAUNCHER)),
        "id, path and args",
    ),
    "a component as a dictionary": (
        edited(CLIENT, lambda c: c["components"][0].update(config_type="dict")),
        "id, path and args",
    ),
    "a class below args": (
        edited(CLIENT, argument(warm={"path": LAUNCHER, "args": {"script": "id"}})),
        "no such argument 'warm'",
    ),
    "a class in the run config": (
        edited(SERVER, argument(run_config={"path": LAUNCHER, "args": "x"})),
        "no such argument 'run_config'",
    ),
    "nested values": (edited(SERVER, argument(run_config={"a": {"path": LAUNCHER}})), "run_config"),
    "class attributes": (edited(CLIENT, argument(class_attributes={})), "class_attributes"),
    "filters": (
        edited(CLIENT, lambda c: c.update(task_result_filters=[{"tasks": ["*"], "filters": []}])),
        "task_result_filters",
    ),
    "another list of classes": (
        edited(SERVER, lambda c: c.update(handlers=[{"path": LAUNCHER}])),
        "handlers",
    ),
    "a definition to refer to": (edited(SERVER, lambda c: c.update({"@x": 1})), "'@x'"),
    "a reference": (edited(SERVER, argument(run_config={"a": "{workflows}"})), "braces"),
    "a secret": (
        edited(SERVER, argument(run_config={"a": "${secret:file:/kit/startup/server.key}"})),
        "braces",
    ),
    "a secret in a key": (edited(SERVER, argument(run_config={"${secret:HOME}": 1})), "braces"),
    "another file in the stream of logs": (
        edited(CLIENT, component(STREAMER, log_file_name="startup/client.key")),
        "JobLogStreamer with log_file_name",
    ),
    "another file of the relay's": (
        edited(CLIENT, component(RELAY, bootstrap_file_name="/workspace/local/x")),
        "MetricRelay with bootstrap_file_name",
    ),
    "text among FLARE's settings": (
        edited(SERVER, lambda c: c.update(comm_driver_path="x")),
        "comm_driver_path",
    ),
    "text in the server's": (edited(SERVER, lambda c: c["server"].update(name="x")), "'server'"),
    # Options that the participants cannot act on
    "an option that there is not": (edited(CLIENT, argument(foo=1)), "unexpected options for the site: foo"),
    "an option of the server's": (
        edited(CLIENT, argument(grace=60)),
        "unexpected options for the site: grace",
    ),
    "a time that is text": (
        edited(SERVER, argument(sites_within="x")),
        "sites_within 'x': expected a number",
    ),
    "a time without end": (
        edited(CLIENT, argument(client_shutdown_timeout=86400)),
        "client_shutdown_timeout 86400: expected 0 to 10 seconds",
    ),
    "a time that is none": (edited(SERVER, argument(grace=float("nan"))), "'grace'"),
    "an infinite one": (edited(SERVER, argument(grace=float("inf"))), "'grace'"),
    "one that no float holds": (edited(SERVER, argument(grace=10**400)), "'grace'"),
    "one that is too long": (
        edited(SERVER, argument(sites_within=1e15)),
        "sites_within 1e\\+15: expected 0 to",
    ),
    "a setting that is none": (edited(CLIENT, lambda c: c.update(get_task_timeout=float("nan"))), "get_task"),
    "retries without end": (
        edited("meta.json", lambda m: m.update(flowerbed_retries=10**9)),
        "flowerbed_retries 1000000000: expected 0 to 100",
    ),
    # Variables
    "OpenSSL's variable": (
        edited(CLIENT, argument(extra_env={"OPENSSL_CONF": "../app_site-3/config/openssl.cnf"})),
        "OPENSSL_CONF",
    ),
    "the same for the server": (
        edited(SERVER, argument(extra_env={"OPENSSL_MODULES": "x"})),
        "OPENSSL_MODULES",
    ),
    "a proxy": (edited(CLIENT, argument(extra_env={"http_proxy": "http://x"})), "http_proxy"),
    "the shell's": (edited(CLIENT, argument(extra_env={"BASH_ENV": "x"})), "BASH_ENV"),
    "a prefix with =": (edited(CLIENT, argument(extra_env={"APP_=x\nLD_PRELOAD": "x"})), "APP_="),
    # The meta
    "an image to start": (
        edited("meta.json", lambda m: m.update(launcher_spec={"site-1": {"docker": {"image": "x"}}})),
        "launcher_spec",
    ),
    "an image among the resources": (
        edited("meta.json", lambda m: m.update(resource_spec={"site-1": {"docker": {"image": "x"}}})),
        "resource_spec",
    ),
    "a GPU with memory to spare": (
        edited("meta.json", lambda m: m.update(resource_spec={"site-1": {"mem_per_gpu_in_GiB": -5}})),
        "numbers from 0",
    ),
    "a mark": (edited("meta.json", lambda m: m.update(byoc=False)), "'byoc'"),
    "a note of the server's": (edited("meta.json", lambda m: m.update(flowerbed_retry_of="x")), "retry_of"),
    "an id": (edited("meta.json", lambda m: m.update(job_id="x")), "job_id"),
    "a name that leads out": (
        edited("meta.json", lambda m: m.update(name="/workspace/nvflare")),
        "a name of",
    ),
    "a name that is none": (edited("meta.json", lambda m: m.update(name=7)), "a name of letters"),
    "two servers": (
        edited("meta.json", lambda m: m.update(deploy_map={"app": ["@ALL"], "b": ["server"]})),
        "the server once",
    ),
    "a place that is none": (
        edited("meta.json", lambda m: m.update(deploy_map={"../app": ["@ALL"]})),
        "cannot be called",
    ),
    "no app at all": (removed("app/custom/app.fab"), "expected meta.json|neither"),
    "no meta": (removed("meta.json"), "no meta.json"),
    "code and a deployed app": (edited(SERVER, argument(flower_app_path="local/custom/x")), "found both"),
    "a deployed app elsewhere": (
        edited(SERVER, argument(flower_app_path="../job/app_server/custom")),
        "flower_app_path",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_job_with_anything_else_is_refused(tmp_path: Path, what: str) -> None:
    files = exported(tmp_path, tracking="tensorboard")
    change, said = HOSTILE[what]
    change(files)
    with pytest.raises(Unfit, match=said):
        contents.of_job(zipped(files, folders=False), "add")


@pytest.mark.parametrize(
    "part", ["app_server", "app_site-1"], ids=["for the server alone", "for a site alone"]
)
def test_code_for_one_participant_alone_is_refused(tmp_path: Path, part: str) -> None:
    files = exported(tmp_path, deployed=True, sites=["site-1"])
    files[f"{part}/custom/app.fab"] = fab.build(APP)
    with pytest.raises(Unfit, match="different apps"):
        contents.of_job(zipped(files, folders=False), "add")


def test_another_app_for_the_server_than_for_the_sites_is_refused(tmp_path: Path) -> None:
    files = exported(tmp_path, sites=["site-1"])
    files["app_server/custom/app.fab"] = fab.build(APP.parent / "dice")
    with pytest.raises(Unfit, match="different apps"):
        contents.of_job(zipped(files), "add")


def test_variables_need_an_app_of_the_jobs_own(tmp_path: Path) -> None:
    files = exported(tmp_path, deployed=True)
    edited(CLIENT, argument(extra_env={"APP_DEPTH": "3"}))(files)
    with pytest.raises(Unfit, match="expected none, because the job brings no app"):
        contents.of_job(zipped(files), "add")


def test_links_devices_and_hidden_names_are_refused(tmp_path: Path) -> None:
    files = exported(tmp_path)
    for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO):
        buffer = io.BytesIO(zipped(files))
        with zipfile.ZipFile(buffer, "a") as archive:
            entry = zipfile.ZipInfo("add/app/custom/.__nvfl_sig2.json")
            entry.external_attr = (kind | 0o777) << 16
            archive.writestr(entry, "/kit/startup/client.key")
        with pytest.raises(Unfit, match="not a regular file"):
            contents.of_job(buffer.getvalue(), "add")
    # A name that ends where Python's reader thinks so, and goes on for others.
    raw = zipped({**files, "app/custom/app.fabXevil": b"x"}).replace(b"app.fabXevil", b"app.fab\0evil")
    with pytest.raises(Unfit, match=r"odd name|two spellings"):
        contents.of_job(raw, "add")


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO(zipped(exported(tmp_path)))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("add/app/custom/app.fab", b"x")
    with pytest.raises(Unfit, match="twice"):
        contents.of_job(buffer.getvalue(), "add")


@pytest.mark.parametrize("folder", ["other", "..", "a/b", "", ".hidden"])
def test_nothing_lies_outside_the_jobs_folder(tmp_path: Path, folder: str) -> None:
    with pytest.raises(Unfit, match=r"outside its folder|folder is called"):
        contents.of_job(zipped(exported(tmp_path)), folder)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\3\4"])
def test_invalid_zips_are_refused(content: bytes) -> None:
    with pytest.raises(Unfit, match="not a readable zip file"):
        contents.of_job(content, "add")


# A part, where it was deployed


def part_of(tmp_path: Path, files: Files, app: str = "app") -> Path:
    folder = tmp_path / "part" / app
    for name, content in files.items():
        if name.startswith(f"{app}/"):
            target = folder / name.removeprefix(f"{app}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return folder


def test_a_part_is_taken_as_it_was_exported(tmp_path: Path) -> None:
    for server in (True, False):
        part = part_of(tmp_path, exported(tmp_path / "a"))
        assert contents.of_part(part, server=server).fab == fab.sha256(fab.build(APP))
    deployed = exported(tmp_path / "b", deployed=True, sites=["site-1"])
    assert not contents.of_part(part_of(tmp_path, deployed, "app_site-1"), server=False).fab


@pytest.mark.parametrize("what", [w for w in HOSTILE if "meta" not in w and w not in ("an id",)])
def test_a_part_with_anything_else_is_refused(tmp_path: Path, what: str) -> None:
    files = exported(tmp_path, tracking="tensorboard")
    change, _ = HOSTILE[what]
    before = {name: content for name, content in files.items() if name.startswith("app/")}
    change(files)
    files = {name: content for name, content in files.items() if "/../" not in name and "\\" not in name}
    if {name: content for name, content in files.items() if name.startswith("app/")} == before:
        pytest.skip("it concerns the whole job alone")
    with pytest.raises(Unfit):
        contents.of_part(part_of(tmp_path, files), server=True)


def test_a_part_with_links_or_pipes_is_refused(tmp_path: Path) -> None:
    part = part_of(tmp_path, exported(tmp_path))
    (part / "custom" / "app.fab").rename(tmp_path / "app.fab")
    (part / "custom" / "app.fab").symlink_to(tmp_path / "app.fab")
    with pytest.raises(Unfit, match="not a regular file"):
        contents.of_part(part, server=True)
    (part / "custom" / "app.fab").unlink()
    os.mkfifo(part / "custom" / "app.fab")
    with pytest.raises(Unfit, match="not a regular file"):
        contents.of_part(part, server=True)
    (part / "custom" / "app.fab").unlink()
    (part / "custom").rmdir() if not list((part / "custom").iterdir()) else None
    (part / "config").rename(tmp_path / "config")
    (part / "config").symlink_to(tmp_path / "config")
    with pytest.raises(Unfit, match="not a regular file"):
        contents.of_part(part, server=True)


def test_no_zip_and_no_configuration_raises_anything_else(tmp_path: Path) -> None:
    """Bytes of zips and of configurations that were changed at random: a verdict, or one clear refusal."""
    chance = random.Random(0)
    files = exported(tmp_path, tracking="tensorboard")
    whole, seen = zipped(files), set()
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        kept = bytes(content[: chance.choice((len(content), chance.randrange(len(content))))])
        name = chance.choice((SERVER, CLIENT, "meta.json"))
        text = files[name].decode()
        where, to = sorted((chance.randrange(len(text)), chance.randrange(len(text))))
        piece = chance.choice(('{"path": 1}', "[]", "null", '""', "1e999", "-", "\\ud800", text[where:to]))
        changed = {**files, name: (text[:where] + piece + text[to:]).encode(errors="replace")}
        for candidate in (kept, zipped(changed)):
            try:
                seen.add(contents.of_job(candidate, "add").fab)
            except Unfit as refused:
                assert str(refused) and len(str(refused)) < 2000
    assert seen <= {fab.sha256(fab.build(APP))}
