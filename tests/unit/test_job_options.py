"""A job's options have one definition, which all displays, checks and uses follow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.common.constant import HEARTBEAT_MAX_INTERVAL, HEARTBEAT_PATIENCE

from bridge.common import job_options
from bridge.common.job_options import JobOptions
from bridge.flare import contents

ROOT = Path(__file__).resolve().parents[2]


def test_every_option_is_acted_on_by_somebody_and_none_has_the_name_of_a_component() -> None:
    for option in job_options.options():
        assert option.users and option.users <= {job_options.SERVER, job_options.SITE, job_options.JOB}
        # FLARE would build a component of a dictionary with such a key, so a job with one is refused.
        assert option.name not in contents.BUILT or option.users == {job_options.JOB}
    in_files = [o for user in (job_options.SERVER, job_options.SITE) for o in job_options.options(user)]
    assert {o.name for o in in_files if o.type is Mapping} == contents.MAPS
    # FLARE's own receiver has a list too.
    assert {o.name for o in in_files if o.type is Sequence} == contents.LISTS - {"events"}


def test_the_bounds_of_the_grace_are_flowers() -> None:
    (grace,) = (option for option in job_options.options() if option.name == "grace")
    assert (grace.at_least, grace.at_most) == (60, HEARTBEAT_PATIENCE * HEARTBEAT_MAX_INTERVAL)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"grace": 59.0}, "grace 59: expected 60 to 3600 seconds"),
        ({"retries": 101}, "retries 101: expected 0 to 100"),
        ({"retries": True}, "retries True: expected a whole number"),
        ({"warm": 1}, "warm 1: expected true or false"),
        ({"sites": "site-1"}, "sites 'site-1': expected a list of strings"),
        ({"run_config": ["a=1"]}, "expected a table"),
        ({"tracking": "wandb"}, "tracking 'wandb': expected tensorboard, mlflow, none"),
        ({"progress_timeout": 1.0}, "progress_timeout 1: expected 60 to 604800 seconds"),
        ({"grace": float("nan")}, "grace nan: expected a finite number"),
        ({"grace": float("inf")}, "grace inf: expected a finite number"),
        ({"grace": 10**400}, "grace 1000000000000000000000000000000000000000: expected 60 to 3600"),
        ({"sites_within": 1e308}, r"sites_within 1e\+308: expected 0 to 86400 seconds"),
        ({"client_shutdown_timeout": 11}, "client_shutdown_timeout 11: expected 0 to 10 seconds"),
    ],
)
def test_an_invalid_value_is_named_with_the_allowed_ones(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        JobOptions(**given).check()


def test_a_component_takes_its_own_options_alone() -> None:
    with pytest.raises(TypeError, match="unexpected options for the server: supernode"):
        job_options.given_to(job_options.SERVER, {"supernode": "inline"})


def test_a_component_takes_what_is_in_bounds() -> None:
    """A job's file may hold anything: at the participants only this checks it."""
    with pytest.raises(ValueError, match="sites_within 'x': expected a number"):
        job_options.given_to(job_options.SERVER, {"sites_within": "x"})
    assert all(o.at_most for o in job_options.options() if o.type is float), "each time has an end"


def test_only_the_standard_library_is_imported() -> None:
    program = (
        "import sys; import bridge.common.job_options; "
        "assert not {'nvflare', 'flwr', 'yaml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


NEW = """    patience: int = _option(
        3, "how often a site is asked", SERVER,
        flag="--patience", metavar="N", at_least=1, at_most=9, recipe=True,
    )
    superlink_ready_timeout"""
ACTS = "\nHOW_OFTEN = FlowerController(patience=4).options.patience\n"

SHOWN = textwrap.dedent(
    """
    import inspect, io, json, sys
    from pathlib import Path

    from bridge import FlowerRecipe
    from bridge.server import controller
    from bridge.flare.console.apps import make_job
    from bridge.flare.contents import of_part
    from bridge.server.controller import FlowerController
    from scripts import app as apps, submit
    from scripts.__main__ import main
    from dev.reference import job, verbs

    app = apps.read(Path(sys.argv[1]))
    told = {}
    try:
        with_help = io.StringIO(); sys.stdout, shown = with_help, sys.stdout
        main(["submit", "--help"])
    except SystemExit:
        pass
    finally:
        sys.stdout = shown
    told["help"] = " ".join(with_help.getvalue().split())
    submit.provision.site_names = lambda: ["site-1"]
    request = submit.job_request(app, {"patience": 7})
    into = Path(sys.argv[2])
    folder = make_job(app.folder, into, request["options"], deployed="", default_min_sites=1)
    file = folder / "app" / "config" / "config_fed_server.json"
    (workflow,) = json.loads(file.read_text())["workflows"]
    told["file"] = workflow["args"]["patience"]
    told["fits"] = bool(of_part(folder / "app", server=True).fab)
    told["controller"] = FlowerController(**workflow["args"]).options.patience
    told["acts"] = controller.HOW_OFTEN
    told["recipe"] = "patience" in inspect.signature(FlowerRecipe).parameters
    told["reference"] = [place for place in ("server", "recipe") if "`patience`" in job.options(place)]
    told["verbs"] = "`--patience N`" in verbs.section("submit")
    for wrong in ({"patience": 0}, {"patience": 99}):
        try:
            submit.job_request(app, wrong)
        except Exception as error:
            told[str(wrong["patience"])] = str(error)
    print(json.dumps(told))
    """
)


def test_a_new_option_takes_two_edits(tmp_path: Path) -> None:
    """The definition, and where it acts: the rest of the way is there."""
    for folder in ("bridge", "scripts", "provisioning", "dev"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.pyc.*")
        )  # Half written.
    shutil.copy(ROOT / "project.yml", tmp_path)
    definition = tmp_path / "bridge" / "common" / "job_options.py"
    text = definition.read_text()
    assert text.count("    superlink_ready_timeout") == 1
    definition.write_text(text.replace("    superlink_ready_timeout", NEW))
    acts = next(tmp_path.glob("bridge/**/controller.py"))
    acts.write_text(acts.read_text() + ACTS)
    (tmp_path / "into").mkdir()
    app = shutil.copytree(ROOT / "tests" / "apps" / "numpy-add", tmp_path / "app")
    ran = subprocess.run(
        [sys.executable, "-P", "-c", SHOWN, str(app), str(tmp_path / "into")],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200", "TERM": "dumb"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert "--patience" in told.pop("help") and told == {
        "file": 7,
        "fits": True,
        "controller": 7,
        "acts": 4,
        "recipe": True,
        "reference": ["server", "recipe"],
        "verbs": True,
        "0": "--patience 0: expected 1 to 9.",
        "99": "--patience 99: expected 1 to 9.",
    }
