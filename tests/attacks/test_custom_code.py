"""A submitter brings code to a server and a site that refuse it, in every form that a job can take.

The jobs are signed and submitted under a real identity, the lead's. `tests/unit/test_contents.py` checks each
form's refusal and its reason. Here the real server refuses, and the real site.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest

from bridge.common import meta
from bridge.job import fab
from scripts.core import ROOT
from tests.attacks.hostile import act
from tests.federation import Federation

APP = ROOT / "tests" / "apps" / "numpy-add"
REFUSED = {"site-5": meta.NO_CUSTOM_CODE}

HAND_IN = r'''
import shutil, zipfile
from nvflare.fuel.flare_api.flare_api import new_secure_session
from nvflare.fuel.hci.client import file_transfer

def without_folders(root, folder, out):
    """As FLARE's, but there is no entry for a folder that FLARE does not ask for itself."""
    base = pathlib.Path(root) / folder
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(base.rglob("*")):
            if not (path.is_dir() and path.name == "custom"):
                archive.write(path, f"{base.name}/{path.relative_to(base)}")

file_transfer.zip_directory_to_file = without_folders
user = json.loads(pathlib.Path("/workspace/startup/fed_admin.json").read_text())["admin"]["username"]
session = new_secure_session(user, "/workspace", timeout=15)
answers = {}
for what, files in json.loads(WORDS[0]).items():
    folder = pathlib.Path("/tmp/attack/job")
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(base64.b64decode(content))
    try:
        answers[what] = session.submit_job(str(folder))
    except Exception as error:
        answers[what] = f"refused: {error}"
session.close()
tell(answers)
'''


ADD = r"""
import pathlib, sys, zipfile
files = [p for p in pathlib.Path("/workspace/store/jobs", sys.argv[1]).iterdir() if zipfile.is_zipfile(p)]
(stored,) = (p for p in files if "job/meta.json" in zipfile.ZipFile(p).namelist())
with zipfile.ZipFile(stored, "a") as archive:
    archive.writestr("job/app_site-1/config/x.so", b"")
"""

CLONE = r"""
from nvflare.fuel.flare_api.flare_api import new_secure_session
user = json.loads(pathlib.Path("/workspace/startup/fed_admin.json").read_text())["admin"]["username"]
session = new_secure_session(user, "/workspace", timeout=15)
job, deadline = session.clone_job(WORDS[0]), time.monotonic() + 60
while not (entry := session.get_job_meta(job))["status"].startswith("FINISHED"):
    assert time.monotonic() < deadline, entry
    time.sleep(0.5)
session.close()
tell(entry)
"""


@pytest.fixture(scope="module")
def exported(larger: Federation, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a job for site-1 and site-5, which brings the app."""
    folder = tmp_path_factory.mktemp("exported") / "job"
    words = ("--rounds", "1", "--sites", "site-1,site-5", "--min-sites", "1")
    larger.must(
        "submit", str(APP), *words, "--run-config", "min-available-clients=1", "--export", str(folder)
    )
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def changed(files: dict[str, bytes], name: str, **values: object) -> dict[str, bytes]:
    """The job with other arguments of its controller or executor."""
    content = json.loads(files[name])
    main = content["workflows"][0] if "workflows" in content else content["executors"][0]["executor"]
    main["args"].update(values)
    return {**files, name: json.dumps(content).encode()}


def test_no_form_of_a_job_brings_code_past_a_sites_policy(
    larger: Federation, exported: dict[str, bytes]
) -> None:
    server, site = "app_server/config/config_fed_server.json", "app_site-5/config/config_fed_client.json"
    codeless = {name: content for name, content in exported.items() if "/custom/" not in name}
    deployed = changed(codeless, server, flower_app_path="local/custom/adding")
    launcher = "nvflare.app_common.launchers.subprocess_launcher.SubprocessLauncher"
    with_launcher = json.loads(deployed[site])
    with_launcher["components"].append({"id": "x", "path": launcher, "args": {"script": "id"}})
    forms = {
        "code in the server's part alone": {**codeless, "app_server/custom/app.fab": fab.build(APP)},
        "an app that is not bundled": {**exported, "app_server/custom/numpyadd/__init__.py": b""},
        "a library in config": {**deployed, "app_site-5/config/evil.so": b"\x7fELF"},
        "OpenSSL's configuration": {
            **changed(deployed, site, extra_env={"OPENSSL_CONF": "../app_site-5/config/openssl.cnf"}),
            "app_site-5/config/openssl.cnf": b"openssl_conf = evil",
        },
        "a variable of an app, without one": changed(deployed, site, extra_env={"APP_X": "1"}),
        "OpenSSL's variable for the server": changed(exported, server, extra_env={"OPENSSL_MODULES": "x"}),
        "a launcher of programs": {**deployed, site: json.dumps(with_launcher).encode()},
        "a nested archive": {**deployed, "app_site-5/custom/app.zip": fab.build(APP)},
        "the server's key": changed(
            exported, server, run_config={"array-size": "${secret:file:/kit/startup/server.key}"}
        ),
    }
    # This one is a whole job, which brings its app: only that its zip does not say so.
    forms["a zip without the entry that FLARE asks for"] = exported
    words = {
        what: {name: base64.b64encode(content).decode() for name, content in files.items()}
        for what, files in forms.items()
    }
    answers = act(larger, "lead", HAND_IN, json.dumps(words))
    job = answers.pop("a zip without the entry that FLARE asks for")
    assert {what for what, answer in answers.items() if not answer.startswith("refused")} == set(), answers
    said = {
        "code in the server's part alone": "different apps",
        "a library in config": "evil.so",
        "a variable of an app, without one": "brings no app",
        "OpenSSL's variable for the server": "OPENSSL_MODULES",
        "a launcher of programs": "SubprocessLauncher",
        "the server's key": "braces",
    }
    assert all(text in answers[what] for what, text in said.items()), answers
    outcome = larger.must("wait", job)
    assert (outcome["status"], outcome["refused"]) == ("FINISHED:COMPLETED", REFUSED)
    assert sorted(outcome["rounds"][0]["sites"]) == ["site-1"]
    _changed_in_the_store(larger, job)


def test_no_app_runs_in_flares_environment(larger: Federation, exported: dict[str, bytes]) -> None:
    """Jobs that name no environment: of an app that none was made for, and of one that is deployed."""
    shutil.copytree(APP, larger.root / "deployed" / "unnamed", dirs_exist_ok=True)
    parts = ("app_server/config/config_fed_server.json", "app_site-5/config/config_fed_client.json")
    unnamed = exported
    for name in (*parts, parts[1].replace("site-5", "site-1")):
        unnamed = changed(unnamed, name, environment="")
    codeless = {name: content for name, content in unnamed.items() if "/custom/" not in name}
    foreign = asking_for(exported["app_server/custom/app.fab"], b'"numpy", "packaging<999"')
    jobs = {
        "brought": {name: foreign if name.endswith(".fab") else f for name, f in unnamed.items()},
        "deployed": changed(codeless, parts[0], flower_app_path="local/custom/unnamed"),
    }
    words = {
        what: {name: base64.b64encode(content).decode() for name, content in files.items()}
        for what, files in jobs.items()
    }
    handed_in = act(larger, "lead", HAND_IN, json.dumps(words))
    for what, told in (
        ("brought", "the server cannot run the app: the job names no environment, and none here was made"),
        ("deployed", "takes no part: the job names no environment and brings no app"),
    ):
        outcome = larger.verb("wait", handed_in[what], "--timeout", "90")
        assert outcome.code == 1 and told in outcome.value["error"], (what, handed_in, outcome)


def asking_for(app: bytes, packages: bytes) -> bytes:
    """Return a bundle of an app that asks for other packages."""
    with zipfile.ZipFile(io.BytesIO(app)) as before, tempfile.TemporaryDirectory() as folder:
        before.extractall(folder)
        project = Path(folder) / "pyproject.toml"
        found, asked = project.read_bytes(), b'"numpy"'
        assert asked in found
        project.write_bytes(found.replace(asked, packages))
        return fab.build(Path(folder))


def _changed_in_the_store(larger: Federation, job: str) -> None:
    """FLARE clones what it has stored, and asks nobody about it: it is looked at before it is scheduled."""
    larger.exec("server", "python", "-P", "-c", ADD, job)
    entry = act(larger, "lead", CLONE, job)
    assert entry["status"] == "FINISHED:FAILED_TO_RUN", entry
    assert "x.so" in entry["flowerbed_reason"] and set(entry["flowerbed_refused"]) == {"server"}
