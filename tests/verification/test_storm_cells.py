import json
from itertools import permutations

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.config import StormCell, Verify
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.verification.aggregation import scores_of
from fieldcast.pipeline.verification.blocks import verify
from fieldcast.pipeline.verification.scores import by_key
from fieldcast.pipeline.verification.storm_cells import StormCellOptions, find, match, storm_sums

OPTIONS = StormCellOptions(at_least=5, area_km2=16, within_km=20, spacing=(2.0, 2.0))


def with_storms(*storms: tuple[int, int, int, float], size: int = 40) -> np.ndarray:
    """Return a field (size, size) of squares, each (first row, first column, side, value)."""
    field = np.zeros((size, size), np.float32)
    for y, x, side, value in storms:
        field[y : y + side, x : x + side] = value
    return field


def test_storm_cells_of_a_field_by_hand() -> None:
    field = with_storms((2, 3, 2, 6), (20, 10, 4, 9), (30, 30, 1, 50), (10, 30, 3, 4.9))
    field[21, 11] = 12
    found = find(field, OPTIONS)
    np.testing.assert_allclose(found.areas, [64, 16])  # one grid cell is 4 km2; 5 is not reached by the last
    np.testing.assert_allclose(found.centres, [[43, 23], [5, 7]])
    np.testing.assert_allclose(found.peaks, [12, 6])
    assert np.unique(found.labels).tolist() == [0, 1, 2]
    assert (found.labels[20:24, 10:14] == 1).all()
    assert len(find(np.zeros((5, 5)), OPTIONS)) == 0


def test_grid_cells_that_meet_at_a_corner_are_one_storm_cell_and_missing_ones_divide() -> None:
    field = with_storms((2, 2, 2, 6), (4, 4, 2, 6))
    assert len(find(field, OPTIONS)) == 1
    wall = with_storms((2, 2, 5, 6))
    wall[:, 4] = np.nan
    assert len(find(wall, OPTIONS)) == 2


@pytest.mark.parametrize("seed", range(20))
def test_pairs_are_as_many_and_then_as_near_as_any(seed: int) -> None:
    draws = np.random.default_rng(seed)
    first, second = draws.uniform(0, 50, (4, 2)), draws.uniform(0, 50, (int(draws.integers(1, 6)), 2))
    rows, columns = match(first, second, 20)
    distances = np.linalg.norm(first[:, None] - second[None], axis=-1)

    def quality(pairs: list[tuple[int, int]]) -> tuple[int, float]:
        near = [distances[pair] for pair in pairs if distances[pair] <= 20]
        return -len(near), float(sum(near))

    size = max(len(first), len(second))
    orders = (enumerate(order) for order in permutations(range(size)))
    best = min(quality([(i, j) for i, j in order if i < len(first) and j < len(second)]) for order in orders)
    assert quality(list(zip(rows, columns, strict=True))) == pytest.approx(best)
    assert (distances[rows, columns] <= 20).all()


def test_sums_of_hits_misses_and_false_alarms() -> None:
    observed = with_storms((5, 5, 4, 10), (30, 5, 3, 8))
    forecast = with_storms((8, 7, 4, 5), (5, 30, 2, 7))  # 3 rows and 2 columns off; one missed, one false
    sums = storm_sums(forecast[None], observed[None], np.ones((1, 40, 40), bool), OPTIONS)
    flat = {name: values.item() for name, values in sums.items()}
    assert (flat["storm_hits"], flat["storm_misses"], flat["storm_false_alarms"]) == (1, 1, 1)
    assert flat["storm_distances"] == pytest.approx(2 * np.hypot(3, 2))
    assert (flat["storm_forecast_areas"], flat["storm_observed_areas"]) == (64, 64)
    assert (flat["storm_forecast_peaks"], flat["storm_observed_peaks"]) == (5, 10)
    unknown = np.ones((1, 40, 40), bool)
    unknown[:, :, 25:] = False  # where nothing is known nothing is false
    assert storm_sums(forecast[None], observed[None], unknown, OPTIONS)["storm_false_alarms"].item() == 0


def dataset(fields: np.ndarray, member: bool = False) -> tuple[xr.Dataset, xr.Dataset]:
    """Return forecasts of one init time and lead with these fields, and observations of two frames."""
    km = {"units": "km"}
    y, x = (xr.DataArray(np.arange(40) * 2.0, dims=axis, attrs=km) for axis in "yx")
    start = np.datetime64("2020-01-01", "ns")
    step = np.timedelta64(300, "s").astype("timedelta64[ns]")
    dims = ("init_time", "lead_time", *(["member"] if member else []), "y", "x")
    forecasts = xr.Dataset(
        {"rain": (dims, fields[None, None], {"units": "mm h-1"})},
        {"init_time": [start], "lead_time": [step], "y": y, "x": x},
    ).assign_coords(valid_time=(("init_time", "lead_time"), [[start + step]]))
    frames = np.stack([np.zeros((40, 40), np.float32), with_storms((5, 5, 4, 10), (30, 5, 3, 8))])
    observed = xr.Dataset(
        {"rain": (("time", "y", "x"), frames, {"units": "mm h-1"})}, {"time": [start, start + step], "y": y, "x": x}
    )
    return forecasts, observed


def test_scores_of_storm_cells() -> None:
    forecasts, observed = dataset(with_storms((8, 7, 4, 5), (5, 30, 2, 7)))
    options = Verify(storm_cells={"rain": StormCell(at_least=5)})
    scores = {key: values[5] for key, values in by_key(scores_of(verify(forecasts, observed, options))).items()}
    assert scores["storm_csi_5_mm_h"] == pytest.approx(1 / 3)
    assert scores["storm_pod_5_mm_h"] == scores["storm_far_5_mm_h"] == 0.5
    assert scores["storm_distance_km_5_mm_h"] == pytest.approx(2 * np.hypot(3, 2))
    assert scores["storm_area_ratio_5_mm_h"] == 1
    assert scores["storm_peak_ratio_5_mm_h"] == 0.5
    far = Verify(storm_cells={"rain": StormCell(at_least=5, within_km=5)})
    assert by_key(scores_of(verify(forecasts, observed, far)))["storm_csi_5_mm_h"][5] == 0


def test_members_make_a_storm_cell_where_enough_of_them_have_it() -> None:
    """One of three members has the storm: the mean does not reach 5, one vote does."""
    fields = np.stack([with_storms((5, 5, 4, 12)), np.zeros((40, 40)), np.zeros((40, 40))]).astype(np.float32)
    options = Verify(thresholds={"rain": [5]}, storm_cells={"rain": StormCell(at_least=5)})
    for votes, hits in ((1, 1), (2, 0)):
        forecasts, observed = dataset(fields, member=True)
        forecasts["rain"].attrs["decisions"] = json.dumps({"levels": [5.0], "votes": [[votes]]})
        assert verify(forecasts, observed, options)["rain.storm_hits"].item() == hits
    forecasts, observed = dataset(fields, member=True)
    assert verify(forecasts, observed, options)["rain.storm_hits"].item() == 0  # the mean is 4


def test_storm_cells_of_a_variable_that_is_not_forecast_are_refused() -> None:
    forecasts, observed = dataset(with_storms())
    with pytest.raises(InputError, match=r"verify.storm_cells: no field \['snow'\] in the forecasts"):
        verify(forecasts, observed, Verify(storm_cells={"snow": StormCell(at_least=5)}))
    for axis in "yx":
        forecasts[axis].attrs["units"] = observed[axis].attrs["units"] = "1"
    with pytest.raises(InputError, match=r"expected metres, km or degrees"):
        verify(forecasts, observed, Verify(storm_cells={"rain": StormCell(at_least=5)}))
