"""A server hands out another app than the one that was signed, or than a site has vetted."""

from __future__ import annotations

import base64
import shutil
import subprocess

from bridge.job import fab
from scripts.core import ROOT
from tests.federation import Federation

APPS = ROOT / "tests" / "apps"

OTHER_APP = r"""
import base64, pathlib, re, sys, time
other, deadline = base64.b64decode(sys.argv[1]), time.monotonic() + 60
known = set(pathlib.Path("/workspace").glob("*/app_server"))
print("ready", flush=True)
while time.monotonic() < deadline:
    # The job's own process runs: FLARE has checked the job's part, and nothing has read the app yet.
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"runner_process" not in line:
            continue
        for part in set(pathlib.Path("/workspace").glob("*/app_server")) - known:
            if part.parent.name.encode() in line:
                (part / "custom" / "app.fab").write_bytes(other)
                sys.exit()
    time.sleep(0.01)
sys.exit("there was no job")
"""


def hash_of(app: str) -> str:
    return fab.sha256(fab.build(APPS / app))


def test_the_verb_tells_the_hash_that_sites_compare(federation: Federation) -> None:
    assert federation.must("hash", str(APPS / "numpy-add"))["hash"] == hash_of("numpy-add")


def test_another_app_than_the_signed_one_runs_at_no_site(federation: Federation) -> None:
    other = shutil.copytree(APPS / "numpy-add", federation.root / "other-app", dirs_exist_ok=True)
    client = other / "numpyadd" / "client_app.py"
    client.write_text(f"{client.read_text()}\nopen('/workspace/stolen', 'w').close()\n")
    content = fab.build(other)
    command = ["docker", "exec", "-i", federation.container("server"), "python", "-P", "-c", OTHER_APP]
    with subprocess.Popen(
        [*command, base64.b64encode(content).decode()], stdout=subprocess.PIPE, text=True
    ) as taken_over:
        assert taken_over.stdout is not None and taken_over.stdout.readline() == "ready\n"
        job = federation.submit("numpy-add", "--rounds", "1", "--sites", "site-1,site-2")
        outcome = federation.verb("wait", job)
    assert taken_over.returncode == 0, "the server sent the right app"
    assert (outcome.code, outcome.value["status"]) == (1, "FINISHED:EXECUTION_EXCEPTION"), outcome.text
    reason = outcome.value["reason"]
    assert (
        fab.sha256(content) in reason and hash_of("numpy-add") in reason and "app numpy-add 1.0.0" in reason
    )
    assert "refused the job and takes no part: the server sent app numpy-add" in outcome.text
    for site in ("site-1", "site-2"):
        found = federation.exec(site, "sh", "-c", "ls /workspace/stolen 2>/dev/null || true")
        assert found == "", f"{site} has run it"


def test_a_site_runs_the_deployed_apps_that_it_has_listed(larger: Federation) -> None:
    """site-5 has approved others, and the job goes on without it."""
    shutil.copytree(APPS / "dice", larger.root / "deployed" / "dice", dirs_exist_ok=True)
    shutil.copytree(APPS / "numpy-add", larger.root / "deployed" / "vetted", dirs_exist_ok=True)
    changed = shutil.copytree(APPS / "numpy-add", larger.root / "deployed" / "changed", dirs_exist_ok=True)
    with (changed / "numpyadd" / "client_app.py").open("a") as file:
        file.write("# not what was vetted\n")
    there = larger.must("hash", str(changed))["hash"]
    assert there == fab.sha256(fab.build(changed)) != hash_of("numpy-add")
    sites = ("--sites", "site-1,site-5", "--min-sites", "1", "--rounds", "1")
    words = (*sites, "--run-config", "min-available-clients=1")
    outcome = larger.verb("submit", "--deployed", "changed", *words, "--wait")
    assert outcome.code == 0, outcome.text
    refused = outcome.value["refused"]
    assert set(refused) == {"site-5"}
    assert f"add it to site-5 in project.yml: allowed_apps: [{there}]" in refused["site-5"]
    assert hash_of("numpy-add") in refused["site-5"] and "app numpy-add 1.0.0" in refused["site-5"]
    assert f"site-5 refused the job and takes no part: {refused['site-5']}" in outcome.text
    job = outcome.value["job_id"]
    assert larger.must("results", job)["refused"] == refused
    good = larger.verb("submit", "--deployed", "vetted", *sites, "--wait")
    assert good.code == 0 and good.value["refused"] == {}, good.text
    assert sorted(good.value["rounds"][0]["sites"]) == ["site-1", "site-5"]
