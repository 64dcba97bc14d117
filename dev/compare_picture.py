"""Draw a comparison: both runs' curves over each other, and their difference below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from scripts.curves import COLOURS, blank, choose, one_legend

FEW_SITES = 6
"""The most sites that get a colour each."""

Rounds = Sequence[Mapping[str, Any]]


def draw(outcome: Mapping[str, Any], again: Rounds | None, path: Path) -> bool:
    """Write the picture (PNG). Without metrics, return False and write nothing.

    Args:
        outcome: `compare`'s report.
        again: the rounds of plain Flower's second run, if there was one, for the noise band.
    """
    plain: Rounds = [entry["plain"] for entry in outcome["rounds"] if entry["plain"]]
    flowerbed: Rounds = [entry["flowerbed"] for entry in outcome["rounds"] if entry["flowerbed"]]
    panels = choose(plain)
    if not panels:
        return False
    figure = blank(5.6 * len(panels) + 0.4, 6.4, h_pad=0.08)
    verdict = "identical to the last bit" if outcome["identical"] else "they differ"
    figure.suptitle(
        f"{outcome['app']}, {outcome['sites']} sites, seed {outcome['seed']}: "
        f"plain Flower and Flowerbed, {verdict}",
        fontsize=13,
        fontweight="bold",
    )
    grid = figure.subplots(2, len(panels), squeeze=False, sharex=True, height_ratios=(3, 1))
    for column, panel in enumerate(panels):
        kind, name = ("evaluate", panel.evaluate) if panel.evaluate else ("train", panel.train)
        curves, below = grid[0][column], grid[1][column]
        sites = sorted({site for entry in plain for site in entry["sites"]})
        for number, site in enumerate(sites):
            colour = COLOURS[number] if len(sites) <= FEW_SITES else "#9DB8CC"
            _both(
                curves, below, site, colour, *(_of(rounds, site, kind, name) for rounds in (plain, flowerbed))
            )
        own = name if kind == "evaluate" or name not in _evaluated(plain) else f"train_{name}"
        averages = [_of(rounds, None, kind, own) for rounds in (plain, flowerbed)]
        _both(curves, below, "average", "black", *averages)
        if again is not None:
            noise = _difference(averages[0], _of(again, None, kind, own))
            below.fill_between(
                list(noise),
                [-abs(v) for v in noise.values()],
                [abs(v) for v in noise.values()],
                color="#BBBBBB",
                alpha=0.6,
                label="plain Flower from itself",
            )
            below.legend(frameon=False, fontsize=8)
        curves.set_title(
            panel.title + (", evaluated at the sites" if kind == "evaluate" else " while training")
        )
        below.set_xlabel("round")
        below.set_ylabel("Flowerbed − plain")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        if outcome["identical"]:
            below.set_ylim(-1, 1)
            below.text(0.5, 0.75, "0 everywhere", ha="center", transform=below.transAxes, color="#444444")
        for axes in (curves, below):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    one_legend(figure, grid[0], columns=4)
    figure.savefig(path)
    return True


Points = dict[int, float]


def _of(rounds: Rounds, site: str | None, kind: str, name: str | None) -> Points:
    """Return a metric by round: a site's, or (None) the average."""
    found = {
        entry["round"]: entry["metrics"].get(name)
        if site is None
        else entry["sites"].get(site, {}).get(kind, {}).get(name)
        for entry in rounds
    }
    return {number: value for number, value in found.items() if isinstance(value, int | float)}


def _evaluated(rounds: Rounds) -> set[str]:
    return {n for entry in rounds for parts in entry["sites"].values() for n in parts.get("evaluate", {})}


def _difference(one: Points, other: Points) -> Points:
    return {number: other[number] - one[number] for number in one if number in other}


def _both(curves: Axes, below: Axes, label: str, colour: str, plain: Points, flowerbed: Points) -> None:
    curves.plot(
        list(plain),
        list(plain.values()),
        color=colour,
        linewidth=6,
        alpha=0.3,
        solid_capstyle="round",
        label=f"{label}, plain Flower",
    )
    curves.plot(
        list(flowerbed),
        list(flowerbed.values()),
        color=colour,
        linewidth=1.5,
        marker="o",
        markersize=3.5,
        label=f"{label}, Flowerbed",
    )
    gap = _difference(plain, flowerbed)
    below.plot(list(gap), list(gap.values()), color=colour, linewidth=1.2, marker="o", markersize=3)
