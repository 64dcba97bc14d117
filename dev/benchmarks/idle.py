"""Measure an idle federation's use of processors, and what a job adds while its sites train.

    .flowerbed/venv/bin/python -m dev.benchmarks.idle [--seconds N] [--supernode process|inline]

This prints one JSON object, in percent of one core. It needs this checkout's own federation to be up, without
a job. The containers' figures are the engine's, health checks included. Those of single processes are the
kernel's. The training only sleeps, so everything that the job adds belongs to the relay, FLARE and Flower.
Exit code 1 if a container uses more than `IDLE`, or relay and SuperNode more than `JOB` in any of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict

import httpx

from dev.benchmarks.federation import ROOT, verb
from dev.benchmarks.meter import cpu_of
from dev.benchmarks.site_memory import APP, SETTLED, processes

IDLE, JOB = 2.0, 1.0
"""Percent of a core: a container's without a job, and what a job's relay and SuperNode add to a container
while its sites train."""

POLLING = ("runner_process", "worker_process", "flower-supernod")
"""Names of the processes of relay and SuperNode: FLARE's job processes, and the SuperNode."""

AT_EASE = 20.0
"""Seconds for a federation to become idle before it is measured."""

JOB_BEGINS_WITHIN, LONGER = 60.0, 30.0
"""Seconds until all sites train, and how much longer than the measurement they train."""

ENGINE = "/var/run/docker.sock"


def containers() -> dict[str, str]:
    """Return the running containers' IDs by their services' names."""
    command = ["docker", "compose", "ps", "--format", "{{.Service}} {{.ID}}"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split() for line in lines)


def spent(ids: dict[str, str]) -> dict[str, float]:
    """Return the CPU seconds of each container, with all processes that ran in it."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=ENGINE), base_url="http://engine") as client:
        found = {}
        for service, container in ids.items():
            answer = client.get(f"/containers/{container}/stats", params={"stream": 0, "one-shot": 1})
            found[service] = answer.raise_for_status().json()["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9
        return found


Percents = dict[str, float]


def over(seconds: float, ids: dict[str, str], jobs: dict[str, dict[int, str]]) -> tuple[Percents, Percents]:
    """Measure percent of a core over the next seconds, as "service name": of each container, and of a job's
    processes in all of them (`jobs`: by service, name by ID)."""
    before, began = spent(ids), time.monotonic()
    ticks = {pid: cpu_of(pid) for found in jobs.values() for pid in found}
    time.sleep(seconds)
    after, took = spent(ids), time.monotonic() - began
    percent: Percents = defaultdict(float)
    for service, found in jobs.items():
        for pid, name in found.items():
            # A process that has ended meanwhile was a health check's.
            percent[f"{service} {name}"] += 100 * max(0.0, cpu_of(pid) - ticks[pid]) / took
    return {s: round(100 * (after[s] - before[s]) / took, 2) for s in ids}, dict(percent)


def main() -> None:
    """Measure both, print them, and report by the exit code whether they are within the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="of each measure (default: 60)")
    parser.add_argument("--supernode", default="process", help="as for submit")
    args = parser.parse_args()
    ids = containers()
    sites = sorted(service for service in ids if service.startswith("site-"))
    time.sleep(AT_EASE)
    idle, _ = over(args.seconds, ids, {})
    before = {service: processes(service) for service in ids}
    config = f"train-seconds={args.seconds + LONGER:.0f} min-available-clients={len(sites)}"
    words = ("--rounds", "1", "--run-config", config, "--supernode", args.supernode)
    job_id = str(verb("submit", str(APP), "--build", *words)["job_id"])
    until = time.monotonic() + JOB_BEGINS_WITHIN
    while not all("flwr-clientapp" in processes(site).values() for site in sites):
        if time.monotonic() > until:
            sys.exit(f"not all sites trained after {JOB_BEGINS_WITHIN:.0f} s")
        time.sleep(0.5)
    time.sleep(SETTLED)
    jobs = {s: {pid: name for pid, name in processes(s).items() if pid not in before[s]} for s in ids}
    training, by_process = over(args.seconds, ids, jobs)
    verb("wait", job_id)
    job: Percents = defaultdict(float)
    polling: Percents = defaultdict(float)
    for name, value in by_process.items():
        service, program = name.split()
        job[service] += value
        polling[service] += value if program in POLLING else 0
    content = {
        "seconds": args.seconds,
        "idle": idle,
        "training": training,
        "job": {service: round(value, 2) for service, value in job.items()},
        "relay_and_supernode": {service: round(value, 2) for service, value in polling.items()},
        "job_by_process": {name: round(value, 2) for name, value in by_process.items()},
    }
    print(json.dumps(content))
    sys.exit(int(max(idle.values()) > IDLE or max(polling.values(), default=0.0) > JOB))


if __name__ == "__main__":
    main()
