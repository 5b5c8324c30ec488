import numpy as np
import pytest

from fieldcast.pipeline.forecasting import calibration
from fieldcast.pipeline.forecasting.calibration import Calibration, classes_of, conformal_quantiles, fit, offsets_at

LEVELS = (np.arange(10) + 0.5) / 10


def truth_and_members(seed: int, size: int = 40, times: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return observed (b, lead, c, h, w) and ten members that are biased and far too close to one another.

    Errors grow with the amount and with lead time.
    """
    draws = np.random.default_rng(seed)
    amount = draws.gamma(1.0, 2.0, size=(times, 1, 1, size, size))
    spread = (0.3 + 0.4 * amount) * np.array([1.0, 2.0])[:, None, None, None]
    observed = amount + spread * draws.normal(size=(times, 2, 1, size, size))
    noise = draws.normal(size=(times, 10, 2, 1, size, size))
    members = amount[:, None] + 0.7 + 0.3 * spread[:, None] * noise
    return observed.astype(np.float32), members.astype(np.float32)


def coverage(observed: np.ndarray, members: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    inside = (members.min(axis=1) <= observed) & (observed <= members.max(axis=1))
    return np.asarray(inside.mean(axis=axis))


def test_a_bad_ensemble_covers_nine_in_ten_afterwards_at_every_lead_and_amount() -> None:
    observed, members = truth_and_members(1)
    fitted = fit([(members, observed)], len(members))
    observed, members = truth_and_members(2)
    calibrated = fitted(members)
    before = coverage(observed, members, (0, 2, 3, 4))
    assert (before < 0.7).all()
    assert coverage(observed, calibrated, (0, 2, 3, 4)) == pytest.approx(0.9, abs=0.01)
    for lead in range(2):
        means = members[:, :, lead].mean(axis=1)
        classes, _ = classes_of(means.ravel())
        assert classes.max() == 3
        for k in range(4):
            chosen = classes.reshape(means.shape) == k
            low, high = calibrated[:, :, lead].min(axis=1), calibrated[:, :, lead].max(axis=1)
            inside = (low <= observed[:, lead]) & (observed[:, lead] <= high)
            assert 0.87 < inside[chosen].mean() < 0.93, (lead, k)


def test_members_keep_their_order_in_each_cell() -> None:
    observed, members = truth_and_members(1, times=4)
    calibrated = fit([(members, observed)], 4)(members)
    np.testing.assert_array_equal(np.argsort(calibrated, axis=1), np.argsort(members, axis=1))


def test_where_all_is_dry_it_stays_dry() -> None:
    draws = np.random.default_rng(1)
    members = draws.gamma(1.0, 1.0, size=(3, 10, 1, 1, 40, 40)).astype(np.float32)
    observed = draws.gamma(1.0, 4.0, size=(3, 1, 1, 40, 40)).astype(np.float32)
    members[..., :20, :] = observed[..., 3:20, :] = 0  # and in 3 of 20 rows it rains out of nothing
    fitted = fit([(members, observed)], 3)
    calibrated = fitted(members)
    assert (calibrated[..., :20, :] == 0).all()
    assert (calibrated[..., 20:, :] != members[..., 20:, :]).any()
    assert (fitted(np.zeros((1, 10, 1, 1, 2, 3), np.float32)) == 0).all()


def test_missing_cells_stay_missing_and_teach_nothing() -> None:
    observed, members = truth_and_members(1, times=6)
    clean = fit([(members[:, :, :, :, 10:], observed[..., 10:, :])], 6)
    members[..., :5, :] = np.nan
    observed[..., 5:10, :] = np.nan
    with np.errstate(all="raise"):
        fitted = fit([(members[i : i + 1], observed[i : i + 1]) for i in range(6)], 6)
        calibrated = fitted(members)
    np.testing.assert_array_equal(np.isnan(calibrated), np.isnan(members))
    np.testing.assert_allclose(fitted.offsets, clean.offsets, atol=1e-5)
    nothing = fit([(members, np.full_like(observed, np.nan))], 6)
    np.testing.assert_array_equal(nothing(members), members)


def test_conformal_quantiles_by_hand() -> None:
    residuals = np.array([[5.0, 1, 4, 2, 3, 9, 8, 7, 6]] * 2)  # ranks: n + 1 = 10, levels 1/4 and 3/4
    assert conformal_quantiles(residuals).tolist() == [2, 8]
    assert conformal_quantiles(np.array([[3.0], [3.0]])).tolist() == [3, 3]


def test_offsets_run_from_class_to_class() -> None:
    centres, offsets = np.array([0.0, 2, 6, 6]), np.array([[0.0, 1], [2, 3], [10, 5], [10, 5]])
    at = offsets_at(np.array([-1.0, 0, 1, 2, 4, 6, 9]), centres, offsets)
    assert at[:, 0].tolist() == [0, 0, 1, 2, 6, 10, 10]
    assert at[:, 1].tolist() == [1, 1, 2, 3, 4, 5, 5]
    assert offsets_at(np.array([5.0]), np.array([3.0, 3, 3, 3]), np.full((4, 1), 7.0)).tolist() == [[7]]


def test_classes_halve_what_is_left_and_the_least_value_has_its_own() -> None:
    values = np.arange(8000.0)
    dry = np.concatenate([np.zeros(4000), values + 1])
    for means, sizes, least in (
        (values, [4000, 2000, 1000, 1000], False),
        (dry, [4000, 4000, 2000, 2000], True),
        (values[:900], [450, 450], False),  # too few for four
        (values[:5], [5], False),
        (np.zeros(5000), [5000], True),
    ):
        classes, has_least = classes_of(means)
        assert np.bincount(classes).tolist() == sizes
        assert has_least == least
    assert (classes_of(dry)[0][:4000] == 0).all()


def test_a_draw_of_cells_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    observed, members = truth_and_members(1)
    every = fit([(members, observed)], 40)
    monkeypatch.setattr(calibration, "VALUES", members.size // 4)
    some, again = (fit([(members[i : i + 1], observed[i : i + 1]) for i in range(40)], 40) for _ in range(2))
    np.testing.assert_array_equal(some.offsets, again.offsets)
    assert not np.array_equal(some.offsets, every.offsets)
    np.testing.assert_allclose(some.offsets[:, :, :3], every.offsets[:, :, :3], atol=0.5)


def test_arrays_round_trip() -> None:
    observed, members = truth_and_members(1, times=3)
    fitted = fit([(members, observed)], 3)
    assert all(name.startswith(calibration.PREFIX) for name in fitted.arrays())
    back = Calibration.from_arrays(fitted.arrays())
    assert back is not None
    np.testing.assert_array_equal(back(members), fitted(members))
    assert Calibration.from_arrays({"damping": np.zeros(1)}) is None
