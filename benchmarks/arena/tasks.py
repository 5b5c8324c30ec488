"""Questions about short films of rain and no rain whose answers are known; each asks for one thing of attention.

Each generator returns films and the answers at some of their tokens, drawn from a seed; each oracle returns what the
same film implies, worked out another way, from the film alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from torch import Tensor

Field = Float[np.ndarray, "t h w"]


class Questions(NamedTuple):
    """Films and their answers: 1 yes, 0 no, NaN where there is no question."""

    films: Float[Tensor, "b t h w c"]
    answers: Float[Tensor, "b t h w"]


@dataclass(frozen=True)
class Task:
    """Kind of question on a grid of tokens (t, h, w)."""

    name: str
    asks: str
    make: Callable[[int, tuple[int, int, int], int], Questions]  # (count, grid, seed)
    oracle: Callable[[Float[Tensor, "b t h w c"]], Float[Tensor, "b t h w"]]
    channels: int
    grid: tuple[int, int, int]  # 1024 tokens


LAG = 2  # frames
WIND = (3, 5)  # cells down and to the right from one frame to the next
INNER, OUTER = 2, 3  # radii of boxes: 25 of 49 cells, so chance is 51 %
APART = (4, 12)  # cells between two marked points


def echoes(draws: np.random.Generator, shape: tuple[int, ...], smooth: float) -> Float[np.ndarray, "... h w"]:
    """Return fields of 1 (rain) in about half of the cells and -1 in the others, in patches of some `smooth` cells.

    Not in exactly half: what is near would tell of what is far.
    """
    sigma = (*[0.0] * (len(shape) - 2), smooth, smooth)
    noise = ndimage.gaussian_filter(draws.standard_normal(shape), sigma, mode="wrap")
    return np.where(noise > 0, 1.0, -1.0).astype(np.float32)


def questions(films: list[Float[np.ndarray, "t h w c"]], answers: list[Field]) -> Questions:
    """Return films and answers as tensors."""
    return Questions(*(torch.from_numpy(np.stack(arrays).astype(np.float32)) for arrays in (films, answers)))


def delayed_recall(count: int, grid: tuple[int, int, int], seed: int) -> Questions:
    """Return independent frames, and the frame `LAG` steps ago as the answer."""
    if grid[0] <= LAG:
        raise ValueError(f"there must be more than {LAG} frames to recall, got {grid[0]}")
    films = echoes(np.random.default_rng(seed), (count, *grid), 1.0)
    answers = np.full_like(films, np.nan)
    answers[:, LAG:] = films[:, :-LAG] > 0
    return questions(list(films[..., None]), list(answers))


def recalled(films: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t h w"]:
    """Return the frame `LAG` steps ago, cyclically."""
    return (films[..., 0] > 0).float().roll(LAG, dims=1)


def advected_pattern(count: int, grid: tuple[int, int, int], seed: int) -> Questions:
    """Return one frame, then blank ones, and the frame moved by a steady `WIND` at the last; no question at inflow."""
    t, h, w = grid
    down, right = (speed * (t - 1) for speed in WIND)
    if down >= h or right >= w:
        raise ValueError(f"in {t} frames the wind crosses {down} x {right} cells, more than the grid of {h} x {w}")
    films, answers = np.zeros((count, t, h, w, 1), np.float32), np.full((count, t, h, w), np.nan, np.float32)
    films[:, 0, ..., 0] = echoes(np.random.default_rng(seed), (count, h, w), 1.5)
    answers[:, -1, down:, right:] = films[:, 0, : h - down, : w - right, 0] > 0
    return questions(list(films), list(answers))


def advected(films: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t h w"]:
    """Return the first frame moved on by the wind, one step after another."""
    field = films[:, 0, ..., 0]
    frames = [field]
    for _ in range(films.shape[1] - 1):
        field = field.roll(WIND, dims=(-2, -1))
        frames.append(field)
    return (torch.stack(frames, dim=1) > 0).float()


def which_first(count: int, grid: tuple[int, int, int], seed: int) -> Questions:
    """Return two frames of a field that moves with the `WIND`, in either order; the answer: the first is the earlier.

    Asked where it rains in the first frame. Every field comes twice there, followed by where the wind takes it or by
    where it came from: neither the field nor any one cell gives the answer away.
    """
    draws = np.random.default_rng(seed)
    films, answers = np.zeros((count, *grid, 1), np.float32), np.full((count, *grid), np.nan, np.float32)
    for k in range(0, count, 2):
        before, field, after = _moving(draws, grid[1:])
        for film, answer, second, earlier in zip(films[k:], answers[k:], (after, before), (1.0, 0.0), strict=False):
            film[0, ..., 0], film[1, ..., 0] = field, second
            answer[0][field > 0] = earlier
    return questions(list(films), list(answers))


def _moving(draws: np.random.Generator, shape: tuple[int, ...]) -> list[Float[np.ndarray, "h w"]]:
    """Return a field one step earlier, now and one step later; drawn again where earlier and later are the same."""
    while True:
        field = echoes(draws, shape, 1.0)
        before, after = (np.roll(field, (step * WIND[0], step * WIND[1]), axis=(0, 1)) for step in (-1, 1))
        if (before != after).any() and (field > 0).any():
            return [before, field, after]


def came_first(films: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t h w"]:
    """1 where moving the first frame by the wind gives the second better than the reverse does."""
    one, two = films[:, 0, ..., 0], films[:, 1, ..., 0]
    misses = [(a.roll(WIND, dims=(-2, -1)) - b).abs().sum(dim=(-2, -1)) for a, b in ((one, two), (two, one))]
    return (misses[0] < misses[1]).float()[:, None, None, None].expand(films.shape[:-1])


def connected_storms(count: int, grid: tuple[int, int, int], seed: int) -> Questions:
    """Return echoes and two marked points; the answer, at both points in the first frame: one echo (4 neighbours).

    Every field comes twice, with one point the same and the other as far away but in the same echo or another one:
    neither field nor distance gives the answer away.
    """
    draws = np.random.default_rng(seed)
    films: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    while len(films) < count:
        field = echoes(draws, grid[1:], 1.5)
        labels, _ = ndimage.label(field > 0)
        for answer, points in _twin_points(labels, draws):
            film, asked = np.zeros((*grid, 2), np.float32), np.full(grid, np.nan, np.float32)
            film[0, ..., 0] = field
            for row, column in points:
                film[0, row, column, 1], asked[0, row, column] = 1.0, answer
            films.append(film)
            answers.append(asked)
    return questions(films[:count], answers[:count])


def _twin_points(labels: np.ndarray, draws: np.random.Generator) -> list[tuple[float, list[tuple[int, int]]]]:
    """Return points in one echo and points in two, first point and distance in common; empty without any."""
    cells = np.argwhere(labels > 0)
    first = cells[draws.integers(len(cells))]
    distance = np.abs(cells - first).sum(axis=1)
    same = labels[tuple(cells.T)] == labels[tuple(first)]
    near = (distance >= APART[0]) & (distance <= APART[1])
    common = np.intersect1d(distance[near & same], distance[near & ~same])
    if not len(common):
        return []
    at = distance == draws.choice(common)
    return [
        (float(answer), [tuple(first), tuple(draws.choice(cells[at & kind]))])
        for answer, kind in ((1, same), (0, ~same))
    ]


def connected(films: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t h w"]:
    """1 where the echo that a first marked point fills, spreading cell by cell, reaches the second."""
    field, marks = films[:, 0, ..., 0] > 0, films[:, 0, ..., 1] > 0
    flat = rearrange(marks, "b h w -> b (h w)").float()
    seed = torch.zeros_like(flat).scatter_(1, flat.argmax(dim=1, keepdim=True), 1.0)
    filled = rearrange(seed, "b (h w) -> b h w", h=field.shape[1]).bool()
    for _ in range(field[0].numel()):
        spread = filled.clone()
        spread[:, 1:] |= filled[:, :-1]
        spread[:, :-1] |= filled[:, 1:]
        spread[..., 1:] |= filled[..., :-1]
        spread[..., :-1] |= filled[..., 1:]
        spread &= field
        if torch.equal(spread, filled):
            break
        filled = spread
    answer = (~marks | filled).all(dim=-1).all(dim=-1)
    return answer.float()[:, None, None, None].expand(films.shape[:-1])


def nested_accumulation(count: int, grid: tuple[int, int, int], seed: int) -> Questions:
    """Return rain in every frame; the answer: the wettest cell of the box around a cell is also in the box within it.

    Asked in the last frame, where the outer box fits on the grid.
    """
    rain = np.random.default_rng(seed).gamma(0.5, 1.0, (count, *grid)).astype(np.float32)
    total = rain.sum(axis=1)
    answers = np.full_like(rain, np.nan)
    outer, inner = (sliding_window_view(total, (2 * r + 1, 2 * r + 1), (1, 2)).max((-2, -1)) for r in (OUTER, INNER))
    trim = OUTER - INNER
    answers[:, -1, OUTER:-OUTER, OUTER:-OUTER] = inner[:, trim:-trim, trim:-trim] == outer
    return questions(list(rain[..., None]), list(answers))


def wettest_within(films: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t h w"]:
    """1 where maximum filters of the sum over frames, the inner one and the outer one, agree."""
    total = films[..., 0].numpy().sum(axis=1)
    inner, outer = (ndimage.maximum_filter(total, (0, 2 * r + 1, 2 * r + 1)) for r in (INNER, OUTER))
    answer = torch.from_numpy((inner == outer).astype(np.float32))
    return answer[:, None].expand(films.shape[:-1])


TASKS = (
    Task("advected", "what comes from far upwind?", advected_pattern, advected, 1, (2, 16, 32)),
    Task("recall", f"what was here {LAG} frames ago?", delayed_recall, recalled, 1, (4, 16, 16)),
    Task("first", "which of two frames is the earlier?", which_first, came_first, 1, (2, 16, 32)),
    Task("connected", "are two points in one echo?", connected_storms, connected, 2, (1, 32, 32)),
    Task("nested", "is the wettest cell close by?", nested_accumulation, wettest_within, 1, (4, 16, 16)),
)
