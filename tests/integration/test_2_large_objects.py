"""A record of many bytes crosses FLARE both ways, within the containers' memory."""

from __future__ import annotations

import json
from pathlib import Path

from tests.federation import NOTHING, Federation, left_over

MB = 10**6


def test_a_record_of_100_mb_arrives_both_ways(federation: Federation) -> None:
    """Send it at two sites at once. A site's gateway once cut off this size, and the job hung."""
    job = federation.submit(
        "large-record", "--run-config", "up=100", "--run-config", "down=100", "--run-config", "num-sites=2"
    )
    assert federation.must("wait", job)["status"] == "FINISHED:COMPLETED"
    folder = Path(federation.must("results", job)["folder"])
    said = json.loads((folder / "serverapp" / "said.json").read_text())
    assert said["replies"] == [{"bytes": 100 * MB, "up": True, "down": True}] * 2
    assert left_over(federation) == NOTHING
