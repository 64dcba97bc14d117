"""Turn the figures of single runs into medians, ratios and the one JSON object of `flowerbed bench`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

PLAIN = "plain"
SETUPS = (PLAIN, "upstream", "processes", "containers")
"""The set-ups. Plain Flower comes first: every ratio is to it."""

NAMES = {
    PLAIN: "plain Flower",
    "upstream": "FLARE's own integration",
    "processes": "Flowerbed, processes",
    "containers": "Flowerbed, containers",
}
"""Names of the set-ups for users."""

APPS = ("nothing", "quickstart", "large_1", "large_20", "sites_8")
GROWTH = "growth"
"""A measure beside the apps: the app "nothing" on more and more sites, in two of the set-ups."""

TARGETS = {
    "nothing": 0.30,
    "quickstart": 0.60,
    "large_1": 1.10,
    "large_20": 1.10,
    "sites_8": 0.35,
    "peak_memory": 1.25,
}
"""Goals for Flowerbed's ratio to plain Flower, at most."""

JOB = ("submit_to_first_round", "last_round_to_finished")
"""Seconds of a job: from FLARE's taking it to the start of the first round, and from the end of the last
round to FLARE's last status."""

ENOUGH_RUNS = 3
"""Least runs of all set-ups for figures that go into the documentation."""

Values = Mapping[str, Sequence[float]]
"""The figures of the single runs, by set-up."""


def median(values: Sequence[float]) -> float:
    """Return the median to a thousandth."""
    return round(statistics.median(values), 3)


def entry(values: Values, failures: Mapping[str, Sequence[str]], unit: str) -> dict[str, Any]:
    """Return one measure: by set-up the median, its ratio to plain Flower's, and every single figure.

    A set-up with a failed run has no median: the remaining runs might be the better ones.
    """
    medians = {
        name: median(values[name]) if values.get(name) and not failures.get(name) else None for name in SETUPS
    }
    plain = medians[PLAIN]
    ratios = {
        f"ratio_{name}": round(value / plain, 3) if value is not None and plain else None
        for name, value in medians.items()
        if name != PLAIN
    }
    runs = {name: [round(value, 3) for value in found] for name, found in values.items() if found}
    failed = {name: list(reasons) for name, reasons in failures.items() if reasons}
    return {**medians, **ratios, "unit": unit, "runs": runs, **({"failures": failed} if failed else {})}


def jobs(seconds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the medians of the seconds before and after the rounds of jobs."""
    found: dict[str, Any] = {"of": len(seconds)}
    for key in JOB:
        values = [job[key] for job in seconds]
        found[key] = median(values) if values else None
    return found


GROWTH_KEYS = ("seconds_a_round", "cpu_a_round", "server_cpu_a_round")
"""Measures of growth: seconds, CPU seconds of all processes, and those of the server's."""


def growth(sites: Sequence[int], runs: Mapping[tuple[int, str], Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Return the medians by number of sites, or None where there is no run.

    Args:
        runs: the values of GROWTH_KEYS of each run, by number of sites and set-up.
    """
    content: dict[str, Any] = {"sites": list(sites)}
    names = [name for name in SETUPS if any(runs.get((number, name)) for number in sites)]
    for place, key in enumerate(GROWTH_KEYS):
        content[key] = {
            name: [
                median([run[place] for run in found]) if (found := runs.get((number, name))) else None
                for number in sites
            ]
            for name in names
        }
    return content


def growth_text(content: Mapping[str, Any], cores: int) -> str:
    """Return lines for below the plot: what grows with the sites, and why."""
    lines = []
    for name, seconds in content["seconds_a_round"].items():
        cpu, server = content["cpu_a_round"][name], content["server_cpu_a_round"][name]
        known = [i for i, value in enumerate(seconds) if value is not None]
        if len(known) < 2:
            continue
        first, last = known[0], known[-1]
        added = (server[last] - server[first]) / max(cpu[last] - cpu[first], 0.001)
        busy = [f"{cpu[i] / (seconds[i] * cores):.0%}" for i in (first, last)]
        lines.append(
            f"{NAMES[name]}, {content['sites'][first]} to {content['sites'][last]} sites: "
            f"{seconds[first]:.1f} to {seconds[last]:.1f} s a round, in which all processes spend "
            f"{cpu[first]:.1f} to {cpu[last]:.1f} s of CPU ({busy[0]} to {busy[1]} of {cores} cores), "
            f"the server's {server[first]:.2f} to {server[last]:.2f} s: {added:.0%} of what is added."
        )
    if lines:
        lines.append(
            "The rest of it is the sites' own work on the same cores: two ClientApps a site and round."
        )
    return "\n".join(lines)


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return a new report, with measures that only the old one has, so that a long benchmark can run in
    parts."""
    result = dict(new)
    result["apps"] = {**old.get("apps", {}), **new["apps"]}
    for part in ("peak_memory", "growth", "jobs"):
        if part not in new and part in old:
            result[part] = old[part]
    return result


def failed(report: Mapping[str, Any]) -> list[str]:
    """Return every measure that failed, a line each."""
    lines = {
        f"{app}, {name}": reasons
        for app, content in report["apps"].items()
        for name, reasons in content.get("failures", {}).items()
    }
    lines.update(report.get("growth", {}).get("failures", {}))
    return [f"{which}: {reasons[0].splitlines()[0]}" for which, reasons in lines.items()]
