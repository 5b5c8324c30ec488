import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.verification import aggregation as sums
from fieldcast.pipeline.verification import categorical, continuous
from fieldcast.pipeline.verification import strata as groups

EVERYTHING = sums.Extras(
    rows=np.linspace(0.5, 1.5, 23),
    climatology=np.full((1, 23, 19), 1.5, np.float32),
    data_range=9.0,
    spacing=(2.0, 2.0),
    regions=[(slice(2, 9), slice(4, 19)), (slice(0, 23), slice(0, 3))],
)


@pytest.fixture
def members(fields):
    """Return the fixture's fields with seven members, some of them equal to the observation."""
    forecast, observed, valid = fields
    rng = np.random.default_rng(8)
    spread = rng.gamma(0.7, 1, (*forecast.shape[:2], 7, *forecast.shape[2:])).astype(np.float32)
    many = forecast[:, :, None] * 0.5 + spread
    many[:, :, 2] = np.where(rng.random(forecast.shape) < 0.3, observed, many[:, :, 2])
    return many, observed, valid


def test_blocks_merge_to_the_whole(labelled, fields):
    whole = labelled(*fields)
    first = labelled(*(field[:2] for field in fields))
    rest = labelled(*(field[2:] for field in fields)).assign_coords(init_time=whole.init_time[2:])
    xr.testing.assert_identical(xr.concat([first, rest], "init_time"), whole)


def test_chunks_of_frames_change_nothing(labelled, fields, monkeypatch):
    whole = labelled(*fields, extras=EVERYTHING)
    monkeypatch.setattr(sums, "CELLS_AT_ONCE", 1)
    xr.testing.assert_allclose(labelled(*fields, extras=EVERYTHING), whole, rtol=1e-12)


def test_the_order_of_init_times_changes_no_score(labelled, members):
    order = [3, 0, 4, 1, 2]
    fields = members
    permuted = labelled(*(field[order] for field in fields), extras=EVERYTHING)
    scores = sums.score_arrays(permuted, "mm h-1")
    for name, values in sums.score_arrays(labelled(*fields, extras=EVERYTHING), "mm h-1").items():
        np.testing.assert_allclose(scores[name], values, rtol=1e-12, err_msg=name.key())


def test_counts_add_up_to_the_valid_cells(labelled, fields):
    own = labelled(*fields)
    total = sum(own[name] for name in categorical.SUMS)
    assert (total == own["n"]).all()


def test_the_crc_tells_masks_of_equal_size_apart(labelled, fields):
    forecast, observed, valid = fields
    other = np.roll(valid, 1, axis=-1)
    own, rolled = labelled(forecast, observed, valid), labelled(forecast, observed, other)
    assert (own["n"] == rolled["n"]).all()
    assert (own["valid_crc"] != rolled["valid_crc"]).all()


def test_video_mse_is_cells_times_mse_without_missing_cells(labelled, fields):
    own = labelled(*fields[:2])
    cells = fields[0][0, 0].size
    np.testing.assert_allclose(continuous.mse_frame(own), continuous.rmse(own) ** 2 * cells)


def test_resampled_sums_have_scores_of_their_own(labelled, members):
    """Draws of init times, summed beforehand, give the scores of a verification of these init times."""
    own = labelled(*members, extras=EVERYTHING)
    draws = [[0, 0, 3, 1, 4], [2, 2, 2, 1, 0]]
    drawn = [own.isel(init_time=draw).sum("init_time").expand_dims(init_time=1) for draw in draws]
    resampled = sums.score_arrays(xr.concat(drawn, "replicate"), "mm h-1")
    for i, draw in enumerate(draws):
        for name, values in sums.score_arrays(own.isel(init_time=draw), "mm h-1").items():
            assert resampled[name].dims[0] == "replicate", name
            np.testing.assert_allclose(resampled[name][i], values, rtol=1e-10, err_msg=name.key())


def test_rows_of_ones_change_nothing(labelled, members):
    even = sums.Extras(rows=np.ones(23), data_range=9.0)
    for fields in (members, (members[0][:, :, 0], *members[1:])):
        xr.testing.assert_allclose(
            labelled(*fields, extras=even), labelled(*fields, extras=sums.Extras(data_range=9.0)), rtol=1e-12
        )


def test_classes_add_up_to_the_field(labelled, members):
    own = labelled(*members, extras=EVERYTHING)
    for name in (*groups.CLASS_SUMS, "crps"):
        np.testing.assert_allclose(own[f"class_{name}"].sum("class"), own[name], rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(own["forecast_class_covered"].sum("class"), own["interval_covered"])
    np.testing.assert_allclose(own["rank_histogram"].sum("rank"), own["weight"])
    by_class = groups.by_intensity(own)
    assert list(by_class) == ["below 0.5", "0.5 to 2", "2 and above"]
    _, observed, valid = members
    strong = np.where(valid & (observed >= 2), members[0].mean(axis=2) - observed, np.nan)
    plain = groups.by_intensity(labelled(*members, extras=sums.Extras()))["2 and above"]
    np.testing.assert_allclose(continuous.mae(plain), np.nanmean(np.abs(strong), axis=(0, 2, 3)), rtol=1e-5)


def test_groups_of_init_times_add_up(labelled, fields):
    own = labelled(*fields)
    gaps = np.array([0, 60, 120, 1500, 1560]) * np.timedelta64(60, "s").astype("timedelta64[ns]")
    own = own.assign_coords(init_time=np.datetime64("2020-01-01T05:00", "ns") + gaps)
    assert {name: part.sizes["init_time"] for name, part in groups.by_hour(own).items()} == {
        "05": 1, "06": 2, "07": 2,
    }  # fmt: skip
    events = groups.by_event(own)
    assert {name: part.sizes["init_time"] for name, part in events.items()} == {
        "2020-01-01T05:00": 3, "2020-01-02T06:00": 2,
    }  # fmt: skip
    np.testing.assert_allclose(sum(part["n"].sum() for part in events.values()), own["n"].sum())
    assert list(groups.by_event(own.isel(init_time=[0]))) == ["2020-01-01T05:00"]
    assert groups.by_region(own) == {}
