"""FLARE's own admin console through a terminal, and Compose's own commands at the root."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pexpect

from scripts.core import ROOT
from tests import cells
from tests.federation import PROJECT, Federation

JOB_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
PROMPT = r"\r\n> |^> "


def _remove_one_off_containers() -> None:
    """Remove the container that `compose run` leaves when its terminal is taken away."""
    labels = [f"com.docker.compose.project={PROJECT}", "com.docker.compose.oneoff=True"]
    command = ["docker", "ps", "--quiet", "--all", *(f"--filter=label={label}" for label in labels)]
    left = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    if left:
        subprocess.run(["docker", "rm", "--force", *left], check=True, capture_output=True)


def test_submit_list_download_by_hand(federation: Federation) -> None:
    export = federation.root / "jobs" / "by-hand"
    federation.must("submit", str(ROOT / "tests/apps/numpy-add"), "--rounds", "1", "--export", str(export))
    assert (export / "meta.json").exists()
    console = pexpect.spawn(
        "docker", ["compose", "run", "--rm", "admin"], cwd=str(federation.root), encoding="utf-8", timeout=60
    )
    console.setwinsize(50, 200)
    try:
        console.expect("> ")
        console.sendline("submit_job by-hand")
        console.expect(JOB_ID)
        assert isinstance(console.match, re.Match)
        job = console.match.group()
        deadline = time.monotonic() + 90
        while True:
            console.expect("> ")
            console.sendline(f"list_jobs {job}")
            console.expect(r"Done \[")
            if "FINISHED:COMPLETED" in (console.before or ""):
                break
            assert time.monotonic() < deadline, console.before
            time.sleep(0.5)
        console.expect("> ")
        console.sendline(f"download_job {job}")
        console.expect("(?i)download")
        console.expect(r"Done \[")
        assert job in (console.before or "")
        console.expect("> ")
        console.sendline("bye")
        console.expect(pexpect.EOF)
    finally:
        console.close(force=True)
        _remove_one_off_containers()
    assert "workspace" in federation.exec("admin", "sh", "-c", f"ls -R /workspace/transfer/{job} | head -50")


def test_the_exported_folder_can_be_submitted_as_it_is(federation: Federation) -> None:
    job = str(federation.must("submit", str(federation.root / "jobs" / "by-hand"))["job_id"])
    assert federation.must("wait", job)["status"] == "FINISHED:COMPLETED"


def test_the_page_on_python_runs_in_the_containers(federation: Federation) -> None:
    program = cells.cells("In the containers")
    assert program.count("workspace/flowerbed/") == 1
    kit = str(federation.must("kit")["kit"])
    process = cells.run(program.replace("workspace/flowerbed/here/admin", kit), federation.root)
    cells.check(process, "FINISHED:COMPLETED")
    assert (federation.root / kit / "transfer").is_dir()


def test_flares_command_line_takes_the_kit(federation: Federation) -> None:
    kit = str(federation.root / federation.must("kit", "--as", "lead")["kit"])
    command = [sys.executable, "-m", "nvflare.cli", "--format", "json", "job", "list", "--startup-kit", kit]
    process = subprocess.run(
        command, cwd=federation.root, capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 0, process.stderr
    assert "adding" in process.stdout


def test_compose_up_and_down_work_at_the_root(federation: Federation) -> None:
    federation.compose("down")
    assert federation.compose("ps", "--quiet") == ""
    down = federation.verb("submit", str(ROOT / "tests/apps/numpy-add"))
    assert down.code == 1 and "./flowerbed up" in down.value["error"]
    federation.compose("up", "--detach", "--wait")
    # The job store is in a volume: what was there is there again.
    assert federation.must("jobs")["jobs"]


def test_down_and_up_by_the_verbs(federation: Federation) -> None:
    assert set(federation.must("down")["stopped"]) >= {"server", "site-1", "site-2"}
    up = federation.must("up")
    assert {up["services"][s] for s in ("server", "site-1", "site-2")} == {"healthy"}


def test_before_provisioning_and_building_compose_says_which_verb(
    federation: Federation, tmp_path: Path
) -> None:
    for name in ("compose.yaml", "compose"):
        source = federation.root / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)

    def said() -> str:
        process = subprocess.run(
            ["docker", "compose", "up", "-d"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert process.returncode != 0
        return process.stderr

    assert "./flowerbed provision" in said()
    shutil.copytree(federation.root / "workspace", tmp_path / "workspace")
    lines = (federation.root / ".env").read_text().splitlines()
    (tmp_path / ".env").write_text("\n".join(line for line in lines if not line.startswith("FLOWERBED_TAG")))
    assert "./flowerbed build" in said()
