"""Products of scheduled forecasts: members, probabilities and quantiles, published, copied, verified."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import scores.probability
import xarray as xr

from fieldcast.pipeline.datasets.times import to_numpy
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.forecasting.forecaster import forecast_members, load
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.archive.ledger import LEDGER, Ledger
from fieldcast.pipeline.live.archive.publish import COPIES, open_forecasts, open_products, path_of
from fieldcast.pipeline.live.clock import stamp
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.monitoring.charts import reliability_charts
from fieldcast.pipeline.live.monitoring.page import write_page
from fieldcast.pipeline.live.monitoring.status import read_status
from fieldcast.pipeline.live.monitoring.verification import scores_of
from tests.live.contexts import START, live_context, write_learned

ASKED: dict[str, Any] = {"members": True, "exceed": {"rain_rate": [0.3, 2]}, "quantiles": [0.1, 0.5, 0.9]}
OPTIONS = {"output": "quantiles", "members": 4, "channels": 3, "levels": 1}


def quantiles_context(root: Path, **changes: Any) -> LiveContext:
    if not (root / "quantiles").exists():
        write_learned(root / "quantiles", "unet", OPTIONS)
    return live_context(root, START, {"model": "quantiles", "products": ASKED, **changes})


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> LiveContext:
    """A context after the forecasts of 25 minutes, the first of which has been verified."""
    context = quantiles_context(tmp_path_factory.mktemp("issued"), copies=["netcdf", "geotiff"])
    for _ in range(5):
        cycle.run(context)
        context.clock.sleep(300)
    return context


def test_members_are_those_of_the_hindcast_and_their_mean_is_the_forecast(issued: LiveContext) -> None:
    products, forecasts = open_products(issued.folder), open_forecasts(issued.folder)
    assert products["rain_rate"].dims == ("init_time", "lead_time", "member", "y", "x")
    assert products["rain_rate"].shape == (5, 4, 4, 16, 16)
    np.testing.assert_array_equal(products["rain_rate"].values.mean(axis=2), forecasts["rain_rate"].values)
    times = issued.schedule.history_times(START)
    history = issued.observations.read(times, ["rain_rate"])[None]
    hindcast = forecast_members(load(issued.model.folder), history, np.array([to_numpy(START)]), None, 48)
    np.testing.assert_array_equal(products["rain_rate"].values[0], np.moveaxis(hindcast[0, :, :, 0], 0, 1))
    assert products["member"].attrs["standard_name"] == "realization"


def test_probabilities_and_quantiles_are_those_of_the_members(issued: LiveContext) -> None:
    products = open_products(issued.folder)
    members = products["rain_rate"].values
    for i, threshold in enumerate([0.3, 2]):
        expected = (members >= np.float32(threshold)).mean(axis=2)
        np.testing.assert_allclose(products["rain_rate_at_least"].values[:, :, i], expected, atol=1e-6)
    assert 0 < products["rain_rate_at_least"].mean() < 1
    assert products["rain_rate_at_least"].attrs["units"] == "1"
    assert products["rain_rate_threshold"].attrs["units"] == "mm h-1"
    expected = np.quantile(members, [0.1, 0.5, 0.9], axis=2, method="hazen")
    np.testing.assert_allclose(np.moveaxis(products["rain_rate_quantile"].values, 2, 0), expected, rtol=1e-4, atol=1e-6)
    assert products["quantile"].attrs["standard_name"] == "quantile"


def test_copies_hold_them_too(issued: LiveContext) -> None:
    products = open_products(issued.folder, START, START)
    with xr.open_dataset(issued.folder / COPIES / f"{stamp(START)}.products.nc", engine="h5netcdf") as copy:
        np.testing.assert_array_equal(copy["rain_rate_at_least"].values, products["rain_rate_at_least"].values)
        assert copy["rain_rate"].dims[2] == "member"
    folder = issued.folder / COPIES / stamp(START)
    with rasterio.open(folder / "rain_rate_at_least_0.3_010min.tif") as image:
        expected = products["rain_rate_at_least"].values[0, 1, 0]
        upwards = products["y"].values[0] < products["y"].values[-1]
        np.testing.assert_array_equal(image.read(1), expected[::-1] if upwards else expected)
    assert (folder / "rain_rate_member_4_020min.tif").is_file()
    assert (folder / "rain_rate_quantile_0.9_005min.tif").is_file()


def test_issued_members_are_verified_as_the_library_scores_does(issued: LiveContext) -> None:
    with Ledger(issued.folder / LEDGER, read_only=True) as ledger:
        verified = ledger.verifications()
    score = scores_of(verified[:1])[0]
    products = open_products(issued.folder, START, START)
    valid_times = issued.schedule.valid_times(START)
    observed = xr.DataArray(issued.observations.read(valid_times, ["rain_rate"])[:, 0], dims=("lead_time", "y", "x"))
    members = xr.DataArray(products["rain_rate"].values[0], dims=("lead_time", "member", "y", "x"))
    expected = scores.probability.crps_for_ensemble(members, observed, "member", preserve_dims="lead_time")
    np.testing.assert_allclose(score.crps, expected.values, rtol=1e-5)
    event = scores.probability.brier_score_for_ensemble(
        members, observed, "member", 0.5, fair_correction=False, preserve_dims="lead_time"
    )
    np.testing.assert_allclose(np.array(score.brier)[:, 0], event.values.ravel(), rtol=1e-5)
    write_page(read_status(issued.params, issued.folder, issued.clock), issued.folder, issued.folder / "status.html")
    page = (issued.folder / "status.html").read_text()
    assert "CRPS" in page
    assert "in 90 % interval" in page


def test_reliability_of_issued_probabilities_is_counted_and_drawn(issued: LiveContext) -> None:
    with Ledger(issued.folder / LEDGER, read_only=True) as ledger:
        verified = ledger.verifications()
    counted = np.zeros((3, 10))
    for one in verified:
        members = open_products(issued.folder, one.init_time, one.init_time)["rain_rate"].values[0]
        observed = issued.observations.read(issued.schedule.valid_times(one.init_time), ["rain_rate"])[:, 0]
        probability, event = (members >= np.float32(0.5)).mean(axis=1), observed >= np.float32(0.5)
        bins = np.minimum((10 * probability).astype(int), 9).ravel()
        parts = (np.ones(bins.size), probability.ravel(), event.ravel())
        counted += [np.bincount(bins, part, minlength=10) for part in parts]
    score = scores_of(verified)[0]
    np.testing.assert_allclose([sums[0] for sums in score.reliability.values()], counted, rtol=1e-6)
    charts = reliability_charts(score)
    assert charts
    assert charts[0].description.startswith("Reliability of rain rate ≥ 0.5 mm/h: mean probability 0.")
    write_page(read_status(issued.params, issued.folder, issued.clock), issued.folder, issued.folder / "status.html")
    assert charts[0].description in (issued.folder / "status.html").read_text()


def test_a_flipped_byte_of_a_product_is_named(tmp_path: Path) -> None:
    context = quantiles_context(tmp_path)
    cycle.run(context)
    path = path_of(context.folder, START) / "products"
    chunk = next(file for file in (path / "rain_rate_at_least" / "c").rglob("*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedError, match="products/rain_rate_at_least"):
        open_products(context.folder)


def test_a_forecast_of_single_values_has_none_and_pools_with_those_that_have(tmp_path: Path) -> None:
    context = quantiles_context(tmp_path, late_data={"deadline_minutes": 0, "max_missing_frames": 0})
    cycle.run(context)
    prepared = cycle.prepare(context, context.new_cycle(START), START, {})
    assert isinstance(prepared, cycle.Prepared)
    context.clock.sleep(300)
    single = context.model.fallback("persistence", prepared.history, to_numpy(START), 0)
    assert single.shape == (1, 4, 1, 16, 16)
    cycle.run(context, compute=lambda prepared: single)
    assert open_forecasts(context.folder).sizes["init_time"] == 2
    assert open_products(context.folder).sizes["init_time"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "checkpoint"}, r"live.products asks for members .* persistence forecasts single values"),
        ({"products": {"exceed": {"snow": [1]}}}, r"live.products.exceed has snow, .* expected names among rain_rate"),
    ],
)
def test_what_the_model_cannot_give_is_refused_before_any_work(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    live_context(tmp_path)
    with pytest.raises(InputError, match=message):
        quantiles_context(tmp_path, **changes)


def test_without_products_readers_are_told_how_to_get_them(tmp_path: Path) -> None:
    context = live_context(tmp_path)
    cycle.run(context)
    with pytest.raises(InputError, match=r"has products: set live\.products"):
        open_products(context.folder)
