"""Members that are fields, made of each cell's quantiles and of noise."""

import numpy as np
import pytest
from scipy import stats

from fieldcast import models
from fieldcast.models.layers.motion_options import MotionOptions
from fieldcast.pipeline.forecasting.coupling import Coupling
from fieldcast.pipeline.training import coupling
from fieldcast.pipeline.verification.spectral import FINE_SUMS, power_sums

SECONDS = np.array([1_717_200_000, 1_717_200_300])
LEVELS = ((np.arange(10) + 0.5) / 10).astype(np.float32)


def coupled(slope: float = 3.0, memory: float = 0.9, leads: int = 4) -> Coupling:
    return Coupling(np.full((leads, 1), slope), np.full((leads, 1), memory))


def normal(leads: int = 4, side: int = 64) -> np.ndarray:
    """Return quantiles (1, m, lead, 1, y, x) of a standard normal value in each cell."""
    quantiles = stats.norm.ppf(LEVELS).astype(np.float32)
    return np.broadcast_to(quantiles[None, :, None, None, None, None], (1, 10, leads, 1, side, side)).copy()


def gaussian(slope: float, memory: float, drift: tuple[float, float] = (0, 0), times: int = 10) -> list[np.ndarray]:
    """Return fields (1, lead, 1, y, x) of noise with a known slope and memory, one for each time."""
    noise = coupled(slope, memory)._noise
    fields = [noise(i, (1, 4, 1, 64, 64), np.array(drift))[0] for i in range(times)]
    return [((field - field.mean()) / field.std())[None] for field in fields]


def test_every_cell_keeps_its_values() -> None:
    members = np.random.default_rng(1).gamma(0.5, size=(2, 10, 4, 1, 20, 24)).astype(np.float32)
    members[0, :, :, :, 3, 4] = np.nan
    fields = coupled()(members, SECONDS, np.zeros((2, 2)))
    np.testing.assert_array_equal(np.sort(fields, axis=1), np.sort(members, axis=1))
    assert not np.array_equal(fields, np.sort(members, axis=1))


def test_an_init_time_has_its_own_noise_whatever_the_batch() -> None:
    members, drift = np.repeat(normal(), 2, axis=0), np.array([[1.0, 0.5], [1.0, 0.5]])
    together = coupled()(members, SECONDS, drift)
    for i in range(2):
        alone = coupled()(members[i : i + 1], SECONDS[i : i + 1], drift[i : i + 1])
        np.testing.assert_array_equal(together[i : i + 1], alone)
    assert np.abs(together[0] - together[1]).mean() > 0.5


def test_what_is_kept_moves_along() -> None:
    fields = coupled(memory=1.0)(normal(), SECONDS[:1], np.array([[2.0, -1.0]]))[0, :, :, 0]
    for lead in range(3):
        np.testing.assert_array_equal(fields[:, lead + 1, :40, 10:], fields[:, lead, 1:41, 8:-2])


@pytest.mark.parametrize("slope", [2.0, 3.0])
def test_the_noise_gives_members_the_observed_power(slope: float) -> None:
    observed = gaussian(slope, 0.0)
    found = coupling.fit([(normal(), field) for field in observed], MotionOptions(), moving=False)
    assert found.slopes == pytest.approx(slope, abs=0.5)
    members = found(normal(), SECONDS[:1], np.zeros((1, 2)))[0, :, :, 0].swapaxes(0, 1)
    ratios = []
    for field in observed:
        sums = power_sums(field[0, :, 0], field[0, :, 0], np.ones((4, 64, 64), bool), members)
        ratios.append(sums[FINE_SUMS[0]].sum() / sums[FINE_SUMS[1]].sum())
    assert 0.7 < np.mean(ratios) < 1.3


def test_noise_is_forgotten_as_residuals_are() -> None:
    observed = gaussian(3.0, 0.8)
    found = coupling.fit([(normal(), field) for field in observed], MotionOptions(), moving=False)
    assert found.memory[0] == 0
    assert found.memory[1:] == pytest.approx(0.8, abs=0.1)


def test_only_quantiles_are_coupled() -> None:
    with pytest.raises(ValueError, match="coupling applies to output: quantiles, got noise with point"):
        models.OPTIONS["unet"].model_validate({"coupling": "noise"})
