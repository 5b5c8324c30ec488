import numpy as np
import pytest

from fieldcast.pipeline.verification.bootstrap import block_length, draws, optimal_block, too_narrow
from tests.made_sums import autoregressive


def test_draws_are_circular_blocks_that_add_up():
    weights = draws(12, 4, 200, seed=1)
    assert weights.shape == (200, 12)
    assert (weights.sum(1) == 12).all()
    shifted = {tuple(np.roll([1, 1, 1, 1] + [0] * 8, k)) for k in range(12)}
    starts = np.random.default_rng(1).integers(12, size=(200, 3))
    for row, three in zip(weights, starts, strict=True):
        assert (row == sum(np.roll([1, 1, 1, 1] + [0] * 8, start) for start in three)).all()
    assert {tuple(row) for row in draws(4, 4, 9, seed=3)} == {(1, 1, 1, 1)}  # one block around is all times once
    assert len(shifted) == 12


def test_the_last_block_is_cut():
    weights = draws(7, 3, 50, seed=2)  # blocks of 3, 3 and 1
    assert (weights.sum(1) == 7).all()
    assert weights.max() <= 3


def test_draws_depend_on_the_seed_alone():
    np.testing.assert_array_equal(draws(30, 4, 20, seed=5), draws(30, 4, 20, seed=5))
    assert (draws(30, 4, 20, seed=5) != draws(30, 4, 20, seed=6)).any()


def test_every_time_is_drawn_equally_often():
    means = draws(20, 6, 20000, seed=0).mean(0)
    assert np.abs(means - 1).max() < 0.03


def test_blocks_are_longer_where_memory_is():
    rng = np.random.default_rng(0)
    lengths = {
        rho: np.mean([optimal_block(autoregressive(rng, 400, rho)[:, 0]) for _ in range(40)]) for rho in (0.0, 0.5, 0.9)
    }
    theory = {  # (3/2)^⅓ (2ρ / (1 − ρ²))^⅔ n^⅓: the best block for this process by Politis and White
        rho: (1.5 * (2 * rho / (1 - rho**2)) ** 2 * 400) ** (1 / 3) for rho in (0.5, 0.9)
    }
    assert lengths[0.0] < 5 < lengths[0.5] < lengths[0.9]
    assert lengths[0.5] == pytest.approx(theory[0.5], rel=0.25)
    assert lengths[0.9] == pytest.approx(theory[0.9], rel=0.35)


def test_optimal_block_by_hand():
    """Alternating ups and downs: only lags 0 and ±1 lie inside the window (M = 2), of weights 1 and 1."""
    series = np.array([3.0, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8, 3, 2, 7])
    n, apart = series.size, series - series.mean()
    negligible = 2 * np.sqrt(np.log10(n) / n)
    r = [apart[: n - k] @ apart[k:] / (apart @ apart) for k in range(12)]
    assert max(abs(value) for value in r[1:7]) < negligible  # so the memory is 1 step
    covariance = [apart[: n - k] @ apart[k:] / n for k in range(2)]
    slope, level = 2 * covariance[1], covariance[0] + 2 * covariance[1]
    assert optimal_block(series) == pytest.approx((2 * slope**2 / (4 / 3 * level**2) * n) ** (1 / 3))


def test_length_keeps_its_bounds():
    rng = np.random.default_rng(0)
    noise, walk = rng.standard_normal(160), np.cumsum(rng.standard_normal(160))
    assert block_length(noise, least=9) == 9
    assert block_length(walk) == 20  # eight blocks remain
    assert block_length(noise, least=50) == 20
    assert block_length(np.stack([noise, walk])) == 20
    assert block_length(np.zeros(160)) == 1
    assert block_length(np.array([1.0, 2.0, 4.0]), least=3) == 1


def brute(rho, steps, block):
    """Return the true variance of the mean over the expected one of circular blocks, by the covariance matrix."""
    n = len(steps)
    covariance = rho ** np.abs(np.subtract.outer(steps, steps)).astype(float)
    inside = np.array([[(j - start) % n < block for j in range(n)] for start in range(n)]) - block / n
    expected = np.einsum("sn,nm,sm->s", inside, covariance, inside).mean() / (n * block)
    return covariance.mean() / expected


@pytest.mark.parametrize("gap", [0, 15])
@pytest.mark.parametrize("block", [1, 5, 8])
def test_factor_is_that_of_the_covariance_matrix(gap, block):
    rng = np.random.default_rng(4)
    steps = np.arange(64) + gap * (np.arange(64) // 16)
    series = autoregressive(rng, 64, 0.6, k=3)
    apart = series - series.mean(0)
    pairs = np.diff(steps) == 1
    for column, factor in zip(apart.T, too_narrow(series, steps, block), strict=True):
        seen = (column[1:] * column[:-1])[pairs].sum() / (pairs.sum() + 1) * 64 / (column @ column)
        rho = seen + (1 + 3 * seen) / 64
        assert 0.2 < rho < 0.9
        assert factor == pytest.approx(brute(rho, steps, block), rel=1e-6)


def test_factor_without_dependence_is_known():
    alternating = np.tile([1.0, -1.0], 20)[:, None]
    assert too_narrow(alternating, np.arange(40), 5) == pytest.approx(40 / 35)
    assert too_narrow(np.ones((40, 1)), np.arange(40), 5) == 1.0


def test_standard_errors_of_the_mean_are_right_on_average():
    """Bootstrap variance times the factor is the true variance of the mean, where the dependence is what it assumes."""
    rng = np.random.default_rng(1)
    for rho in (0.0, 0.5, 0.8):
        weights = draws(120, 8, 400, seed=0) / 120
        series = autoregressive(rng, 120, rho, k=600)
        estimated = (weights @ series).var(0) * too_narrow(series, np.arange(120), 8)
        steps = np.abs(np.subtract.outer(range(120), range(120)))
        true = (float(rho) ** steps).mean()
        assert np.median(estimated) == pytest.approx(true, rel=0.15)
