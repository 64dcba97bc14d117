"""Draw a report: every app's seconds in the four set-ups, and how rounds grow with the sites."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from dev.benchmarks.report import NAMES, PLAIN, SETUPS, TARGETS
from scripts.curves import COLOURS, MARKERS

TITLES = {
    "nothing": "An app that does nothing, 2 sites",
    "quickstart": "pytorch-quickstart, 3 rounds",
    "large_1": "200 MB model in 1 array",
    "large_20": "200 MB model in 20 arrays",
    "sites_8": "An app that does nothing, 8 sites",
    "peak_memory": "Peak memory, 200 MB model in 1 array",
}
COLOUR = dict(zip(SETUPS, ("#8C8C8C", COLOURS[4], COLOURS[5], COLOURS[0]), strict=True))
COLUMNS = 3


def draw(report: Mapping[str, Any], file: Path) -> None:
    """Write the comparison of the set-ups (PNG)."""
    measures = {
        **report["apps"],
        **({"peak_memory": report["peak_memory"]} if "peak_memory" in report else {}),
    }
    measures = {name: measures[name] for name in TITLES if name in measures}
    columns = min(COLUMNS, len(measures))
    rows = -(-len(measures) // columns)
    figure = _figure(4.6 * columns, 3.7 * rows + 0.9)
    versions, machine = report["versions"], report["machine"]
    title = textwrap.fill("Flowerbed beside plain Flower: lower is better", 34 * columns)
    figure.suptitle(title, fontsize=15, fontweight="bold")
    all_axes = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (name, content) in zip(all_axes, measures.items(), strict=False):
        _bars(axes, name, content)
    for axes in list(all_axes)[len(measures) :]:
        axes.set_axis_off()
    footer = (
        "Medians; a thin line: from the least to the most; ×: the ratio to plain Flower; dashed: the target. "
        f"flwr {versions['flwr']}, nvflare {versions['nvflare']} "
        f"(FLARE's own integration: flwr {versions['upstream_flwr']}), {machine['cores']} cores."
    )
    figure.supxlabel(textwrap.fill(footer, 66 * columns), fontsize=9, color="#444444")
    _save(figure, file)


def draw_growth(report: Mapping[str, Any], file: Path) -> None:
    """Write the plot of seconds and server CPU a round against the number of sites (PNG)."""
    content = report["growth"]
    figure = _figure(10.5, 4.9)
    figure.suptitle("A round of an app that does nothing, by sites", fontsize=15, fontweight="bold")
    for axes, (key, title) in zip(
        figure.subplots(1, 2),
        (("seconds_a_round", "seconds a round"), ("server_cpu_a_round", "CPU seconds of the server a round")),
        strict=True,
    ):
        for number, (name, values) in enumerate(content[key].items()):
            points = [(x, y) for x, y in zip(content["sites"], values, strict=True) if y is not None]
            label = NAMES[name]
            style = {"color": COLOUR[name], "marker": MARKERS[number], "linewidth": 2}
            axes.plot([x for x, _ in points], [y for _, y in points], label=label, **style)
            if points:
                where = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
                axes.annotate(f"{points[-1][1]:.2g}", points[-1], **where)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("sites")
        axes.set_xticks(content["sites"])
        axes.set_ylim(bottom=0)
        _plain_axes(axes)
    figure.axes[0].legend(frameon=False)
    lines = (textwrap.fill(line, 150) for line in content["text"].splitlines())
    figure.supxlabel("\n".join(lines), fontsize=9, color="#444444")
    _save(figure, file)


def _bars(axes: Any, name: str, content: Mapping[str, Any]) -> None:
    values = [content.get(setup) for setup in SETUPS]
    known = [value for value in values if value is not None]
    top = max(known, default=1.0)
    for x, (setup, value) in enumerate(zip(SETUPS, values, strict=True)):
        if value is None:
            failed = setup in content.get("failures", {})
            axes.text(x, 0, "failed" if failed else "not run", ha="center", va="bottom", color="#999999")
            continue
        axes.bar(x, value, color=COLOUR[setup], width=0.66)
        runs = content["runs"].get(setup, [])
        if len(runs) > 1:
            axes.vlines(x, min(runs), max(runs), color="black", linewidth=1.2)
        ratio = content.get(f"ratio_{setup}")
        text = f"{value:,.0f} MB" if content["unit"] == "MB" else f"{value:.3g} s"
        text += f"\n× {ratio:.2f}" if ratio is not None else ""
        highest = max([value, *runs])
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(x, highest + 0.03 * top, text, ha="center", va="bottom", fontsize=9, bbox=behind)
    plain = content.get(PLAIN)
    if plain is not None and name in TARGETS:
        known.append(plain * TARGETS[name])
        # Only over Flowerbed's own two set-ups.
        axes.hlines(known[-1], 1.55, 3.45, color="black", linestyle=(0, (4, 3)), linewidth=1)
    axes.set_title(TITLES[name], fontsize=11)
    axes.set_ylabel(content["unit"])
    axes.set_xticks(range(len(SETUPS)), [textwrap.fill(NAMES[setup], 12) for setup in SETUPS], fontsize=8)
    axes.set_xlim(-0.6, len(SETUPS) - 0.4)
    known += [value for runs in content["runs"].values() for value in runs]
    axes.set_ylim(0, max(known, default=1.0) * 1.25)
    _plain_axes(axes)


def _plain_axes(axes: Any) -> None:
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float) -> Any:
    figure = Figure(
        figsize=(width, height), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03)
    )
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
