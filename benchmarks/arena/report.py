"""Results of the arena as text and as JSON."""

import math
from collections.abc import Mapping

from .costs import Ratio, Table, growth
from .patterns import EXPLICIT, JOINT
from .quality import Training
from .tasks import TASKS


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with few digits; a dash for one that was not measured."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def cost_lines(title: str, costs: Table, at: int) -> list[str]:
    """Return seconds, then MB: a row for each pattern, by number of tokens, p of ~ N^p, ratios to joint at `at`."""
    sizes = sorted({size for line in costs.values() for size in line})
    others = [other for other in (JOINT, EXPLICIT) if at in costs[other]]
    lines = [title]
    for what, field in (("seconds", "seconds"), ("MB", "megabytes")):
        heads = "".join(f"{size // 1024}k".rjust(9) for size in sizes) + "p".rjust(7)
        ratios = "".join(f"{other} / it".rjust(20) for other in others)
        lines += ["", what.ljust(15) + heads + ratios + f"  at {at} tokens"]
        for name, line in costs.items():
            cells = [number(getattr(line[size], field) if size in line else None) for size in sizes]
            power = number(growth(line)[field == "megabytes"])
            against = "".join(versus(costs, other, name, at, field).rjust(20) for other in others)
            lines.append(name.ljust(15) + "".join(cell.rjust(9) for cell in cells) + power.rjust(7) + against)
    return [*lines, ""]


def versus(costs: Table, other: str, name: str, at: int, field: str) -> str:
    """Return the cost of the other pattern as a multiple of this one's."""
    if at not in costs[other] or at not in costs[name]:
        return "-"
    return number(getattr(costs[other][at], field) / getattr(costs[name][at], field))


def quality_lines(
    quality: Mapping[str, Mapping[str, float]], training: Training, weights: Mapping[str, int]
) -> list[str]:
    """Return a row for each pattern: its weights beside those of joint attention, its right answers in each task."""
    asks = {task.name: task.asks for task in TASKS}
    lines = [f"Right answers, mean of {training.seeds} seeds; half would be right by chance"]
    for name, lesson in training.lessons.items():
        grid = " x ".join(map(str, lesson.grid))
        lines.append(f"  {name}: {asks[name]} {lesson.steps} steps of {lesson.batch} films of {grid} tokens")
    lines += ["", f"{'':<15}{'weights':>9}{'of joint':>10}" + "".join(f"{task:>12}" for task in quality)]
    for name in next(iter(quality.values())):
        shares = "".join(f"{100 * quality[task][name]:>10.1f} %" for task in quality)
        lines.append(f"{name:<15}{weights[name]:>9}{weights[name] / weights[JOINT]:>10.2f}{shares}")
    return [*lines, ""]


def ratio_lines(ratio: Ratio) -> list[str]:
    """Return the ratio of factorised to joint attention, and the growth of factorised attention."""
    frames, size = (
        " and ".join(f"N^{power:.2f} in {what}" for power, what in zip(powers, ("time", "memory"), strict=True))
        for powers in (ratio.growth_by_frames, ratio.growth_by_frame_size)
    )
    return [
        f"Factorised against joint attention with its weights in memory: {ratio.times_faster:.1f} times faster, "
        f"{ratio.times_smaller:.1f} times less memory",
        f"({ratio.definition}).",
        f"Its growth from 2k to 16k tokens: {frames} as frames of 16 x 16 are added; "
        f"{size} as 16 frames become larger.",
        "",
    ]


def costs_as_json(costs: Table) -> dict[str, dict[str, dict[str, float]]]:
    """Return costs by pattern and number of tokens."""
    return {name: {str(size): vars(cost) for size, cost in line.items()} for name, line in costs.items()}
