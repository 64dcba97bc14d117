"""The plan that a ServerApp keeps which is to do the same in every run (`bridge/flower/deterministic.py`)."""

from __future__ import annotations

import json
from pathlib import Path

PLAN_FILE, TRACE_FILE = "in_order.json", "in_order.jsonl"
"""`{"seed": number, "sites": {node id: site}}`, the sites in their order; and the events."""


WHAT = "a job whose ServerApp keeps the sites' order (in order)"
"""What does so, for people."""


def write_plan(folder: Path, seed: int, sites: dict[int, str]) -> None:
    """Write `PLAN_FILE` into `folder`: whose the nodes are, the sites in the order that is to be kept."""
    told = {"seed": seed, "sites": {str(node): site for node, site in sites.items()}}
    (folder / PLAN_FILE).write_text(json.dumps(told))
