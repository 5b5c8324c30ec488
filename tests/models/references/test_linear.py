"""Linear regression from principal components: against planted dynamics and plain least squares."""

import numpy as np
import pytest
from pydantic import ValidationError

from fieldcast.models.damped_persistence import forecast as damped
from fieldcast.models.damped_persistence.options import DampedPersistenceOptions
from fieldcast.models.layers.reference import Case, Training
from fieldcast.models.linear import forecast as linear
from fieldcast.models.linear.options import LinearOptions

NAN = np.nan
HOUR = np.timedelta64(1, "h")
HISTORY, HORIZON, H, W = 5, 3, 5, 11
START = np.datetime64("2024-01-01T00:00", "ns")
RNG = np.random.default_rng(0)
PATTERNS = RNG.normal(size=(2, 2, H, W))  # of a wave and of a quarter of a period later, in two channels
USUAL = np.arange(24, dtype=np.float32)[:, None, None, None] + 100 * RNG.random((1, 2, H, W)).astype(np.float32)


def weather(hours=300, noise=0.1, units=(1.0, 1.0), seed=1):
    """Return frames (t, 2, h, w) of a wave with a period of ten hours and random strength, above the usual day."""
    rng = np.random.default_rng(seed)
    state = np.zeros((hours, 2))
    turn = 2 * np.pi / 10
    for t in range(1, hours):
        x, y = state[t - 1]
        state[t] = 0.98 * np.array([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)])
        state[t] += rng.normal(0, 0.3, 2)
    anomalies = np.einsum("tk,kchw->tchw", state, PATTERNS) + rng.normal(0, noise, (hours, 2, H, W))
    frames = USUAL[np.arange(hours) % 24] + anomalies
    return (frames * np.array(units)[:, None, None]).astype(np.float32)


def blocks_of(frames, size=32):
    """Return histories, targets and init times of all samples of `frames`, in blocks."""
    positions = range(HISTORY - 1, len(frames) - HORIZON)
    history = np.stack([frames[i + 1 - HISTORY : i + 1] for i in positions])
    target = np.stack([frames[i + 1 : i + 1 + HORIZON] for i in positions])
    times = START + np.array(positions) * HOUR
    cuts = [slice(k, k + size) for k in range(0, len(times), size)]
    return [(history[cut], target[cut], times[cut]) for cut in cuts]


def training(frames, options=None, units=(1.0, 1.0), rows=None):
    climatology = (USUAL * np.array(units)[:, None, None]).astype(np.float32)
    return Training(options or LinearOptions(components=4), climatology, HORIZON, HOUR, blocks_of(frames), rows)


def forecast(arrays, history, times, options=None, module=linear):
    case = Case(times, HORIZON, HOUR, 1.0, options or LinearOptions(components=4), arrays)
    return module.members(history, case)


def test_it_finds_the_dynamics_that_damped_persistence_cannot():
    arrays, facts = linear.fit(training(weather()))
    (history, target, times), *_ = blocks_of(weather(60, seed=2), size=99)
    made = forecast(arrays, history, times)
    assert (made.shape, made.dtype) == ((len(times), 1, HORIZON, 2, H, W), np.float32)
    fading = damped.fit(training(weather(), DampedPersistenceOptions()))[0]
    other = forecast(fading, history, times, DampedPersistenceOptions(), damped)
    errors = [np.sqrt(((fields[:, 0] - target) ** 2).mean(axis=(0, 2, 3, 4))) for fields in (made, other)]
    assert (errors[0] < 0.6 * errors[1]).all()
    assert facts["components"] == 4


def test_an_endless_ridge_is_damped_persistence():
    arrays, _ = linear.fit(training(weather()))
    fading, _ = damped.fit(training(weather(), DampedPersistenceOptions()))
    history, _, times = blocks_of(weather(60, seed=2))[0]
    none = {**arrays, "coefficients": np.zeros_like(arrays["coefficients"])}
    expected = forecast(fading, history, times, DampedPersistenceOptions(), damped)
    np.testing.assert_allclose(forecast(none, history, times), expected, rtol=1e-5)


def test_units_of_a_channel_change_nothing_else():
    history, _, times = blocks_of(weather(60, seed=2))[0]
    units = (1.0, 1000.0)
    scaled, _, _ = blocks_of(weather(60, units=units, seed=2))[0]
    one = forecast(linear.fit(training(weather()))[0], history, times)
    other = forecast(linear.fit(training(weather(units=units), units=units))[0], scaled, times)
    np.testing.assert_allclose(other / np.array(units)[:, None, None], one, rtol=1e-3, atol=1e-2)


def test_a_missing_cell_is_at_its_climatology():
    arrays, _ = linear.fit(training(weather()))
    history, _, times = blocks_of(weather(60, seed=2))[0]
    usual = USUAL[(times - START) // HOUR % 24]
    gaps, filled = history.copy(), history.copy()
    gaps[:, :, 1, 2, 3] = NAN
    for lag in range(HISTORY):
        at = ((times - START) // HOUR - lag) % 24
        filled[:, HISTORY - 1 - lag, 1, 2, 3] = USUAL[at, 1, 2, 3]
    assert usual.shape == (len(times), 2, H, W)
    np.testing.assert_allclose(forecast(arrays, gaps, times), forecast(arrays, filled, times), rtol=1e-5, atol=1e-4)


def test_training_with_gaps_is_finite():
    frames = weather()
    frames[np.random.default_rng(3).random(frames.shape) < 0.1] = NAN
    frames[:, :, 0, 0] = NAN
    arrays, _ = linear.fit(training(frames))
    assert all(np.isfinite(array).all() for array in arrays.values())
    history, target, times = blocks_of(weather(60, seed=2), size=99)[0]
    error = forecast(arrays, history, times)[:, 0] - target
    assert np.sqrt((error**2).mean()) < 0.8 * target.std()


def test_lags_beyond_the_history_are_left_out():
    arrays, _ = linear.fit(training(weather(), LinearOptions(components=4, lags=(0, 2, 50))))
    assert arrays["coefficients"].shape == (HORIZON, 2 * 4 + 3, 4)


def test_quantiles_are_copies_until_they_are_calibrated():
    options = LinearOptions(components=4, output="quantiles", members=3)
    arrays, _ = linear.fit(training(weather(), options))
    history, _, times = blocks_of(weather(60, seed=2))[0]
    made = forecast(arrays, history, times, options)
    assert made.shape[1] == 3
    np.testing.assert_array_equal(made[:, 0], made[:, 2])


def test_where_nothing_changes_it_is_climatology():
    still = USUAL[np.arange(60) % 24]
    arrays, _ = linear.fit(training(still))
    history, target, times = blocks_of(still)[0]
    np.testing.assert_allclose(forecast(arrays, history, times)[:, 0], target, rtol=1e-6)


@pytest.mark.parametrize("shape", [(7, 31), (31, 7)])
def test_eofs_are_the_leading_singular_vectors(shape):
    states = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = linear.eofs(states, 3)
    expected = np.linalg.svd(states)[2][:3]
    np.testing.assert_allclose(np.abs((found * expected).sum(axis=1)), 1, atol=1e-4)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-4)
    assert len(linear.eofs(states, 99)) == 7


def test_cells_count_by_area_and_spread():
    anomalies = np.random.default_rng(0).normal(size=(99, 2, 3, 7)).astype(np.float32) * np.array([[[2.0]], [[5.0]]])
    rows = np.array([0.5, 1.0, 1.5], np.float32)
    weights = linear.cell_weights(anomalies.astype(np.float32), rows)
    np.testing.assert_allclose(weights, np.sqrt(rows) / np.array([[2.0], [5.0]]), rtol=0.1)
    np.testing.assert_allclose(weights[:, 2] / weights[:, 0], 3**0.5, rtol=1e-5)


def ridge_cases(seed=0, n=40):
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(size=(n, 5)) * 3, rng.normal(size=(n, 2)), np.ones((n, 1))], axis=1)
    return x, x @ rng.normal(size=(8, 2)) + rng.normal(size=(n, 2))


def test_ridge_by_its_definition():
    x, y = ridge_cases()
    found = linear.RidgeSums.of(x, y).coefficients(0.1)
    level = (x[:, :5] ** 2).sum() / 5
    scales = np.array([1] * 5 + [np.sqrt(level / 40)] * 3)
    stacked = np.concatenate([x * scales, np.sqrt(0.1 * level) * np.eye(8)])
    expected = scales[:, None] * np.linalg.lstsq(stacked, np.concatenate([y, np.zeros((8, 2))]), rcond=None)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_errors_follow_from_sums():
    sums = [linear.RidgeSums.of(*ridge_cases(seed)) for seed in (1, 2)]
    x, y = (np.concatenate(parts) for parts in zip(ridge_cases(1), ridge_cases(2), strict=True))
    coefficients = sums[0].coefficients(1.0)
    assert (sums[0] + sums[1]).error(coefficients) == pytest.approx(((y - x @ coefficients) ** 2).sum())


def test_the_strength_is_that_with_the_least_error_elsewhere():
    parts = [linear.RidgeSums.of(*ridge_cases(seed, n=9)) for seed in range(4)]
    errors = []
    for strength in linear.STRENGTHS:
        total = 0.0
        for k in range(4):
            others = [ridge_cases(seed, n=9) for seed in range(4) if seed != k]
            x, y = (np.concatenate(each) for each in zip(*others, strict=True))
            coefficients = linear.RidgeSums.of(x, y).coefficients(strength)
            total += ((ridge_cases(k, n=9)[1] - ridge_cases(k, n=9)[0] @ coefficients) ** 2).sum()
        errors.append(total)
    assert linear.best_strength(parts) == linear.STRENGTHS[int(np.argmin(errors))]
    assert linear.best_strength(parts[:1]) == linear.STRENGTHS[-1]


@pytest.mark.parametrize("limit", [{"VALUES": 20 * 2 * H * W}, {"STATES": 20}])
def test_states_for_eofs_are_thinned_to_what_time_and_memory_allow(limit, monkeypatch):
    for name, value in limit.items():
        monkeypatch.setattr(linear, name, value)
    kept = []
    monkeypatch.setattr(linear, "eofs", lambda states, count: kept.append(len(states)) or states[:count])
    linear.found_space(training(weather()), 4)
    assert 10 <= kept[0] <= 20


@pytest.mark.parametrize("lags", [(1, 2), (0, 2, 2), (0, 3, 1), ()])
def test_lags_begin_at_the_init_time(lags):
    with pytest.raises(ValidationError, match="lags"):
        LinearOptions(lags=lags)
