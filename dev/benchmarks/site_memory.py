"""Measure the memory of a site's processes during training, with a SuperNode of each kind.

    .flowerbed/venv/bin/python -m dev.benchmarks.site_memory [--runs N] [--cold]

This prints one JSON object. It needs this checkout's own federation to be up, and root on this machine, since
some of Flower's processes do not let their user look. Figures are MiB. `pss` divides a page among the
processes that share it, and so can be added up. `rss` counts it for each of them in full.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections import defaultdict

import psutil

from dev.benchmarks.federation import ROOT, verb

APP = ROOT / "tests" / "apps" / "numpy-add"
SITE = "site-1"

TRAINING = 10
"""Seconds of each training, in which the processes are measured."""

SETTLED = 4.0
"""Seconds from the ClientApp's start to the measurement: by then it has imported everything, and trains."""

BESIDE = ("client_train", "server_train", "docker-init", "tini", "sh")
"""Processes of a container without a job."""

MIB = 2**20

KINDS = ("process", "inline")


def processes(service: str = SITE) -> dict[int, str]:
    """Return the processes of a service's container: name by ID, on this machine."""
    compose = ["docker", "compose", "ps", "--quiet", service]
    container = subprocess.run(compose, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    command = ["docker", "top", container, "-eo", "pid,comm,args"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    found = {}
    for line in lines:
        pid, name, words = line.split(maxsplit=2)
        for own in ("worker_process", "runner_process", "client_train", "server_train", "reaper.py"):
            name = own if own in words else name
        found[int(pid)] = name
    return found


def weigh() -> dict[str, dict[str, float]]:
    """Return each process's memory, by name."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"pss": 0.0, "rss": 0.0})
    for pid, name in processes().items():
        memory = psutil.Process(pid).memory_full_info()
        found[name]["pss"] += memory.pss / MIB
        found[name]["rss"] += memory.rss / MIB
    return dict(found)


def job(kind: str, *options: str) -> dict[str, dict[str, float]]:
    """Run one job, and return the memory of its site's processes in its first training."""
    config = f"train-seconds={TRAINING}"
    words = ("--rounds", "1", "--run-config", config, "--supernode", kind, *options)
    job_id = str(verb("submit", str(APP), "--build", *words)["job_id"])
    while "flwr-clientapp" not in processes().values():
        time.sleep(0.2)
    time.sleep(SETTLED)
    found = weigh()
    verb("wait", job_id)
    return found


def main() -> None:
    """Measure by turns, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of each kind (default: 3)")
    parser.add_argument("--cold", action="store_true", help="without copies of a template")
    args = parser.parse_args()
    options = ["--cold"] if args.cold else []
    runs: dict[str, list[dict[str, dict[str, float]]]] = {kind: [] for kind in KINDS}
    for _ in range(args.runs):
        for kind in KINDS:
            runs[kind].append(job(kind, *options))
    print(json.dumps({kind: _medians(found) for kind, found in runs.items()}))


def _medians(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    for found in runs:
        job_part = [weight for name, weight in found.items() if name not in BESIDE]
        found["all of the job"] = {kind: sum(weight[kind] for weight in job_part) for kind in ("pss", "rss")}
    return {
        name: {kind: round(statistics.median(found[name][kind] for found in runs)) for kind in ("pss", "rss")}
        for name in runs[0]
    }


if __name__ == "__main__":
    main()
