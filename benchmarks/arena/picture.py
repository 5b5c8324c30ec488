"""Figure of the arena: skill of patterns, from the cheapest to the most expensive, and growth of their cost."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.optimize import isotonic_regression

from .costs import Table
from .patterns import EXPLICIT, JOINT
from .quality import Lesson, Training
from .tasks import TASKS

INK, SOFT, FAINT = "#222222", "#555555", "#dddddd"
FAMILIES = {  # Okabe & Ito (2008): distinct with every common colour blindness
    "over all tokens, exactly": ("#000000", (EXPLICIT, JOINT)),
    "along axes": ("#d55e00", ("factorised", "divided", "axial")),
    "near or sampled tokens": ("#0072b2", ("window", "deformable")),
    "fewer keys or features": ("#009e73", ("linear", "performer", "linformer", "nystrom", "pooled")),
    "by hashes": ("#cc79a7", ("reformer", "clustered")),
}
COLOURS = {name: colour for colour, names in FAMILIES.values() for name in names}
MARKERS = "os^Dv"
SHOWN_AT = 4096  # tokens


def draw(
    costs: Table, quality: Mapping[str, Mapping[str, float]], training: Training, machine: str, path: Path
) -> None:
    """Write the figure as a PNG: a panel for each task, and one for the growth of costs."""
    figure = Figure(figsize=(2.1 * len(quality) + 8.2, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    *panels, growth = figure.subplots(1, len(quality) + 1, width_ratios=[*[1.0] * len(quality), 3.3])
    order = sorted(next(iter(quality.values())), key=lambda name: -seconds_shown(costs, name))
    for axes, (task, right) in zip(panels, quality.items(), strict=True):
        draw_quality(axes, {name: right[name] for name in order}, task, training.lessons[task])
    draw_names(panels[0], order, costs)
    draw_growth(growth, costs)
    for axes in (*panels, growth):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="both" if axes is growth else "x", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
    for family, (colour, _) in FAMILIES.items():
        growth.plot([], [], "o", color=colour, label=family)
    figure.legend(loc="outside lower center", ncols=len(FAMILIES), frameon=False, labelcolor=INK)
    figure.suptitle(f"Attention patterns in one network of four sub-layers, d 64; {machine}", color=SOFT, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def seconds_shown(costs: Table, name: str) -> float:
    """Return the time of a step of the size that patterns are sorted by; infinite where it was not measured."""
    return costs[name][SHOWN_AT].seconds if SHOWN_AT in costs[name] else math.inf


def draw_quality(axes: Axes, right: Mapping[str, float], task: str, lesson: Lesson) -> None:
    """Draw a bar from chance to the right answers of each pattern, the first at the bottom."""
    asks = next(it.asks for it in TASKS if it.name == task)
    for row, (name, share) in enumerate(right.items()):
        axes.barh(row, 100 * share - 50, 0.62, 50, color=COLOURS[name])
        axes.text(max(100 * share, 50) + 1.5, row, f"{100 * share:.0f}", color=COLOURS[name], va="center", fontsize=9)
    axes.axvline(50, color=SOFT, linewidth=1)
    axes.set_xlim(46, 110)
    axes.set_ylim(-0.6, len(right) - 0.4)
    axes.set_xticks([50, 75, 100], ["chance", "75", "100 %"])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(colors=SOFT, labelsize=9)
    axes.set_title("\n".join(wrap(f"{task}: {asks}", 22)), loc="left", color=INK, fontsize=10)
    grid = " x ".join(map(str, lesson.grid))
    axes.set_xlabel(f"{grid} tokens,\n{lesson.steps} steps of {lesson.batch} films", color=SOFT, fontsize=9)


def draw_names(axes: Axes, order: Sequence[str], costs: Table) -> None:
    """Return the names of the rows, the cheapest pattern at the top, with the time of a step."""
    taken = [seconds_shown(costs, name) for name in order]
    labels = [f"{name}  {time:.2g} s" if math.isfinite(time) else name for name, time in zip(order, taken, strict=True)]
    axes.set_yticks(range(len(order)), labels)
    for name, label in zip(order, axes.get_yticklabels(), strict=True):
        label.set_color(COLOURS[name])
    axes.tick_params(axis="y", length=0, labelsize=10)
    axes.set_ylabel(f"from dear (below) to cheap: seconds of a step at {SHOWN_AT} tokens", color=SOFT, fontsize=9)


def draw_growth(axes: Axes, costs: Table) -> None:
    """Draw time against tokens, each line named at its end."""
    ends = {}
    for name, line in costs.items():
        dashed = "--" if name == EXPLICIT else "-"
        times = [cost.seconds for cost in line.values()]
        axes.plot(list(line), times, dashed + marker_of(name), color=COLOURS[name], markersize=4, linewidth=1.5)
        ends[name] = max(line), times[-1]
    sizes = sorted({size for line in costs.values() for size in line})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(sizes[0] / 1.1, sizes[-1] * 2.6)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    low, high = axes.get_ylim()
    step = math.log(high / low) / 24
    for size in {size for size, _ in ends.values()}:
        names = sorted((name for name in ends if ends[name][0] == size), key=lambda name: ends[name][1])
        for name, height in zip(names, apart([math.log(ends[name][1]) for name in names], step), strict=True):
            label = axes.text(1.07 * size, math.exp(height), name, color=COLOURS[name], va="center", fontsize=9)
            label.set_path_effects([withStroke(linewidth=3, foreground="white")])
    axes.set_xlabel("tokens: 16 x 16 a frame, more and more frames", color=INK)
    axes.set_ylabel("seconds of a training step", color=INK)
    axes.tick_params(colors=SOFT)
    axes.set_title("The same network on longer films", loc="left", color=INK, fontsize=10)


def marker_of(name: str) -> str:
    """Draw one marker for each pattern of a family."""
    names = next(names for _, names in FAMILIES.values() if name in names)
    return MARKERS[names.index(name)]


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights in rising order, moved as little as possible (least squares) to be at least `gap` apart."""
    offsets = gap * np.arange(len(heights))
    moved: list[float] = (isotonic_regression(np.asarray(heights) - offsets).x + offsets).tolist()
    return moved
