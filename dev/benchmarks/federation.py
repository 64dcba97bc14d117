"""Measure this checkout's own federation for docs/performance.md, and print one JSON object.

    .flowerbed/venv/bin/python dev/benchmarks/federation.py [--runs N]

Run ./flowerbed quickstart once before. This stops and starts the federation, and leaves it up. Times are
seconds. Memory is MB of the container as `docker stats` counts it (without the page cache).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
IDLE_BEFORE_MEASURE = 20.0
"""Seconds after the last job, for its processes to end and FLARE to write its files."""


def verb(*words: str) -> dict[str, Any]:
    """Run a verb of flowerbed, and return its JSON object."""
    command = [str(ROOT / "flowerbed"), *words, "--format", "json"]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    value: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return value


def job(app: str) -> dict[str, Any]:
    """Run an app to its end, and return where its time went."""
    job_id = str(verb("submit", app, "--build")["job_id"])
    verb("wait", job_id)
    seconds: dict[str, Any] = verb("results", job_id)["seconds"]
    return seconds


def memory() -> dict[str, float]:
    """Return each container's memory in MB."""
    names = subprocess.run(
        ["docker", "compose", "ps", "--format", "{{.Name}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    command = ["docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", *names]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    units = {"KiB": 1024 / 1e6, "MiB": 1024**2 / 1e6, "GiB": 1024**3 / 1e6}
    found: dict[str, float] = {}
    for line in lines:
        name, value, unit = re.match(r"(\S+) ([\d.]+)([KMG]iB)", line).groups()  # type: ignore[union-attr]
        found[name] = round(float(value) * units[unit], 1)
    return found


def rebuild_after_an_edit() -> float:
    """Return the seconds of `build` after a line was added to the bridge. The file is restored."""
    file = ROOT / "bridge" / "common" / "loop.py"
    text = file.read_text()
    try:
        file.write_text(f"{text}\n# {time.time()}\n")
        return float(verb("build")["seconds"])
    finally:
        file.write_text(text)


def main() -> None:
    """Take all measures and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=3, help="of each timed step; medians are reported (default: 3)"
    )
    runs = parser.parse_args().runs
    edits = [rebuild_after_an_edit() for _ in range(runs)]
    built = verb("build")
    ups = []
    for _ in range(runs):
        verb("down")
        ups.append(float(verb("up")["seconds"]))
    jobs = [job(str(ROOT / "apps" / "pytorch-quickstart")) for _ in range(runs)]
    time.sleep(IDLE_BEFORE_MEASURE)
    print(
        json.dumps(
            {
                "runs": runs,
                "warm_up_seconds": statistics.median(ups),
                "rebuild_seconds": statistics.median(edits),
                "runtime_image_mb": built["runtime_mb"],
                "submit_to_first_round": statistics.median(j["submit_to_first_round"] for j in jobs),
                "last_round_to_finished": statistics.median(j["last_round_to_finished"] for j in jobs),
                "round_seconds": statistics.median(s for j in jobs for s in j["rounds"]),
                "idle_memory_mb": memory(),
            }
        )
    )


if __name__ == "__main__":
    main()
