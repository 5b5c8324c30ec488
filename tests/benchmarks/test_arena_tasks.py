"""Questions of the arena: balanced, answered by their oracles, the same for the same seed."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from benchmarks.arena.quality import SHORT
from benchmarks.arena.tasks import (
    LAG,
    TASKS,
    WIND,
    Task,
    advected_pattern,
    connected_storms,
    delayed_recall,
    which_first,
)

every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
SIZES = [(task, task.grid) for task in TASKS] + [(task, SHORT[task.name].grid) for task in TASKS if task.name in SHORT]
every_size = pytest.mark.parametrize(("task", "grid"), SIZES, ids=lambda it: getattr(it, "name", str(it)))
COUNT = 200


@every_size
def test_half_of_the_answers_are_yes(task: Task, grid: tuple[int, int, int]) -> None:
    answers = task.make(COUNT, grid, 11).answers
    assert abs(float(answers.nanmean()) - 0.5) <= 0.02


@every_size
def test_its_oracle_knows_every_answer(task: Task, grid: tuple[int, int, int]) -> None:
    films, answers = task.make(COUNT, grid, 12)
    asked = answers.isfinite()
    assert asked.flatten(1).any(dim=1).all()
    assert torch.equal(task.oracle(films)[asked], answers[asked])


@every_task
def test_shapes_and_seeds(task: Task) -> None:
    films, answers = task.make(5, task.grid, 13)
    assert films.shape == (5, *task.grid, task.channels)
    assert films.isfinite().all()
    assert answers.shape == (5, *task.grid)
    again = task.make(5, task.grid, 13)
    assert torch.equal(again.films, films)
    assert torch.equal(again.answers.nan_to_num(9.0), answers.nan_to_num(9.0))
    assert not torch.equal(task.make(5, task.grid, 14).films, films)


@every_task
def test_it_has_a_thousand_tokens(task: Task) -> None:
    assert np.prod(task.grid) == 1024


def test_recall_by_hand() -> None:
    films, answers = delayed_recall(2, (5, 3, 7), 3)
    assert answers[:, :LAG].isnan().all()
    assert torch.equal(answers[:, LAG:], (films[:, :-LAG, ..., 0] > 0).float())


def test_the_wind_carries_rain_down_and_to_the_right() -> None:
    films, answers = advected_pattern(1, (2, 11, 13), 3)
    down, right = WIND
    assert answers[0, 1, down, right] == float(films[0, 0, 0, 0, 0] > 0)
    assert answers[0, 1, 10, 12] == float(films[0, 0, 10 - down, 12 - right, 0] > 0)
    assert answers[0, 1, :down].isnan().all()
    assert answers[0, 1, :, :right].isnan().all()
    assert not films[:, 1:].any()


def test_a_grid_that_the_wind_crosses_is_refused() -> None:
    with pytest.raises(ValueError, match="grid of 3 x 13"):
        advected_pattern(1, (2, WIND[0], 13), 3)


def test_too_few_frames_to_recall_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 2 frames to recall, got 2"):
        delayed_recall(1, (2, 3, 5), 3)


def test_a_field_is_followed_by_where_the_wind_takes_it_and_by_where_it_came_from() -> None:
    films, answers = which_first(2, (2, 11, 13), 3)
    field = films[0, 0, ..., 0]
    assert torch.equal(films[1, 0, ..., 0], field)
    assert torch.equal(films[0, 1, ..., 0], field.roll(WIND, dims=(0, 1)))
    assert torch.equal(films[1, 1, ..., 0].roll(WIND, dims=(0, 1)), field)
    rain = field > 0
    assert torch.equal(answers[:, 0].isfinite(), rain.expand(2, 11, 13))
    assert (answers[0, 0][rain] == 1).all()
    assert (answers[1, 0][rain] == 0).all()
    assert answers[:, 1].isnan().all()


def test_the_earlier_frame_is_never_the_same_as_the_later_one() -> None:
    films, _ = which_first(2000, (2, 8, 8), 4)
    assert (films[::2, 1] != films[1::2, 1]).flatten(1).any(dim=1).all()


def test_marked_points_are_as_far_apart_when_in_one_echo_as_when_not() -> None:
    films, answers = connected_storms(COUNT, (1, 32, 32), 5)
    marks = films[:, 0, ..., 1].nonzero().reshape(COUNT, 2, 3)[..., 1:]
    distance = (marks[:, 0] - marks[:, 1]).abs().sum(dim=-1)
    yes = answers.nan_to_num(0.0).amax(dim=(1, 2, 3)) > 0
    assert torch.equal(distance[yes].sort().values, distance[~yes].sort().values)


def test_connected_means_one_label_of_scipy() -> None:
    films, answers = connected_storms(20, (1, 17, 19), 6)
    for film, answer in zip(films[:, 0], answers[:, 0], strict=True):
        labels, _ = ndimage.label(film[..., 0].numpy() > 0)
        one, two = labels[film[..., 1].numpy() > 0]
        assert bool(answer.nan_to_num(0.0).max()) == (one == two)


def test_pixels_alone_do_not_tell_what_is_connected() -> None:
    """Logistic regression on all pixels, with weight decay, of four times as many films as it has weights."""
    fitted, held_out = (_flat(connected_storms(count, (1, 17, 19), seed)) for count, seed in ((2600, 1), (2000, 2)))
    weights = _regression(*fitted)
    share = float(((held_out[0] @ weights > 0) == (held_out[1] > 0.5)).float().mean())
    assert abs(share - 0.5) <= 0.05
    easy = fitted[0][:, 7]  # a pixel that does tell: the regression can learn
    assert float((((fitted[0] @ _regression(fitted[0], easy)) > 0) == (easy > 0.5)).float().mean()) > 0.95


def _flat(questions: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    films, answers = questions
    pixels = torch.cat([films.flatten(1), torch.ones(len(films), 1)], dim=1)
    return pixels, answers.nan_to_num(0.0).amax(dim=(1, 2, 3))


def _regression(pixels: Tensor, answers: Tensor) -> Tensor:
    """Weights by Newton's method."""
    weights, decay = torch.zeros(pixels.shape[1]), torch.eye(pixels.shape[1])
    for _ in range(8):
        chance = (pixels @ weights).sigmoid()
        slope = pixels.T @ (chance - answers) + weights
        curvature = pixels.T @ (pixels * (chance * (1 - chance))[:, None]) + decay
        weights = weights - torch.linalg.solve(curvature, slope)
    return weights
