"""Draw a job's curves: loss and accuracy by round, of every site and on average."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.common.text import one_line

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of Okabe and Ito: told apart by colour-blind people too, and the markers differ besides."""
MARKERS = "osD^vP"
TITLE_LIMIT = 60
"""Characters of a name in a title."""
NOT_METRICS = frozenset({"num_examples", "error"})


@dataclass(frozen=True)
class Panel:
    """One metric: which name it has in evaluation replies and in training replies, if any."""

    title: str
    evaluate: str | None
    train: str | None


def draw(summary: Mapping[str, Any], path: Path) -> bool:
    """Write the picture to `path` (PNG). Returns False, and writes none, if there are no metrics."""
    # Here, not above: it takes a second, and most verbs draw nothing.
    import matplotlib as mpl

    rounds = summary["rounds"]
    panels = choose(rounds)
    if not panels:
        return False
    # Names are what an app or a site says: no formula, and perhaps in letters that the font lacks.
    with mpl.rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _draw(summary, panels, path)
    return True


def _draw(summary: Mapping[str, Any], panels: Sequence[Panel], path: Path) -> None:
    rounds = summary["rounds"]
    figure = blank(5.4 * len(panels) + 0.4, 5.0)
    figure.suptitle(one_line(f"{summary['app']}", TITLE_LIMIT), fontsize=15, fontweight="bold")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _plot(axes, panel, rounds, summary["sites"])
    one_legend(figure, all_axes, columns=8)
    which = f"job {summary['job_id']}\n{summary['status']}"
    figure.text(0.99, 0.985, which, ha="right", va="top", fontsize=7, color="#666666", linespacing=1.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def blank(width: float, height: float, h_pad: float = 0.1) -> Any:
    """An empty figure of so many inches (130 dots each), which lays itself out."""
    # Here, not above: it takes a second, and most verbs draw nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=h_pad, wspace=0.04)
    figure = Figure(figsize=(width, height), dpi=130, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def one_legend(figure: Any, all_axes: Iterable[Any], columns: int) -> None:
    """Put one legend below for all axes, each label once, in at most so many columns."""
    handles: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = min(columns, len(handles))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)


def choose(rounds: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The panels: the loss and the accuracy, or what else the app reports, first come first."""
    evaluated, trained = _names(rounds, "evaluate"), _names(rounds, "train")
    panels = []
    for is_loss in (True, False):
        tests = [n for n in evaluated if ("loss" in n.lower()) == is_loss]
        trains = [n for n in trained if ("loss" in n.lower()) == is_loss]
        tests.sort(key=lambda n: "acc" not in n.lower())
        trains.sort(key=lambda n: "acc" not in n.lower())
        if tests:
            twin = next((n for n in trains if _base(n) == _base(tests[0])), None)
            panels.append(Panel(_title(tests[0]), tests[0], twin))
        elif trains:
            panels.append(Panel(_title(trains[0]), None, trains[0]))
    return panels


def _names(rounds: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    names: dict[str, None] = {}
    for entry in rounds:
        for parts in entry["sites"].values():
            reply = parts.get(kind, {})
            names.update(dict.fromkeys(name for name in reply if isinstance(reply[name], int | float)))
    return [n for n in names if n not in NOT_METRICS]


def _base(name: str) -> str:
    return re.sub(r"^(train|fit|eval|evaluate|val|test)[_-]", "", name.lower())


def _title(name: str) -> str:
    words = _base(name).replace("_", " ").replace("-", " ")
    return {"acc": "Accuracy"}.get(words, words[:1].upper() + words[1:])


def _plot(axes: Any, panel: Panel, rounds: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    kind, name = ("evaluate", panel.evaluate) if panel.evaluate else ("train", panel.train)
    few = len(sites) <= len(COLOURS)
    shown: list[float] = []
    style: dict[str, Any]
    for number, site in enumerate(sites):
        points = [(entry["round"], entry["sites"].get(site, {}).get(kind, {}).get(name)) for entry in rounds]
        style = {"color": "#9DB8CC", "linewidth": 1}
        label = f"each of {len(sites)} sites" if number == 0 else None
        if few:
            style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 6, "linewidth": 1.5}
            label = site
        shown += _line(axes, points, label=label, alpha=0.9, **style)
    # The average that the summary tells, which the run itself may have given.
    key = name if kind == "evaluate" or name not in _names(rounds, "evaluate") else f"train_{name}"
    averages = [(entry["round"], entry["metrics"].get(key)) for entry in rounds]
    style = {"color": "black", "linewidth": 2.8, "marker": ".", "markersize": 9, "zorder": 3}
    shown += _line(axes, averages, label="average", **style)
    if panel.train and kind == "evaluate":
        key = f"train_{panel.train}" if panel.train == panel.evaluate else panel.train
        training = [(entry["round"], entry["metrics"].get(key)) for entry in rounds]
        style = {
            "color": "#777777",
            "linewidth": 1.5,
            "linestyle": (0, (4, 2)),
            "marker": "x",
            "markersize": 5,
        }
        shown += _line(axes, training, label="average while training", **style)
    percent = "acc" in (name or "").lower() and all(0 <= value <= 1 for value in shown)
    last = next((point for point in reversed(averages) if point[1] is not None), None)
    if last:
        text = f"{last[1]:.1%}" if percent else f"{last[1]:.3g}"
        axes.annotate(text, last, xytext=(9, 0), textcoords="offset points", va="center", fontweight="bold")
    where = ", evaluated at the sites" if kind == "evaluate" else " while training"
    axes.set_title(one_line(panel.title, TITLE_LIMIT) + where, fontsize=11)
    axes.set_xlabel("round")
    numbers = [entry["round"] for entry in rounds]
    ticks = MaxNLocator(nbins=10, integer=True, min_n_ticks=1).tick_values(min(numbers), max(numbers))
    axes.set_xticks([int(tick) for tick in ticks if tick in numbers])
    # Room at the right for the last value's label.
    span = max(1, max(numbers) - min(numbers))
    axes.set_xlim(min(numbers) - 0.06 * span, max(numbers) + 0.16 * span)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _line(axes: Any, points: Sequence[tuple[int, Any]], **style: Any) -> list[float]:
    """Plot the points that have a value; returns the values."""
    known = [(x, y) for x, y in points if isinstance(y, int | float)]
    if known:
        axes.plot([x for x, _ in known], [y for _, y in known], **style)
    return [y for _, y in known]
