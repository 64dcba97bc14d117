"""From the figures of single runs to medians, ratios and the one JSON object of `flowerbed bench`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

PLAIN = "plain"
SETUPS = (PLAIN, "upstream", "processes", "containers")
"""Plain Flower first: every ratio is to it."""

NAMES = {
    PLAIN: "plain Flower",
    "upstream": "FLARE's own integration",
    "processes": "Flowerbed, processes",
    "containers": "Flowerbed, containers",
}
"""Of the set-ups, for people."""

APPS = ("nothing", "quickstart", "large_1", "large_20", "sites_8")
GROWTH = "growth"
"""Beside the apps: nothing on more and more sites, in two of the set-ups."""

TARGETS = {
    "nothing": 0.30,
    "quickstart": 0.60,
    "large_1": 1.10,
    "large_20": 1.10,
    "sites_8": 0.35,
    "peak_memory": 1.25,
}
"""The most that Flowerbed's ratio to plain Flower is meant to be."""

JOB = ("submit_to_first_round", "last_round_to_finished")
"""Seconds of a job: from FLARE's taking it to the first round's begin, and from the last one's end to FLARE's
last status."""

ENOUGH_RUNS = 3
"""From so many runs on, of all set-ups, figures may stand in the documentation."""

Values = Mapping[str, Sequence[float]]
"""The figures of the single runs, by set-up."""


def median(values: Sequence[float]) -> float:
    """To a thousandth."""
    return round(statistics.median(values), 3)


def entry(values: Values, failures: Mapping[str, Sequence[str]], unit: str) -> dict[str, Any]:
    """One measure: by set-up the median, its ratio to plain Flower's, and every single figure.

    A set-up of which a run has failed has no median: what is left of it might be the better part.
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
    """Medians of the seconds before and after the rounds of jobs."""
    found: dict[str, Any] = {"of": len(seconds)}
    for key in JOB:
        values = [job[key] for job in seconds]
        found[key] = median(values) if values else None
    return found


GROWTH_KEYS = ("seconds_a_round", "cpu_a_round", "server_cpu_a_round")
"""What is measured of growth: seconds, CPU seconds of all processes, and of the server's."""


def growth(sites: Sequence[int], runs: Mapping[tuple[int, str], Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Medians by number of sites, None where there is no run.

    Args:
        runs: by number of sites and set-up, of each run the values of GROWTH_KEYS.
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
    """What grows with the sites, and why: lines for below the plot."""
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
    """A new report, with what only the old one has measured: so that a long benchmark can run in parts."""
    result = dict(new)
    result["apps"] = {**old.get("apps", {}), **new["apps"]}
    for part in ("peak_memory", "growth", "jobs"):
        if part not in new and part in old:
            result[part] = old[part]
    return result


def failed(report: Mapping[str, Any]) -> list[str]:
    """Every measure that failed, a line each."""
    lines = {
        f"{app}, {name}": reasons
        for app, content in report["apps"].items()
        for name, reasons in content.get("failures", {}).items()
    }
    lines.update(report.get("growth", {}).get("failures", {}))
    return [f"{which}: {reasons[0].splitlines()[0]}" for which, reasons in lines.items()]
