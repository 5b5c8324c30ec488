"""Optical flow and paths along it: planted winds, gaps, borders."""

import numpy as np
import pytest
import torch

from fieldcast.models.lagrangian_regression.options import LagrangianRegressionOptions
from fieldcast.models.layers import motion as motion_module
from fieldcast.models.layers.motion import (
    averaged,
    carried_on,
    cells_of,
    departures,
    is_inside,
    motion,
    moved,
    optical_flow,
    read_at,
)
from fieldcast.models.layers.motion_options import MotionOptions

NAN = float("nan")
WINDS = [(2.0, 1.0), (-3.0, 0.5), (0.0, 4.0), (6.0, -6.0), (0.3, -0.2)]


def waves(height, width, steps, wind, seed=0):
    """Smooth random waves that move by `wind` (x, y) cells a step, exactly, (steps, h, w)."""
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(float)
    numbers = draws.normal(scale=0.35, size=(24, 2))
    phases = draws.uniform(0, 2 * np.pi, size=24)
    frames = [
        sum(
            np.cos(kx * (x - wind[0] * step) + ky * (y - wind[1] * step) + phase)
            for (kx, ky), phase in zip(numbers, phases, strict=True)
        )
        for step in range(steps)
    ]
    return torch.from_numpy(np.stack(frames)).float()


@pytest.mark.parametrize("wind", WINDS)
@pytest.mark.parametrize("size", [(61, 73), (128, 96)])
def test_a_planted_wind_is_found_everywhere(wind, size):
    flow = optical_flow(waves(*size, 4, wind)[None])[0]
    error = (flow - torch.tensor(wind)[:, None, None]).abs()
    assert error.mean() < 0.05
    assert error.max() < 0.5


def test_a_rotation_is_found():
    y, x = np.mgrid[:96, :96] - 47.5
    still = waves(96, 96, 1, (0, 0), seed=3)[None]
    angle = 0.03
    turned = [
        read_at(still, torch.from_numpy(np.stack([c * x + s * y + 47.5, c * y - s * x + 47.5])[None]).float())
        for c, s in [(np.cos(k * angle), np.sin(k * angle)) for k in range(3)]
    ]
    flow = optical_flow(torch.cat(turned, dim=1))[0]
    expected = torch.from_numpy(angle * np.stack([-y, x])).float()
    inner = (slice(None), slice(16, -16), slice(16, -16))
    assert (flow - expected)[inner].norm(dim=0).mean() < 0.25 * expected[inner].norm(dim=0).mean()


def test_samples_of_a_batch_do_not_see_one_another():
    one, two = waves(48, 56, 3, (2, 1)), waves(48, 56, 3, (-1, 3), seed=1)
    both = optical_flow(torch.stack([one, two]))
    torch.testing.assert_close(both[0], optical_flow(one[None])[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[1], optical_flow(two[None])[0], rtol=1e-4, atol=1e-4)


def test_missing_cells_are_no_edges():
    frames = waves(64, 64, 4, (3, 1))
    frames[:, 20:40, 24:50] = NAN  # stands still, unlike what surrounds it
    frames[1, 50:, :20] = NAN
    flow = optical_flow(frames[None])[0]
    assert flow.isfinite().all()
    assert (flow - torch.tensor([3.0, 1.0])[:, None, None]).abs().max() < 0.5


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(4, 33, 49),
        torch.full((4, 33, 49), 280.123),
        torch.full((4, 33, 49), NAN),
        torch.ones(1, 33, 49),
        torch.ones(4, 1, 1),
        waves(33, 49, 1, (0, 0)).expand(4, -1, -1),
    ],
)
def test_nothing_moves_where_nothing_is_seen_to(frames):
    flow = optical_flow(frames[None])
    assert flow.shape == (1, 2, *frames.shape[1:])
    assert flow.abs().max() < 1e-3


def test_the_flow_of_the_same_frames_is_computed_once(monkeypatch):
    computed = []

    def counted(frames):
        computed.append(len(frames))
        return optical_flow(frames)

    monkeypatch.setattr(motion_module, "optical_flow", counted)
    recent = np.stack([waves(33, 49, 5, wind).numpy() for wind in WINDS[:3]])
    options = MotionOptions(frames=3, transform="identity")
    first = motion(recent[:2], options)
    older = recent.copy()
    older[:, :2] = 7  # before the latest three
    other = LagrangianRegressionOptions(frames=3, transform="identity", scales=[0, 1])  # a base of the same motion
    assert torch.equal(motion(older, other)[:2], first)
    assert computed == [2, 1]
    assert torch.equal(motion(recent[1:2], options)[0], first[1])
    motion(recent + 1, options)
    assert computed == [2, 1, 3]


def test_paths_in_a_uniform_wind_are_straight():
    flow = torch.tensor([2.0, -1.5])[None, :, None, None].expand(1, 2, 31, 37)
    places = departures(flow, 3)
    expected = torch.stack([cells_of(flow) - step * flow[0] for step in (1, 2, 3)])
    torch.testing.assert_close(places[0], expected)
    inside = is_inside(places)
    assert not inside[0, 2, :, :6].any()  # from beyond the left border
    assert not inside[0, 2, 27:].any()
    assert inside[0, 2, :26, 6:].all()


def test_paths_follow_a_turning_flow():
    y, x = np.mgrid[:65, :65] - 32.0
    flow = torch.from_numpy(0.05 * np.stack([-y, x])[None]).float()
    back = departures(flow, 10)[0, -1] - 32
    start = torch.from_numpy(np.stack([x, y])).float()
    angle = 10 * 0.05
    expected = torch.stack(
        [np.cos(angle) * start[0] + np.sin(angle) * start[1], np.cos(angle) * start[1] - np.sin(angle) * start[0]]
    )
    near = start.norm(dim=0) < 20
    assert (back - expected).norm(dim=0)[near].max() < 0.1


def test_what_does_not_move_keeps_its_very_values():
    fields = torch.randn(2, 3, 13, 17)
    flow = torch.zeros(2, 2, 13, 17)
    flow[1] = 1.0
    result = moved(fields, departures(flow, 4))
    assert torch.equal(result[0], fields[0].expand(4, -1, -1, -1))
    torch.testing.assert_close(result[1, 0, :, 1:, 1:], fields[1, :, :-1, :-1], rtol=1e-5, atol=1e-5)


def test_blurs_keep_a_constant_and_the_mean_of_a_far_spot():
    assert torch.allclose(averaged(torch.full((1, 1, 9, 11), 3.0), 4.0), torch.tensor(3.0))
    spot = torch.zeros(1, 1, 41, 43)
    spot[0, 0, 20, 21] = 1
    wide = averaged(spot, 2.0)[0, 0]
    assert wide.sum() == pytest.approx(1, abs=1e-3)
    assert wide[20, 21] == pytest.approx(1 / (2 * np.pi * 4), rel=0.01)
    assert wide[20, 23] / wide[20, 21] == pytest.approx(np.exp(-0.5), rel=1e-3)


def test_gaps_go_on_with_the_nearest_values():
    fields = torch.arange(20.0).expand(1, 1, 15, 20).clone()
    fields[..., :5] = NAN
    filled = carried_on(fields)
    assert torch.equal(filled[..., 5:], fields[..., 5:])
    assert filled[..., :5].isfinite().all()
    assert (filled[0, 0, :, 4] - 5).abs().max() < 2.5
    assert torch.equal(carried_on(torch.full((1, 1, 3, 5), NAN)), torch.zeros(1, 1, 3, 5))
