"""Draw a job's curves: loss and accuracy by round, of every site and on average."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.common.text import one_line

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""The colours of Okabe and Ito, which colour-blind people can tell apart. The markers differ too."""
MARKERS = "osD^vP"
TITLE_LIMIT = 60
"""Characters of a name in a title."""
STARTS_MARKED = 8
"""Most marks on the axis where an app restarts its round numbers."""


@dataclass(frozen=True)
class Panel:
    """One metric: its names in evaluation replies, in training replies, and in the ServerApp's own
    evaluation, if there are any."""

    title: str
    evaluate: str | None
    train: str | None
    central: str | None = None


Place = tuple[int, int]
"""A round's position: the number of its start, and its own number."""


def draw(summary: Mapping[str, Any], path: Path) -> bool:
    """Write the picture to `path` (PNG). Without metrics, return False and write nothing."""
    # Imported here, since it takes a second, and most verbs draw nothing.
    import matplotlib as mpl

    panels = choose(summary["rounds"], summary.get("central", ()))
    if not panels:
        return False
    # Apps and sites choose the names: read no formula in them, and expect letters that the font lacks.
    with mpl.rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _draw(summary, panels, path)
    return True


def _draw(summary: Mapping[str, Any], panels: Sequence[Panel], path: Path) -> None:
    figure = blank(5.4 * len(panels) + 0.4, 5.0)
    figure.suptitle(one_line(f"{summary['app']}", TITLE_LIMIT), fontsize=15, fontweight="bold")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _plot(axes, panel, summary)
    one_legend(figure, all_axes, columns=8)
    which = f"job {summary['job_id']}\n{summary['status']}"
    figure.text(0.99, 0.985, which, ha="right", va="top", fontsize=7, color="#666666", linespacing=1.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def blank(width: float, height: float, h_pad: float = 0.1) -> Any:
    """Return an empty figure of this size in inches (130 dots each), with automatic layout."""
    # Imported here, since it takes a second, and most verbs draw nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=h_pad, wspace=0.04)
    figure = Figure(figsize=(width, height), dpi=130, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def one_legend(figure: Any, all_axes: Iterable[Any], columns: int) -> None:
    """Put one legend for all axes below them, each label once, in no more than this many columns."""
    handles: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = min(columns, len(handles))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)


def choose(rounds: Sequence[Mapping[str, Any]], central: Sequence[Mapping[str, Any]] = ()) -> list[Panel]:
    """Return the panels: the loss and the accuracy, or else the app's first metrics. Metrics of the
    ServerApp's evaluation alone get panels beside them."""
    names = [_names(rounds, "evaluate"), _names(rounds, "train"), _central_names(central)]
    panels = []
    for is_loss in (True, False):
        tests, trains, centrals = (
            sorted((n for n in of if ("loss" in n.lower()) == is_loss), key=lambda n: "acc" not in n.lower())
            for of in names
        )
        if main := next(iter(tests or trains), None):
            twin = next((n for n in trains if _base(n) == _base(main)), None)
            own = next((n for n in centrals if _base(n) == _base(main)), None)
            panels.append(Panel(_title(main), main if tests else None, twin, own))
            centrals = [] if own else centrals
        if centrals:
            panels.append(Panel(_title(centrals[0]), None, None, centrals[0]))
    return panels


def _central_names(central: Sequence[Mapping[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for entry in central:
        names.update(dict.fromkeys(n for n, value in entry["metrics"].items() if _is_number(value)))
    return list(names)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _names(rounds: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    names: dict[str, None] = {}
    for entry in rounds:
        for parts in entry["sites"].values():
            reply = parts.get(kind, {})
            names.update(dict.fromkeys(name for name in reply if _is_number(reply[name])))
    return [n for n in names if n != "num_examples"]


def _base(name: str) -> str:
    return re.sub(r"^(train|fit|eval|evaluate|val|test)[_-]", "", name.lower())


def _title(name: str) -> str:
    words = _base(name).replace("_", " ").replace("-", " ")
    return {"acc": "Accuracy"}.get(words, words[:1].upper() + words[1:])


def _plot(axes: Any, panel: Panel, summary: Mapping[str, Any]) -> None:
    rounds, sites, central = summary["rounds"], summary["sites"], summary.get("central", ())
    at = positions([*rounds, *central])
    kind, name = ("evaluate", panel.evaluate) if panel.evaluate else ("train", panel.train)
    few = len(sites) <= len(COLOURS)
    shown: list[float] = []
    style: dict[str, Any]
    for number, site in enumerate(sites):
        points = [(place(e), e["sites"].get(site, {}).get(kind, {}).get(name)) for e in rounds]
        style = {"color": "#9DB8CC", "linewidth": 1}
        label = f"each of {len(sites)} sites" if number == 0 else None
        if few:
            style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 6, "linewidth": 1.5}
            label = site
        shown += _line(axes, at, points, label=label, alpha=0.9, **style)
    # The summary's average, which may come from the run itself.
    key = name if kind == "evaluate" or name not in _names(rounds, "evaluate") else f"train_{name}"
    averages = [(place(entry), entry["metrics"].get(key)) for entry in rounds]
    style = {"color": "black", "linewidth": 2.8, "marker": ".", "markersize": 9, "zorder": 3}
    shown += _line(axes, at, averages, label="average", **style)
    style = {"color": "#777777", "linewidth": 1.5, "marker": "x", "markersize": 5}
    if panel.train and kind == "evaluate":
        key = f"train_{panel.train}" if panel.train == panel.evaluate else panel.train
        training = [(place(entry), entry["metrics"].get(key)) for entry in rounds]
        _line(axes, at, training, label="average while training", linestyle=(0, (4, 2)), **style)
    at_server = [(place(entry), entry["metrics"].get(panel.central)) for entry in central]
    style = {"color": "black", "linewidth": 1.5, "linestyle": ":", "marker": "+", "markersize": 8}
    shown += _line(axes, at, at_server, label="server", **style)
    percent = "acc" in (name or panel.central or "").lower() and all(0 <= value <= 1 for value in shown)
    labelled = averages if name else at_server
    last = next((point for point in reversed(labelled) if _is_number(point[1])), None)
    if last:
        text = f"{last[1]:.1%}" if percent else f"{last[1]:.3g}"
        point = at[last[0]], last[1]
        axes.annotate(text, point, xytext=(9, 0), textcoords="offset points", va="center", fontweight="bold")
    where = " while training" if name and kind == "train" else ", evaluated at the sites"
    axes.set_title(
        one_line(panel.title, TITLE_LIMIT) + (where if name else ", evaluated at the server"), fontsize=11
    )
    _lay_out(axes, at, percent=percent)


def place(entry: Mapping[str, Any]) -> Place:
    """Return the position of a round."""
    return entry.get("start", 1), entry["round"]


def positions(rounds: Iterable[Mapping[str, Any]]) -> dict[Place, int]:
    """Return each round's place on the axis. Where an app restarts its round numbers, one start follows the
    other, with room for a round 0 between them."""
    starts: dict[int, list[int]] = {}
    for start, number in sorted({place(entry) for entry in rounds}):
        starts.setdefault(start, []).append(number)
    found, before = {}, 0
    for start, numbers in starts.items():
        found.update({(start, number): before + number for number in numbers})
        before += numbers[-1] + 1
    return found


def _lay_out(axes: Any, at: Mapping[Place, int], *, percent: bool) -> None:
    """Set up the axes, their labels and ticks."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    begins = {start: at[start, number] for start, number in sorted(at, reverse=True) if number}
    low, high = min(at.values()), max(at.values())
    if len(begins) > 1:
        shown = sorted(begins)[:: -(-len(begins) // STARTS_MARKED)]
        axes.set_xticks([begins[start] for start in shown], [f"start {start}" for start in shown])
    else:
        ticks = MaxNLocator(nbins=10, integer=True, min_n_ticks=1).tick_values(low, high)
        axes.set_xticks([int(tick) for tick in ticks if tick in at.values()])
    axes.set_xlabel("round")
    # Leave room at the right for the last value's label.
    span = max(1, high - low)
    axes.set_xlim(low - 0.06 * span, high + 0.16 * span)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _line(
    axes: Any, at: Mapping[Place, int], points: Sequence[tuple[Place, Any]], **style: Any
) -> list[float]:
    """Plot the points that have a value, each start as a separate line, and return the values."""
    known = [(stands, value) for stands, value in points if _is_number(value)]
    xs: list[float] = []
    ys: list[float] = []
    for number, (stands, value) in enumerate(known):
        if number and stands[0] != known[number - 1][0][0]:
            xs.append(math.nan)
            ys.append(math.nan)
        xs.append(at[stands])
        ys.append(value)
    if known:
        axes.plot(xs, ys, **style)
    return [value for _, value in known]
