import imageio.v3 as iio
import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from fieldcast.pipeline.report import maps
from fieldcast.pipeline.report import style as figures
from fieldcast.pipeline.report.maps import Case

LEADS, NY, NX = 3, 7, 11


@pytest.fixture
def case() -> Case:
    leads = (np.arange(1, LEADS + 1) * np.timedelta64(5, "m")).astype("timedelta64[ns]")
    metres = {"units": "m"}
    rain = xr.DataArray(
        np.random.default_rng(2).gamma(1, 3, (LEADS, NY, NX)).astype(np.float32),
        {"lead_time": leads, "y": ("y", np.arange(NY)[::-1] * 1e3, metres), "x": ("x", np.arange(NX) * 1e3, metres)},
        ("lead_time", "y", "x"), "rain_rate", {"units": "mm h-1"},
    )  # fmt: skip
    observed = rain.copy()
    observed[:, 0, 0] = np.nan
    coast = [np.array([[-500.0, 3000.0], [10500.0, 3000.0]])]  # metres, from edge to edge
    return Case(np.datetime64("2020-06-01T12:00"), observed, {"persistence": rain, "convlstm": rain * 2}, coast)


def test_a_case_is_cut_from_observations_and_the_mean_of_members(case):
    init = case.init_time.astype("datetime64[ns]")
    times = init + case.observed.lead_time.values
    observed = case.observed.rename(lead_time="time").assign_coords(time=times)
    members = xr.concat([case.forecasts["persistence"], case.forecasts["convlstm"]], "member").transpose(
        "lead_time", "member", "y", "x"
    )
    forecasts = members.expand_dims(init_time=[init])
    forecasts = forecasts.assign_coords(valid_time=forecasts.init_time + forecasts.lead_time)
    cut = maps.case_of(observed, {"mine": forecasts}, init, case.coast)
    np.testing.assert_allclose(cut.forecasts["mine"], 1.5 * case.forecasts["persistence"], rtol=1e-6)
    np.testing.assert_array_equal(cut.observed, case.observed)
    assert cut.forecasts["mine"].attrs["units"] == "mm h-1"
    assert cut.coast is case.coast


def test_equal_cases_are_equal_bytes(case, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        figures.write_png(maps.case_figure(case, 2), tmp_path / name / "case.png")
        maps.write_map_series(case, tmp_path / name, "case", "title")
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert [path.name for path in first] == [
        "case.png", "case_bar.png", "case_lead_0005.webp", "case_lead_0010.webp", "case_lead_0015.webp",
        "case_lines.png", "case_scale.png",
    ]  # fmt: skip


def test_the_case_names_its_models_times_and_axes(case):
    figure = maps.case_figure(case, 3)
    labels = [label for axis in figure.axes for label in (axis.get_xlabel(), axis.get_ylabel())]
    text = " ".join([*labels, *(note.get_text() for note in figure.texts)])
    for expected in (
        "observed", "persistence", "convlstm", "12:05 UTC (+5 min)", "12:15 UTC", "x, km", "y, km", "mm/h",
        "Forecasts from 2020-06-01 12:00 UTC",
    ):  # fmt: skip
        assert expected in text
    first, *_ = figure.axes
    assert (first.get_xlim(), first.get_ylim()) == ((-0.5, 10.5), (-0.5, 6.5))


def test_the_case_figure_shows_tiles_axes_and_colours(case):
    picture = figures.pixels(FigureCanvasAgg(maps.case_figure(case, 3)))
    tile = case.tiles.field("convlstm", 2)[1:-1, 1:-1]
    rows = np.lib.stride_tricks.sliding_window_view(picture[..., 0], tile.shape[:2])
    assert (rows[:, :, ::20, ::20] == tile[::20, ::20, 0]).all(axis=(2, 3)).any()
    bar = picture[:, -90:].reshape(-1, 3)
    for colour in (figures.RAIN_COLOURS[0], figures.RAIN_COLOURS[-1]):
        assert (bar == np.round(255 * np.asarray(to_rgb(colour)))).all(axis=1).any()


def test_coastlines_are_on_every_map(case):
    without = Case(case.init_time, case.observed, case.forecasts).tiles
    for name in ("observed", "convlstm"):
        changed = (case.tiles.field(name, 1) != without.field(name, 1)).any(axis=2)
        (rows,) = np.nonzero(changed.any(axis=1))
        assert changed[rows].all(axis=1).any()  # from edge to edge
        assert abs(rows.mean() + 0.5 - changed.shape[0] * 3.5 / NY) < 2  # y of 3 km is the middle of 7 rows
    assert (case.tiles.difference("convlstm", 0) != without.difference("convlstm", 0)).any()


def test_the_animation_has_a_frame_for_each_lead(case, tmp_path):
    frames = maps.case_animation(case)
    figures.write_gif(frames, tmp_path / "case.gif")
    assert iio.imread(tmp_path / "case.gif").shape[:3] == (LEADS, *frames[0].shape[:2])
    assert not np.array_equal(frames[0], frames[1])
    assert case.observed.isel(lead_time=0).isnull().sum() == 1  # drawing changed nothing


def test_an_animation_of_one_frame_is_a_picture(case, tmp_path):
    frames = maps.case_animation(case)[:1]
    figures.write_gif(frames, tmp_path / "one.gif")
    assert iio.imread(tmp_path / "one.gif").shape[-3:-1] == frames[0].shape[:2]


def test_a_tile_is_small_and_in_colour(case):
    tile = maps.case_strip(case, "convlstm")
    assert tile.dtype == np.uint8
    assert tile.shape[2] == 3
    assert 512 <= tile.shape[1] <= 768
    assert 200 < tile.shape[0] <= 768
    assert (tile == np.array([196] * 3, np.uint8)).all(axis=2).any()  # the missing cell


def test_a_sheet_holds_a_column_of_tiles_for_each_model(case):
    without_coast = Case(case.init_time, case.observed, case.forecasts)
    _, _, sheet = maps.sheets(without_coast, [0, 1, 2])
    height, width = sheet.shape[0] // 2, sheet.shape[1] // 3
    field, norm = figures.colour_scale(case.observed)
    difference, steps = figures.difference_scale([case.observed])

    def shown(row: int, column: int, y: int, x: int) -> np.ndarray:
        """Return the colour in the middle of cell (y, x) of a tile."""
        down = (row + (y + 0.5) / NY) * height
        return sheet[int(down), int((column + (x + 0.5) / NX) * width)] / 255

    for y, x in ((3, 5), (5, 2)):
        value = float(case.observed[2, y, x])
        assert shown(0, 0, y, x) == pytest.approx(field(norm(value))[:3], abs=0.01)
        assert shown(0, 2, y, x) == pytest.approx(field(norm(2 * value))[:3], abs=0.01)
        assert shown(1, 1, y, x) == pytest.approx(difference(steps(0.0))[:3], abs=0.01)
        assert shown(1, 2, y, x) == pytest.approx(difference(steps(value))[:3], abs=0.01)
    assert shown(1, 1, 0, 0) == pytest.approx((196 / 255,) * 3, abs=0.01)  # missing
    assert shown(1, 0, 3, 5).tolist() == [1, 1, 1]  # the observed has no difference


def test_a_series_says_when_its_sheets_are_valid(case, tmp_path):
    series = maps.write_map_series(case, tmp_path, "case_1", "The wettest")
    assert list(series.labels) == ["12:05 UTC (+5 min)", "12:10 UTC (+10 min)", "12:15 UTC (+15 min)"]
    assert list(series.models) == ["persistence", "convlstm"]
    sheet = iio.imread(series.sheets[0])
    assert sheet.shape[:2] == (2 * NY, 3 * NX)  # a pixel a cell
    lines = iio.imread(series.lines)
    assert lines.shape == (2 * series.tile[1], 2 * series.tile[0], 4)
    assert (lines[..., 3] == 0).any()
    assert (lines[..., 3] > 0).any()
    assert series.scale.exists()


def test_leads_are_thinned_where_sheets_take_too_much_room(case, tmp_path):
    whole = maps.write_map_series(case, tmp_path, "a", "")
    sizes = [path.stat().st_size for path in whole.sheets]
    few = maps.write_map_series(case, tmp_path, "b", "", most_bytes=sum(sizes) - 1)
    assert len(few.labels) == 2
    assert few.labels[-1] == whole.labels[-1]
    (last,) = maps.write_map_series(case, tmp_path, "c", "", most_bytes=1).labels
    assert last == whole.labels[2]


def test_large_grids_are_sampled_as_tiles_are(case):
    wide = case.observed.isel(y=np.arange(700) % NY, x=np.arange(1100) % NX)
    wide = wide.assign_coords(y=np.arange(700)[::-1] * 1e3, x=np.arange(1100) * 1e3)
    large = Case(case.init_time, wide, {"twice": wide * 2})
    (sheet,) = maps.sheets(large, [0])
    assert sheet.shape[:2] == (2 * large.tiles.height, 2 * large.tiles.width)
