"""A hostile process in a site's container: it can reach the gateway, and harms neither site nor job."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.faults.hostile import CONNECTIONS
from tests.federation import NOTHING, Federation, left_over

HOSTILE = Path(__file__).with_name("hostile.py").read_text()
SECONDS = 25
"""Seconds of the attack, which begins before the SuperNode has registered."""

REFUSED = {
    "a second registration": {"403"},
    "another key": {"403"},
    "another's messages": {"403"},
    "another's heartbeat": {"403"},
    "another's good-bye": {"403"},
    "another's confirmation": {"403"},
    "another's reply": {"403"},
    "no protobuf": {"403"},
    "a large body": {"413"},
    "another content type": {"415"},
    "another API": {"404"},
    "garbage": {"400"},
}
"""The allowed answers to each attack."""

CROWDED = {"0", "503"}
"""Further answers while it floods the gateway itself: none, or one to try again."""


@pytest.mark.pick
def test_a_hostile_process_beside_a_supernode_is_refused_and_the_job_unharmed(federation: Federation) -> None:
    container = federation.container("site-1")
    command = ["docker", "exec", container, "python", "-c", HOSTILE, str(SECONDS)]
    env = federation.engine_of("site-1")
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as hostile:
        try:
            # Longer than the attack: with the job, the gateway that is attacked ends.
            job = federation.submit("numpy-add", "--rounds", "3", "--run-config", "train-seconds=10")
            outcome = federation.must("wait", job)
            told, error = hostile.communicate(timeout=90)
        finally:
            hostile.kill()
    assert hostile.returncode == 0, error
    answers = json.loads(told)
    opened = answers.pop("connections opened")["1"]
    assert opened > CONNECTIONS
    assert {attack: set(codes) - CROWDED for attack, codes in answers.items()} == REFUSED

    assert outcome["status"] == "FINISHED:COMPLETED"
    kinds = {"train", "evaluate"}
    assert [{s: set(r) for s, r in entry["sites"].items()} for entry in outcome["rounds"]] == (
        [{"site-1": kinds, "site-2": kinds}] * 3
    )
    results = Path(federation.must("results", job)["folder"])
    assert np.load(results / "serverapp" / "final_model.npy").tolist() == [float(n) for n in range(3, 13)]

    audit = (results / "logs" / "audit.log").read_text().splitlines()
    refused = [line for line in audit if "[A:flower.call.refused]" in line]
    assert refused and all("[U:site-1]" in line for line in refused)
    for what in ("register-node", "pull-messages", "push-messages", "deactivate-node"):
        assert any(what in line for line in refused), what
    assert left_over(federation) == NOTHING
