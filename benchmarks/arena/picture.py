"""The picture of the arena: what patterns learn against what they cost, and how their cost grows."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from .costs import Table
from .patterns import EXPLICIT, JOINT

INK, SOFT, FAINT = "#222222", "#555555", "#dddddd"
FAMILIES = {  # Okabe & Ito (2008): told apart with every common colour blindness
    "over all tokens, exactly": ("#000000", (EXPLICIT, JOINT)),
    "along axes": ("#d55e00", ("factorised", "divided", "axial")),
    "near or sampled tokens": ("#0072b2", ("window", "deformable")),
    "fewer keys or features": ("#009e73", ("linear", "performer", "linformer", "nystrom", "pooled")),
    "by hashes": ("#cc79a7", ("reformer", "clustered")),
}
COLOURS = {name: colour for colour, names in FAMILIES.values() for name in names}
MARKERS = "os^Dv"
SHOWN_AT = 4096  # tokens


def draw(costs: Table, quality: Mapping[str, float], trained_on: str, machine: str, path: Path) -> None:
    """Write the picture as a PNG."""
    figure = Figure(figsize=(13.0, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_quality(left, costs, quality, trained_on)
    draw_growth(right, costs)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(colors=SOFT)
    for family, (colour, _) in FAMILIES.items():
        left.plot([], [], "o", color=colour, label=family)
    figure.legend(loc="outside lower center", ncols=len(FAMILIES), frameon=False, labelcolor=INK)
    figure.suptitle(f"Attention patterns in one network of four sub-layers, d 64; {machine}", color=SOFT, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_quality(axes: Axes, costs: Table, quality: Mapping[str, float], trained_on: str) -> None:
    """Right answers against the time of a training step."""
    known = {name: costs[name][SHOWN_AT].seconds for name in quality if SHOWN_AT in costs[name]}
    order = sorted(known, key=lambda name: quality[name])
    heights = apart([100 * quality[name] for name in order], 2.6)
    for name, height in zip(order, heights, strict=True):
        axes.plot(known[name], 100 * quality[name], marker_of(name), color=COLOURS[name], markersize=8)
        axes.annotate(
            name,
            (known[name], 100 * quality[name]),
            (1.09 * known[name], height),
            color=COLOURS[name],
            va="center",
            fontsize=9,
        )
    axes.axhline(50, color=SOFT, linewidth=1, linestyle=(0, (4, 2)))
    axes.text(
        0.995, 50.4, "chance", transform=axes.get_yaxis_transform(), ha="right", va="bottom", color=SOFT, fontsize=9
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = min(known.values()), max(known.values())
    axes.set_xlim(low / 1.25, high * (high / low) ** 0.25)
    axes.set_ylim(min(46, heights[0] - 2), max(103, heights[-1] + 2))
    axes.set_xlabel(f"seconds of a training step at {SHOWN_AT} tokens", color=INK)
    axes.set_ylabel("right answers, %", color=INK)
    axes.set_title(trained_on, loc="left", color=INK, fontsize=10)


def draw_growth(axes: Axes, costs: Table) -> None:
    """Time against tokens, each line named at its end."""
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
            axes.text(1.07 * size, math.exp(height), name, color=COLOURS[name], va="center", fontsize=9)
    axes.set_xlabel("tokens: 16 x 16 a frame, more and more frames", color=INK)
    axes.set_ylabel("seconds of a training step", color=INK)
    axes.set_title("The same network on longer films", loc="left", color=INK, fontsize=10)


def marker_of(name: str) -> str:
    """One marker for each pattern of a family."""
    names = next(names for _, names in FAMILIES.values() if name in names)
    return MARKERS[names.index(name)]


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights in rising order, moved as little as possible (least squares) to be at least `gap` apart."""
    groups: list[list[float]] = []  # of what is left of heights that are to be `gap` apart
    for k, height in enumerate(heights):
        groups.append([height - k * gap])
        while len(groups) > 1 and mean(groups[-2]) > mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    level = [mean(group) for group in groups for _ in group]
    return [height + k * gap for k, height in enumerate(level)]
