import imageio.v3 as iio
import numpy as np
import pytest
import xarray as xr

from pipeline import figures
from pipeline.figures import Case, Panel

LEADS, NY, NX = 3, 7, 11


@pytest.fixture
def case():
    leads = (np.arange(1, LEADS + 1) * np.timedelta64(5, "m")).astype("timedelta64[ns]")
    metres = {"units": "m"}
    rain = xr.DataArray(
        np.random.default_rng(2).gamma(1, 3, (LEADS, NY, NX)).astype(np.float32),
        {"lead_time": leads, "y": ("y", np.arange(NY)[::-1] * 1e3, metres), "x": ("x", np.arange(NX) * 1e3, metres)},
        ("lead_time", "y", "x"), "rain_rate", {"units": "mm h-1"},
    )  # fmt: skip
    observed = rain.copy()
    observed[:, 0, 0] = np.nan
    return Case(np.datetime64("2020-06-01T12:00"), observed, {"persistence": rain, "convlstm": rain * 2})


@pytest.fixture
def panels():
    nan = float("nan")
    values = {"persistence": {5: 1.0, 10: 2.0}, "convlstm": {5: 0.5, 10: nan}, "mine": {5: 0.7, 10: 0.8}}
    undefined = {model: {5: nan, 10: nan} for model in values}
    return [Panel("RMSE", "mm/h", values), Panel("CSI", "", undefined, perfect=1.0, limits=(0, 1))]


def test_equal_figures_are_equal_bytes(case, panels, tmp_path):
    for name in ("a", "b"):
        figures.write_png(figures.skill_figure(panels, ["persistence"], "note"), tmp_path / f"{name}.png")
        figures.write_png(figures.case_figure(case, 2), tmp_path / f"{name}_case.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a_case.png").read_bytes() == (tmp_path / "b_case.png").read_bytes()


def test_the_case_names_its_models_times_and_axes(case):
    figure = figures.case_figure(case, 3)
    text = " ".join(
        text for axis in figure.axes for text in (
            axis.get_title(), axis.get_xlabel(), axis.get_ylabel(), *(note.get_text() for note in axis.texts)
        )
    )  # fmt: skip
    for expected in (
        "observed",
        "persistence",
        "convlstm",
        "12:05 UTC (+5 min)",
        "12:15 UTC",
        "x, km",
        "y, km",
        "mm/h",
    ):
        assert expected in text


def test_the_animation_has_a_frame_for_each_lead(case, tmp_path):
    frames = figures.case_animation(case)
    figures.write_gif(frames, tmp_path / "case.gif")
    assert iio.imread(tmp_path / "case.gif").shape[:3] == (LEADS, *frames[0].shape[:2])
    assert not np.array_equal(frames[0], frames[1])
    assert case.observed.isel(lead_time=0).isnull().sum() == 1  # drawing changed nothing


def test_an_animation_of_one_frame_is_a_picture(case, tmp_path):
    frames = figures.case_animation(case)[:1]
    figures.write_gif(frames, tmp_path / "one.gif")
    assert iio.imread(tmp_path / "one.gif").shape[-3:-1] == frames[0].shape[:2]


def test_a_tile_is_small_and_in_colour(case):
    tile = figures.case_strip(case, "convlstm")
    assert tile.dtype == np.uint8
    assert tile.shape[1:] == (512, 3)
    assert 200 < tile.shape[0] <= 768


def test_missing_cells_are_grey_and_colours_are_the_observed_range(case):
    cmap, _ = figures.colour_scale(case.observed)
    assert cmap(np.ma.masked_invalid([np.nan]))[0][:3] == pytest.approx((196 / 255,) * 3)
    warm = (case.observed + 280).assign_attrs(units="K")
    _, norm = figures.colour_scale(warm)
    assert 280 <= norm.vmin < norm.vmax < 330


def test_each_model_has_one_style(panels):
    names = list(panels[0].values)
    colours = {figures.model_style(name, ["persistence"], names)["color"] for name in names}
    assert len(colours) == 3
    assert figures.model_style("convlstm", [], names)["linestyle"] == "-"


def test_leads_are_spread_to_the_last():
    assert figures.spread_out(4, 12) == [2, 5, 8, 11]
    assert figures.spread_out(4, 2)[-1] == 1
    assert figures.spread_out(3, 1) == [0]
    assert figures.lead_unit([60, 120, 180]) == (60, "hours")
    assert figures.lead_unit([5, 60]) == (1, "minutes")
