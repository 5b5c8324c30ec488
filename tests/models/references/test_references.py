import numpy as np
import pytest

from fieldcast.models.advection.forecast import forecast as advection
from fieldcast.models.climatology import forecast as climatology
from fieldcast.models.climatology.options import ClimatologyOptions
from fieldcast.models.damped_persistence.forecast import forecast as damped_persistence
from fieldcast.models.layers.damping import damping_sums
from fieldcast.models.layers.motion import motion
from fieldcast.models.layers.motion_options import MotionOptions
from fieldcast.models.layers.reference import Case
from fieldcast.models.persistence.forecast import forecast as persistence

NAN = np.nan


def test_persistence_takes_the_latest_valid_value():
    history = np.array([[1, 5, NAN], [2, NAN, NAN]], dtype=np.float32).reshape(1, 2, 1, 1, 3)
    result = persistence(history, 2)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result[0, :, 0, 0], [[2, 5, NAN]] * 2)


def test_climatology_is_that_of_the_valid_hour():
    usual = np.arange(24, dtype=np.float32)[:, None, None, None] * np.ones((24, 1, 5, 7), dtype=np.float32)
    hour = np.timedelta64(1, "h")
    init_times = np.array(["2024-06-01T05:30", "2024-06-01T22:00"], dtype="datetime64[ns]")
    case = Case(init_times, 3, hour, 1.0, ClimatologyOptions(), {"climatology": usual})
    result = climatology.members(np.zeros((2, 1, 1, 5, 7), dtype=np.float32), case)
    assert result.shape == (2, 1, 3, 1, 5, 7)
    assert result[:, 0, :, 0, 0, 0].tolist() == [[6, 7, 8], [23, 0, 1]]


def test_damping_by_hand():
    # lead 1: pairs (1, 0.5), (2, 1.5), (-1, gap): (0.5 + 3) / (1 + 4); lead 2: (1, 0), (2, 1), (-1, 1): 1 / 6
    init = np.array([1, 2, -1, NAN], dtype=np.float32).reshape(1, 1, 1, 4)
    target = np.array([[0.5, 1.5, NAN, 9], [0, 1, 1, 9]], dtype=np.float32).reshape(1, 2, 1, 1, 4)
    np.testing.assert_allclose(damping_sums(init, target).damping(), [[0.7], [1 / 6]], rtol=1e-6)


def test_damping_sums_merge():
    random = np.random.default_rng(0)
    init = random.normal(size=(7, 2, 3, 5)).astype(np.float32)
    target = random.normal(size=(7, 4, 2, 3, 5)).astype(np.float32)
    init[random.random(init.shape) < 0.2] = NAN
    target[random.random(target.shape) < 0.2] = NAN
    merged = damping_sums(init[:3], target[:3]) + damping_sums(init[3:], target[3:])
    np.testing.assert_allclose(merged.damping(), damping_sums(init, target).damping(), rtol=1e-6)


def test_damping_of_nothing_is_climatology():
    nothing = np.full((1, 1, 3, 5), NAN, dtype=np.float32)
    assert damping_sums(nothing, nothing[:, None]).damping().tolist() == [[0]]


def test_damped_persistence_by_hand():
    history = np.array([12, NAN, NAN], dtype=np.float32).reshape(1, 1, 1, 1, 3)
    history = np.concatenate([np.array([9, 8, NAN], dtype=np.float32).reshape(1, 1, 1, 1, 3), history], axis=1)
    result = damped_persistence(
        history,
        2,
        climatology_at_init=np.full((1, 1, 1, 3), 10, dtype=np.float32),
        climatology_at_valid=np.stack([np.full((1, 1, 1, 3), v, dtype=np.float32) for v in (11, 13)], axis=1),
        damping=np.array([[0.5], [0.25]], dtype=np.float32),
    )
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[0, :, 0, 0], [[12, 10, 11], [13.5, 12.5, 13]])


def test_damped_persistence_checks_the_horizon():
    field = np.zeros((1, 1, 1, 3, 5), dtype=np.float32)
    with pytest.raises(ValueError, match="horizon is 2, but damping has 3 and climatology_at_valid 1 leads"):
        damped_persistence(
            field, 2, climatology_at_init=field[:, 0], climatology_at_valid=field, damping=np.zeros((3, 1))
        )


def blobs(h, w, steps, velocity=(2, 1), background=0.0):
    """Rain cells that move by (x, y) cells a step: (1, steps, 1, h, w)."""
    y, x = np.mgrid[:h, :w].astype(float)
    frames = []
    for step in range(steps):
        field = np.full((h, w), background)
        for cy, cx, peak, width in [(12, 9, 9, 2.5), (20, 24, 6, 3), (9, 30, 7, 2), (26, 12, 5, 2)]:
            distance = (y - cy - velocity[1] * step) ** 2 + (x - cx - velocity[0] * step) ** 2
            field += peak * np.exp(-distance / (2 * width**2))
        frames.append(field)
    return np.stack(frames)[None, :, None].astype(np.float32)


@pytest.mark.parametrize(("transform", "background"), [("db", 0.0), ("identity", 280.0)])
@pytest.mark.parametrize("size", [(33, 49), (64, 64)])
def test_advection_moves_the_right_way_and_beats_persistence(size, transform, background):
    truth = blobs(*size, 8, background=background)
    history, future = truth[:, :4], truth[:, 4:]
    moved = advection(history, 4, transform=transform)
    errors = [np.abs(f - future).mean(axis=(0, 2, 3, 4)) for f in (moved, persistence(history, 4))]
    assert moved.dtype == np.float32
    assert np.isfinite(moved).all()
    assert (errors[0] < 0.5 * errors[1]).all()


def test_advection_against_the_motion_is_worse():
    truth = blobs(64, 64, 8)
    backwards = advection(truth[:, 3::-1], 4)
    assert np.abs(backwards - truth[:, 4:]).mean() > np.abs(persistence(truth[:, :4], 4) - truth[:, 4:]).mean()


def test_advection_motion_in_cells_a_step():
    flow = motion(blobs(64, 64, 4)[:, :, 0], MotionOptions())[0]
    np.testing.assert_allclose(np.median(flow, axis=(1, 2)), [2, 1], atol=0.2)


ODD = {
    "dry": np.zeros((1, 4, 1, 33, 49)),
    "drizzle_below_the_threshold": np.random.default_rng(0).random((1, 4, 1, 33, 49)) * 0.09,
    "constant": np.full((1, 4, 1, 33, 49), 7.0),
    "missing": np.full((1, 4, 1, 33, 49), NAN),
    "one_frame": np.ones((1, 1, 1, 33, 49)),
    "noise": np.random.default_rng(0).gamma(1, 2, (1, 4, 1, 33, 49)),
    "one_wet_cell": np.pad(np.ones((1, 4, 1, 1, 1)), [(0, 0)] * 3 + [(16, 16), (24, 24)]),
    "tiny": np.random.default_rng(0).random((1, 4, 1, 5, 7)),
    "one_cell": np.random.default_rng(0).random((1, 4, 1, 1, 1)),
    "first_frame_missing": np.concatenate([np.full((1, 1, 1, 33, 49), NAN), blobs(33, 49, 3)], axis=1),
    "last_frame_missing": np.concatenate([blobs(33, 49, 3), np.full((1, 1, 1, 33, 49), NAN)], axis=1),
}


@pytest.mark.parametrize("transform", ["db", "identity"])
@pytest.mark.parametrize("case", ODD)
def test_advection_of_odd_fields(case, transform, capfd):
    history = ODD[case].astype(np.float32)
    result = advection(history, 3, transform=transform)
    same = persistence(history, 3)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(same))
    if case in ("dry", "constant", "missing", "one_frame", "one_cell"):
        np.testing.assert_array_equal(result, same)
    assert capfd.readouterr() == ("", "")


def test_advection_with_gaps_is_complete_where_something_was_seen():
    history = np.repeat(blobs(64, 64, 4), 2, axis=2)
    history[:, -1, :, 10:20, 10:20] = NAN
    history[:, :, 1, 3, 4] = NAN  # never seen
    result = advection(history, 3)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(persistence(history, 3)))
    clean = advection(np.repeat(blobs(64, 64, 4), 2, axis=2), 3)
    assert np.nanmean(np.abs(result - clean)) < 0.5


def test_advection_channels_and_samples_are_apart():
    one, two = blobs(33, 49, 4), blobs(33, 49, 4, velocity=(-1, 1))
    both = advection(np.concatenate([one, two], axis=2), 3)
    np.testing.assert_array_equal(both, np.concatenate([advection(one, 3), advection(two, 3)], axis=2))
    stacked = advection(np.concatenate([one, two], axis=0), 3)
    np.testing.assert_array_equal(stacked, np.concatenate([advection(one, 3), advection(two, 3)], axis=0))


def test_advection_uses_the_latest_frames_only():
    history = blobs(33, 49, 5)
    changed = history.copy()
    changed[:, :2] = 0
    np.testing.assert_array_equal(advection(history, 3, frames=3), advection(changed, 3, frames=3))


def test_rain_does_not_stand_where_it_moves_away_from():
    history = blobs(33, 49, 4, velocity=(3, 0))
    last = history[0, -1, 0]
    after = advection(history, 6)[0, -1, 0]  # 18 cells on, which is where the first cell stands
    assert last[8:16, :18].max() > 5
    assert after[8:16, :18].max() < 0.5
