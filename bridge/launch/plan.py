"""Write the plan of a ServerApp that must do the same in every run (`bridge/flower/deterministic.py`)."""

from __future__ import annotations

import json
from pathlib import Path

PLAN_FILE, TRACE_FILE = "in_order.json", "in_order.jsonl"
"""The plan, `{"seed": number, "sites": {node id: site}}` with the sites in their order, and the recorded
events."""


WHAT = "a job whose ServerApp keeps the sites' order (in order)"
"""The name of such a job, for users."""


def write_plan(folder: Path, seed: int, sites: dict[int, str]) -> None:
    """Write `PLAN_FILE` into `folder`: the site of each node, in the order to keep."""
    told = {"seed": seed, "sites": {str(node): site for node, site in sites.items()}}
    (folder / PLAN_FILE).write_text(json.dumps(told))
