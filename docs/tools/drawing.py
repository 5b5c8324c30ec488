"""Layered drawing of a graph without circles as SVG: boxes on levels, every arrow downwards.

The method of Sugiyama et al. 1981: an arrow that passes a level gets a place of its own there, places of a level are
ordered so that few arrows cross, and each is moved towards the places that it is joined to.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean

import numpy as np
from scipy.optimize import isotonic_regression

from docs.tools.imports import Graph, levels

BOX_WIDTH, BOX_HEIGHT = 124, 34  # pixels
GAP, LEVEL_HEIGHT, MARGIN, LANE_WIDTH = 26, 92, 24, 14
SWEEPS = 24

Place = tuple[str, ...]  # (name,) of a box; (from, to, level) of an arrow that passes a level


@dataclass
class Layout:
    """Places on each level from the lowest up, joined to those of the next level below, and their centres."""

    rows: list[list[Place]]
    below: dict[Place, list[Place]]
    x: dict[Place, float] = field(default_factory=dict)

    def above(self) -> dict[Place, list[Place]]:
        """Return for each place those of the level above that are joined to it."""
        result: dict[Place, list[Place]] = {place: [] for row in self.rows for place in row}
        for upper, lowers in self.below.items():
            for lower in lowers:
                result[lower].append(upper)
        return result


def svg(graph: Graph, highlighted: Collection[str], title: str) -> str:
    """Return the drawing; names in `highlighted` have boxes of another colour."""
    layout = arranged(graph)
    width = max(layout.x.values()) + BOX_WIDTH / 2 + MARGIN
    height = len(layout.rows) * LEVEL_HEIGHT - (LEVEL_HEIGHT - BOX_HEIGHT) + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img"'
        ' font-family="system-ui, sans-serif" font-size="15">',
        f"<title>{title}</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#5b6b7a"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="#fcfcfb"/>',
        *_arrows(layout, height),
        *_boxes(layout, height, highlighted),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def arranged(graph: Graph) -> Layout:
    """Return the layout with few crossings."""
    layout = _places(graph)
    above = layout.above()
    best, fewest = [list(row) for row in layout.rows], crossings(layout)
    for sweep in range(SWEEPS):
        upwards = sweep % 2 == 0
        for row in layout.rows if upwards else layout.rows[::-1]:
            _order(row, layout, layout.below if upwards else above)
        if (count := crossings(layout)) < fewest:
            best, fewest = [list(row) for row in layout.rows], count
    layout.rows = best
    _move(layout, above)
    return layout


def crossings(layout: Layout) -> int:
    """Return how many pairs of arrows cross between neighbouring levels."""
    total = 0
    for lower, upper in pairwise(layout.rows):
        ends = [(i, lower.index(place)) for i, one in enumerate(upper) for place in layout.below[one]]
        total += sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for i, a in enumerate(ends) for b in ends[:i])
    return total


def spread(wanted: Sequence[float], distances: Sequence[float]) -> list[float]:
    """Return the positions nearest to those wanted, by least squares, that keep their order and their distances.

    `distances` are the least ones between neighbours.
    """
    offsets = np.cumsum([0.0, *distances])
    positions: list[float] = (isotonic_regression(np.asarray(wanted) - offsets).x + offsets).tolist()
    return positions


def _places(graph: Graph) -> Layout:
    """Return boxes and passing arrows on their levels, in the order of their names."""
    level_of = levels(graph)
    rows: list[list[Place]] = [[] for _ in range(max(level_of.values()) + 1)]
    below: dict[Place, list[Place]] = {}
    for name in sorted(graph):
        rows[level_of[name]].append((name,))
        below.setdefault((name,), [])
    for name in sorted(graph):
        for other in sorted(graph[name]):
            upper: Place = (name,)
            for level in range(level_of[name] - 1, level_of[other], -1):
                lane = (name, other, str(level))
                rows[level].append(lane)
                below[upper].append(lane)
                upper, below[lane] = lane, []
            below[upper].append((other,))
    return Layout(rows, below)


def _order(row: list[Place], layout: Layout, joined: dict[Place, list[Place]]) -> None:
    """Sort a level by the mean position of what its places are joined to; a place without any keeps its own."""
    position = {place: i / len(other) for other in layout.rows for i, place in enumerate(other)}
    row.sort(key=lambda place: mean(position[one] for one in joined[place]) if joined[place] else position[place])


def _move(layout: Layout, above: dict[Place, list[Place]]) -> None:
    """Set the centres: side by side at first, then again and again towards the mean of what they are joined to."""
    for row in layout.rows:
        layout.x |= dict(zip(row, spread([0.0] * len(row), _distances(row)), strict=True))
    for sweep in range(2 * SWEEPS):
        for row in layout.rows if sweep % 2 else layout.rows[::-1]:
            wanted = [mean(layout.x[one] for one in [*layout.below[place], *above[place]]) for place in row]
            layout.x |= dict(zip(row, spread(wanted, _distances(row)), strict=True))
    left = min(layout.x[place] - _width(place) / 2 for row in layout.rows for place in row)
    layout.x = {place: centre - left + MARGIN for place, centre in layout.x.items()}


def _width(place: Place) -> float:
    return BOX_WIDTH if len(place) == 1 else LANE_WIDTH


def _distances(row: Sequence[Place]) -> list[float]:
    return [(_width(a) + _width(b)) / 2 + GAP for a, b in pairwise(row)]


def _arrows(layout: Layout, height: float) -> list[str]:
    """Return the arrows as paths from the lower edge of a box, through places of their own, to the upper edge."""
    starts = {box: sorted(layout.below[box], key=lambda one: layout.x[one]) for box in layout.below if len(box) == 1}
    ends = {box: sorted(joined, key=lambda one: layout.x[one]) for box, joined in layout.above().items()}
    style = 'fill="none" stroke="#5b6b7a" stroke-width="1.4" marker-end="url(#head)"'
    lines = []
    for box, firsts in starts.items():
        for first in firsts:
            places = _passed(box, first, layout)
            centres = [layout.x[place] for place in places]
            centres[0] += _port(firsts.index(first), len(firsts))
            centres[-1] += _port(ends[places[-1]].index(places[-2]), len(ends[places[-1]]))
            level = next(level for level, row in enumerate(layout.rows) if box in row)
            lines.append(f'<path d="{_curve(centres, _top(level, height))}" {style}/>')
    return lines


def _passed(box: Place, first: Place, layout: Layout) -> list[Place]:
    """Return the places of an arrow from a box on, up to the next box."""
    places = [box, first]
    while len(places[-1]) > 1:
        places += layout.below[places[-1]]
    return places


def _curve(centres: Sequence[float], top: float) -> str:
    """Return the path of an arrow through these centres, a level each, from a box whose upper edge is at `top`."""
    path = f"M{centres[0]:.0f} {top + BOX_HEIGHT:.0f}"
    for level, (x, next_x) in enumerate(pairwise(centres), start=1):
        y = top + level * LEVEL_HEIGHT  # upper edge of the next level
        bend = y - (LEVEL_HEIGHT - BOX_HEIGHT) / 2
        path += f" C{x:.0f} {bend:.0f} {next_x:.0f} {bend:.0f} {next_x:.0f} {y:.0f}"
        if level < len(centres) - 1:
            path += f" V{y + BOX_HEIGHT:.0f}"
    return path


def _boxes(layout: Layout, height: float, highlighted: Collection[str]) -> list[str]:
    lines = []
    for level, row in enumerate(layout.rows):
        for place in row:
            if len(place) > 1:
                continue
            x, y = layout.x[place], _top(level, height)
            fill, stroke = ("#fdecc8", "#b7791f") if place[0] in highlighted else ("#dcecf7", "#2b6a99")
            lines.append(
                f'<rect x="{x - BOX_WIDTH / 2:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"'
                f' fill="{fill}" stroke="{stroke}"/>'
                f'<text x="{x:.0f}" y="{y + 22:.0f}" text-anchor="middle" fill="#1a2430">{place[0]}</text>'
            )
    return lines


def _port(index: int, count: int) -> float:
    """Return how far from the middle of a box its arrow of this index starts or ends."""
    return (index - (count - 1) / 2) * min(22, (BOX_WIDTH - 20) / max(1, count - 1))


def _top(level: int, height: float) -> float:
    return height - MARGIN - BOX_HEIGHT - level * LEVEL_HEIGHT
