import numpy as np
import pytest

from fieldcast.pipeline.config.sources import GriddedOptions, IngestOptions, RadarOptions
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.ingest import ingest


def radar(archive, kind, **more) -> RadarOptions:
    return RadarOptions.model_validate({"path": str(archive / "radar" / kind), "format": kind, **more})


def test_knmi_keeps_what_radars_cannot_see_missing(archive, tmp_path):
    period = ("2010-08-26T05:00", "2010-08-26T06:00")
    ingest(radar(archive, "knmi", period=period), IngestOptions(shard_frames=6), tmp_path / "o.zarr")
    observed = store.open_observations(tmp_path / "o.zarr")
    assert observed.sizes == {"time": 13, "y": 765, "x": 700}
    assert observed.frame_present.all()
    rain = observed.rain_rate.values
    assert np.isnan(rain).mean() == pytest.approx(0.7437, abs=1e-3)
    assert np.nanmin(rain) == 0
    assert observed.spatial_ref.attrs["grid_mapping_name"] == "polar_stereographic"
    assert observed.rain_rate.attrs["standard_name"] == "rainfall_rate"


@pytest.mark.parametrize(
    ("kind", "frames", "shape"), [("knmi", 92, (191, 175)), ("bom", 144, (128, 128)), ("fmi", 40, (306, 190))]
)
def test_whole_radar_archives_twice_give_the_same_bytes(archive, tmp_path, kind, frames, shape):
    for name in ("a", "b"):
        ingest(radar(archive, kind, coarsen=4), IngestOptions(shard_frames=24), tmp_path / f"{name}.zarr")
    observed = store.open_observations(tmp_path / "a.zarr")
    assert observed.rain_rate.shape == (frames, *shape)
    assert np.nanmax(observed.rain_rate.values) > 5
    assert store.directory_digest(tmp_path / "a.zarr") == store.directory_digest(tmp_path / "b.zarr")


def test_era5_has_a_month_of_hours(archive, tmp_path):
    source = GriddedOptions(path=str(archive / "era5" / "era5-2mt-2019-03-uk.grib"), variables=["t2m"])
    ingest(source, IngestOptions(), tmp_path / "o.zarr")
    observed = store.open_observations(tmp_path / "o.zarr").load()
    assert observed.t2m.shape == (744, 33, 49)
    assert not observed.t2m.isnull().any()
    assert float(observed.t2m.mean()) == pytest.approx(280.774, abs=0.01)
    # persistence at +1 h over init times from day 25 is known to be 0.57 K
    late = observed.t2m.sel(time=slice("2019-03-25", None)).values
    assert float(np.sqrt(np.mean((late[1:] - late[:-1]) ** 2))) == pytest.approx(0.57, abs=0.03)
