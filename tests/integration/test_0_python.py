"""The page on Python in FLARE's simulator and in proof-of-concept mode. No engine is needed."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import psutil
from nvflare.lighter import provision

from bridge.common.ports import free_port
from scripts.core import ROOT
from tests import cells


def left_of(folder: Path) -> dict[psutil.Process, str]:
    """The processes that run in `folder`, or name it, with their command lines."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if str(folder) in line or Path(process.cwd()).is_relative_to(folder):
                found[process] = line
    return found


def test_the_page_runs_in_the_simulator(tmp_path: Path) -> None:
    process = cells.run(cells.cells(), ROOT, NVFLARE_SIMULATOR_WORKSPACE_ROOT=str(tmp_path))
    cells.check(process, "None")
    # FLARE's simulator has nobody who would take a log's stream.
    assert "log_streaming" not in process.stdout + process.stderr
    assert left_of(tmp_path) == {}


def test_a_run_that_fails_in_the_simulator_raises(tmp_path: Path) -> None:
    """Its reason also shows that both sides of the app have the job's variables."""
    app = shutil.copytree(ROOT / "tests" / "apps" / "numpy-add", tmp_path / "app")
    _edit(
        app / "numpyadd" / "client_app.py", '{"train_loss":', '{"told": os.environ["APP_TOLD"], "train_loss":'
    )
    raising = 'raise RuntimeError(results[0][1].metrics["told"] + os.environ["APP_TOLD"])'
    _edit(app / "numpyadd" / "server_app.py", "if parameters is not None:", f"{raising}\n        if True:")
    program = cells.cells().replace('flower_content="tests/apps/numpy-add",', TOLD.format(app=app))
    process = cells.run(program, ROOT, NVFLARE_SIMULATOR_WORKSPACE_ROOT=str(tmp_path / "workspace"))
    assert process.returncode == 1
    assert "RuntimeError: hellohello" in process.stdout + process.stderr
    assert "RuntimeError: hellohello" in (tmp_path / "workspace/adding/server/log.txt").read_text()
    assert "RuntimeError: Simulation failed" in process.stderr
    assert left_of(tmp_path) == {}


TOLD = "flower_content='{app}', extra_env={{'APP_TOLD': 'hello'}},"


def _edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text("import os\n" + text.replace(old, new))


def test_the_page_runs_in_proof_of_concept_mode(tmp_path: Path) -> None:
    # FLARE's own project for it, with a port that is free.
    project = (Path(provision.__file__).parent / "dummy_project.yml").read_text()
    assert "fed_learn_port: 8002" in project
    (tmp_path / "poc").mkdir()
    (tmp_path / "poc" / "project.yml").write_text(project.replace("8002", str(free_port())))
    folders = {"NVFLARE_POC_WORKSPACE": str(tmp_path / "poc"), "HOME": str(tmp_path)}
    try:
        process = cells.run(cells.cells("In proof-of-concept mode"), ROOT, **folders)
        cells.check(process, "FINISHED:COMPLETED")
        # FLARE's own scripts check only now and then whether they should end.
        psutil.wait_procs(left_of(tmp_path), timeout=15)
        assert left_of(tmp_path) == {}
    finally:
        for process_left in left_of(tmp_path):
            process_left.kill()
