"""Forecasts for places, from a schedule to files and scores: members summed, copies, stations, status page, command."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scores.probability
import xarray as xr
from typer.testing import CliRunner

from fieldcast.pipeline.cli.main import app
from fieldcast.pipeline.datasets.times import to_numpy
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.forecasting.calibration import Calibration
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.archive.exports import remove_copies
from fieldcast.pipeline.live.archive.ledger import Ledger
from fieldcast.pipeline.live.archive.publish import COPIES, LEDGER, check, open_forecasts, open_products, path_of
from fieldcast.pipeline.live.clock import stamp
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.monitoring.page import write_page
from fieldcast.pipeline.live.monitoring.status import read_status
from fieldcast.pipeline.live.places.forecaster import PlaceForecaster
from fieldcast.pipeline.live.places.issue import open_places
from fieldcast.pipeline.live.places.ranges import COUNT, FILE, RangeCalibration, Ranges, packed
from fieldcast.pipeline.live.places.scores import place_scores
from fieldcast.pipeline.live.places.stations import read_stations
from tests.live.contexts import START, live_context, minutes, write_learned
from tests.live.places.files import POINT, SQUARE, feature, write

OPTIONS = {"output": "quantiles", "members": 4, "channels": 3, "levels": 1}
STATIONS = "name,time,rain_rate\nTown,2024-06-01T06:05Z,1.5\nTown,2024-06-01T06:10Z,\nElsewhere,2024-06-01T06:05Z,9\n"


def places_context(root: Path, **changes: Any) -> LiveContext:
    """Return a context with two places whose ranges are offset by 0.25 in all ranks, as if that had been fitted."""
    write(root / "places.geojson", feature(POINT, "Town"), feature(SQUARE, "Catchment"))
    if not (root / "quantiles").exists():
        write_learned(root / "quantiles", "unet", OPTIONS)
    context = live_context(
        root,
        START,
        {"model": "quantiles", "places": "places.geojson", "products": {"members": True}, **changes},
    )
    assert context.places is not None
    offsets, centres = np.full((4, 2, 1, COUNT), 0.25, np.float32), np.zeros((4, 2, 1), np.float32)
    catchment = context.places.places[1]
    ranges = Ranges(context.model.digest, {catchment.shape_key: RangeCalibration(1.0, Calibration(offsets, centres))})
    (root / "live").mkdir(exist_ok=True)
    (root / "live" / FILE).write_bytes(packed(ranges))
    context.places = PlaceForecaster.read(root / "places.geojson", root / "live", context.model.config)
    return context


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> LiveContext:
    """A context after the forecasts of 25 minutes, the first of which has been verified, the town by a station."""
    root = tmp_path_factory.mktemp("issued")
    (root / "stations.csv").write_text(STATIONS)
    context = places_context(root, stations="stations.csv")
    for _ in range(5):
        cycle.run(context)
        context.clock.sleep(300)
    return context


def test_members_are_summed_over_the_area(issued: LiveContext) -> None:
    places = open_places(path_of(issued.folder, START))
    members = open_products(issued.folder, START, START)["rain_rate"].values[0]  # (lead, member, y, x)
    assert places["rain_rate"].dims == ("place", "time")
    of_area = members[:, :, 2:5, 2:6].mean(axis=(2, 3))
    np.testing.assert_allclose(places["rain_rate"].values[1], of_area.mean(axis=1), rtol=1e-5)
    expected = np.quantile(of_area, places["quantile"].values, axis=1, method="hazen")
    np.testing.assert_allclose(places["rain_rate_quantile"].values[:, 1], expected + 0.25, rtol=1e-4)
    mean = open_forecasts(issued.folder, START, START)["rain_rate"].values[0]
    np.testing.assert_allclose(places["rain_rate"].values[0], mean[:, 4, 2], rtol=1e-5)
    of_point = np.quantile(members[:, :, 4, 2], places["quantile"].values, axis=1, method="hazen")
    np.testing.assert_allclose(places["rain_rate_quantile"].values[:, 0], of_point, rtol=1e-4, atol=1e-6)
    assert places["calibrated"].values.tolist() == [0, 1]


def test_amounts_and_volumes_are_sums_over_time_and_area(issued: LiveContext) -> None:
    places = open_places(path_of(issued.folder, START))
    amounts = places["rain_rate"].values.cumsum(axis=1) * 5 / 60
    np.testing.assert_allclose(places["rain_rate_amount"].values, amounts, rtol=1e-5)
    assert places["area"].values[1] == pytest.approx(48)
    np.testing.assert_allclose(places["rain_rate_volume"].values[1], amounts[1] * 48e3, rtol=1e-5)
    assert np.isnan(places["rain_rate_volume"].values[0]).all()
    assert (places["rain_rate_volume"].attrs["units"], places["rain_rate_amount"].attrs["units"]) == ("m3", "mm")


def test_the_copy_is_a_cf_time_series_and_a_table(issued: LiveContext) -> None:
    path = issued.folder / COPIES / f"{stamp(START)}.places.nc"
    with xr.open_dataset(path, engine="h5netcdf") as copy:
        assert (copy.attrs["featureType"], copy.attrs["Conventions"]) == ("timeSeries", "CF-1.11")
        assert copy["place_name"].attrs["cf_role"] == "timeseries_id"
        assert copy["place_name"].values.tolist() == ["Town", "Catchment"]
        assert copy["time"].values[0] == to_numpy(START + minutes(5))
        assert copy["init_time"].attrs["standard_name"] == "forecast_reference_time"
        assert copy["projection_x_coordinate"].values.tolist() == [5, 8]
        assert copy["rain_rate_observed"].dims == ("place", "observed_time")
        observed = issued.observations.read(issued.schedule.history_times(START), ["rain_rate"])
        np.testing.assert_allclose(copy["rain_rate_observed"].values[0], observed[:, 0, 4, 2])
    table = pd.read_csv(issued.folder / COPIES / f"{stamp(START)}.places.csv")
    assert list(table) == ["name", "init_time", "valid_time", "lead_minutes", "quantity", "units", "mean"] + [
        f"p{level}" for level in (10, 30, 50, 70, 90)
    ]
    assert len(table) == 4 * (2 + 3)  # leads; a point has no volume
    row = table.query("name == 'Catchment' and quantity == 'rain_rate_volume' and lead_minutes == 20").iloc[0]
    places = open_places(path_of(issued.folder, START))
    np.testing.assert_allclose(row["p90"], places["rain_rate_volume_quantile"].values[13, 1, 3], rtol=1e-4)
    assert row["valid_time"] == "2024-06-01T06:20:00Z"


def test_what_was_issued_is_verified_against_stations_and_fields(issued: LiveContext) -> None:
    with Ledger(issued.folder / LEDGER, read_only=True) as ledger:
        verified = ledger.verifications()
    found = {(each.place, each.quantity): each for each in place_scores([verified[0].sums["rain_rate"]])}
    places = open_places(path_of(issued.folder, START))
    town = found["Town", "rain_rate"]
    assert (town.truth, town.cases) == ("station", 1)  # one of the four valid times has a value
    ranks = xr.DataArray(places["rain_rate_quantile"].values[:, 0, 0].astype(float), dims="member")
    expected = scores.probability.crps_for_ensemble(ranks, xr.DataArray(1.5), "member", method="ecdf")
    assert town.crps == pytest.approx(float(expected), rel=1e-6)
    catchment = found["Catchment", "rain_rate_amount"]
    valid_times = issued.schedule.valid_times(START)
    field = issued.observations.read(valid_times, ["rain_rate"])[:, 0, 2:5, 2:6].mean(axis=(1, 2))
    amounts = xr.DataArray(field.cumsum() * 5 / 60, dims="lead")
    ranks = xr.DataArray(places["rain_rate_amount_quantile"].values[:, 1].astype(float), dims=("member", "lead"))
    expected = scores.probability.crps_for_ensemble(ranks, amounts, "member", method="ecdf")
    assert (catchment.truth, catchment.cases) == ("field", 4)
    assert catchment.crps == pytest.approx(float(expected), rel=1e-5)


def test_the_status_page_shows_them(issued: LiveContext) -> None:
    status = read_status(issued.params, issued.folder, issued.clock)
    write_page(status, issued.folder, issued.folder / "status.html")
    page = (issued.folder / "status.html").read_text()
    for words in ("Places", "Catchment", "in 80 % range", "Not calibrated for Town: fieldcast places", "station"):
        assert words in page
    assert {each["place"] for each in status.as_dict()["places"]} == {"Town", "Catchment"}


def test_a_flipped_byte_is_named_and_retention_removes_copies(tmp_path: Path) -> None:
    context = places_context(tmp_path)
    cycle.run(context)
    path = path_of(context.folder, START)
    again = places_context(tmp_path / "again" if (tmp_path / "again").mkdir() is None else tmp_path)
    cycle.run(again)
    assert (path_of(again.folder, START) / "places.nc").read_bytes() == (path / "places.nc").read_bytes()
    content = bytearray((path / "places.nc").read_bytes())
    content[100] ^= 1
    (path / "places.nc").write_bytes(content)
    with pytest.raises(DamagedError, match=r"places\.nc"):
        check(path)
    folder = context.folder / COPIES
    assert len(list(folder.iterdir())) == 2
    remove_copies(folder, stamp(START))
    assert list(folder.iterdir()) == []


def test_a_fallback_has_a_value_and_no_range(tmp_path: Path) -> None:
    context = places_context(tmp_path)
    cycle.run(context, compute=lambda prepared: np.ones((1, 4, 1, 16, 16), np.float32))
    assert context.places is not None
    history = np.zeros((3, 1, 16, 16), np.float32)
    forecasts = context.places.forecast(np.ones((1, 4, 1, 16, 16), np.float32), history, "")
    assert all(np.isnan(each.range).all() for each in forecasts)
    assert not any(each.is_calibrated for each in forecasts)
    assert forecasts[1].mean[:, 0] == pytest.approx(1)
    with_range = context.places.forecast(np.ones((1, 4, 1, 16, 16), np.float32), history, context.model.digest)
    np.testing.assert_allclose(with_range[1].range[:, :, 0], 1.25)
    assert np.isnan(with_range[0].range).all()


def test_places_off_the_grid_stop_before_any_work(tmp_path: Path) -> None:
    write(tmp_path / "away.geojson", feature({"type": "Point", "coordinates": [-3, 4]}))
    with pytest.raises(InputError, match=r"'Town' lies off the grid at \[-3, 4\]"):
        live_context(tmp_path, START, {"places": "away.geojson"})
    assert not (tmp_path / "live").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,when,rain_rate\n", "has columns name, when, rain_rate, expected time too: add it"),
        ("name,time,snow\n", "expected rain_rate too"),
        ("name,time,rain_rate\nTown,noon,1\n", "row 2: time is 'noon', expected a time such as"),
        ("name,time,rain_rate\nTown,2024-06-01T06:05Z,1\nTown,2024-06-01T06:10Z,much\n", "row 3: rain_rate is 'much'"),
        ("name,time,rain_rate\nTown,2024-06-01T06:05Z,inf\n", "row 2: rain_rate is 'inf', expected a number"),
        ("name,time,rain_rate\na,2024-06-01T06:05Z,1\na,2024-06-01T06:05,2\n", "row 3: time is 'a at .* once"),
    ],
)
def test_a_wrong_file_of_stations_is_refused_by_row_and_value(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "stations.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_stations(path, ["rain_rate"])


def test_a_file_of_stations_that_is_wrong_holds_up_no_forecast(tmp_path: Path) -> None:
    context = places_context(tmp_path, stations="stations.csv")
    for _ in range(5):
        (outcome,) = cycle.run(context)
        assert outcome.path
        context.clock.sleep(300)
    cycle.run(context)
    with Ledger(context.folder / LEDGER, read_only=True) as ledger:
        assert ledger.verifications() == []
    (tmp_path / "stations.csv").write_text(STATIONS)
    cycle.run(context)
    with Ledger(context.folder / LEDGER, read_only=True) as ledger:
        assert len(ledger.verifications()) == 2


def test_the_command_needs_a_file_of_places(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((Path(__file__).parents[3] / "params.yaml").read_text())
    result = CliRunner().invoke(app, ["places", "--params", str(path)])
    assert result.exit_code == 2
    assert "has no live.places" in result.output
