import math

import numpy as np
import pytest
import xarray as xr
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from fieldcast.pipeline.datasets.labels import lead_unit
from fieldcast.pipeline.report import plots as diagrams
from fieldcast.pipeline.report import style as figures
from fieldcast.pipeline.report.plots import Bins, Gain, Panel, Performance, Reliability, Spectrum, apart
from tests.conftest import ROOT

NAMES = ["persistence", "convlstm", "mine"]
STYLES = figures.model_styles(NAMES, ["persistence"])
NAN = float("nan")


@pytest.fixture
def panels() -> list[Panel]:
    values = {"persistence": {5: 1.0, 10: 2.0}, "convlstm": {5: 0.5, 10: NAN}, "mine": {5: 0.7, 10: 0.8}}
    undefined = {model: {5: NAN, 10: NAN} for model in values}
    return [Panel("RMSE", "mm/h", values), Panel("CSI", "", undefined, 1.0, (0, 1))]


def test_equal_figures_are_equal_bytes(panels, tmp_path):
    for name in ("a", "b"):
        pictures = [figures.pixels(FigureCanvasAgg(diagrams.panel_figure(panel, STYLES))) for panel in panels]
        figures.write_png(diagrams.skill_figure(pictures, NAMES, STYLES, "note"), tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_panel_shows_its_values_alone(panels):
    (axis,) = diagrams.panel_figure(panels[0], STYLES).axes
    drawn = {line.get_color(): line.get_ydata() for line in axis.lines}
    assert drawn[STYLES["mine"]["color"]] == pytest.approx([0.7, 0.8])
    assert not axis.collections
    (empty,) = diagrams.panel_figure(panels[1], STYLES).axes
    assert [text.get_text() for text in empty.texts] == ["undefined: no such event"]
    assert empty.lines[-1].get_ydata() == [1.0, 1.0]


GAIN = Gain(
    "Δ RMSE",
    "below 0: better",
    {
        "persistence": {5: (0.0, 0.0, 0.0), 10: (0.0, 0.0, 0.0), 15: (9.0, 8.0, 10.0)},
        "climatology": {5: (7.0, 6.0, 8.0), 10: (5.0, 4.0, 6.0), 15: (0.0, 0.0, 0.0)},
        "convlstm": {5: (0.2, 0.1, 0.3), 10: (-0.1, -0.4, 0.2), 15: (NAN, NAN, NAN)},
        "mine": {5: (0.5, 0.4, 0.6), 10: (0.5, 0.4, 0.6), 15: (0.5, 0.4, 0.6)},
    },
    {5: "persistence", 10: "persistence", 15: "climatology"},
    ["convlstm"],
)


def test_differences_are_lines_in_bands_about_the_best_reference():
    styles = figures.model_styles(list(GAIN.differences), ["persistence", "climatology"])
    (axis,) = diagrams.gain_figure(GAIN, styles).axes
    lines = [(line.get_color(), list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]
    colour = {name: style["color"] for name, style in styles.items()}
    assert (colour["mine"], [5, 10, 15], [0.5, 0.5, 0.5]) in lines
    assert (colour["persistence"], [5, 12.5], [0, 0]) in lines  # half way to the lead where another is the best
    assert (colour["climatology"], [12.5, 15], [0, 0]) in lines
    (band,) = axis.collections
    assert tuple(band.get_facecolor()[0][:3]) == to_rgb(colour["convlstm"])
    low, high = axis.get_ylim()
    assert -0.6 < low < -0.4
    assert 0.3 < high < 0.5  # references that are far off leave the picture


def test_no_model_of_the_default_project_looks_like_another() -> None:
    names = list(yaml.safe_load((ROOT / "params.yaml").read_text())["models"])
    styles = figures.model_styles([*names, "one", "two", "three"], [])
    assert len({style["color"] for style in styles.values()}) == len(styles)


def test_each_model_has_one_style():
    many = [*NAMES, *(f"model_{k}" for k in range(5))]
    styles = figures.model_styles(many, ["persistence"])
    for own in (styles, figures.model_styles(many, many)):
        assert len({(style["color"], str(style["linestyle"])) for style in own.values()}) == len(many)
    assert styles["convlstm"]["linestyle"] == "-"
    assert styles["persistence"]["zorder"] < styles["mine"]["zorder"]
    assert figures.model_styles(many[::-1], [])["mine"]["color"] == styles["mine"]["color"]


def test_spectra_run_from_large_to_small_scales():
    wave = np.array([128.0, 16.0, 2.0])
    spectra = [Spectrum(lead, wave, wave**2, {"mine": wave**3}) for lead in (5, 240)]
    first, second = diagrams.spectra_figure(spectra, STYLES).axes
    assert first.get_xlim() == (128, 2)
    assert second.get_title("left") == "Lead 4 hours"
    assert first.lines[1].get_ydata() == pytest.approx(wave**3)
    assert [label.get_text() for label in first.get_xticklabels()] == ["2", "5", "10", "20", "50", "100"]


def test_reliability_is_frequency_over_mean_probability():
    bins = Bins(np.array([10.0, 0.0, 4.0]), np.array([1.0, 0.0, 3.2]), np.array([2.0, 0.0, 4.0]))
    upper, lower = diagrams.reliability_figure(Reliability("≥ 1 mm/h", {"mine": bins}), STYLES).axes
    assert upper.lines[1].get_xdata() == pytest.approx([0.1, 0.8])
    assert upper.lines[1].get_ydata() == pytest.approx([0.2, 1.0])
    assert upper.lines[2].get_ydata() == pytest.approx([6 / 14, 6 / 14])  # how often the event came
    assert lower.lines[0].get_ydata() == pytest.approx([10 / 14, NAN, 4 / 14], nan_ok=True)


def test_ranks_are_relative_to_a_flat_histogram():
    (axis,) = diagrams.rank_figure("mine", np.array([2.0, 4.0, 6.0]), STYLES).axes
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([0.5, 1.0, 1.5])
    (empty,) = diagrams.rank_figure("mine", np.zeros(3), STYLES).axes
    assert [bar.get_height() for bar in empty.patches] == [0, 0, 0]


def test_performance_places_pod_over_success_ratio():
    points = {"mine": (0.7, 0.4), "convlstm": (NAN, 0.1)}
    (axis,) = diagrams.performance_figure(Performance("≥ 1", points), STYLES).axes
    assert [line.get_xydata()[0].tolist() for line in axis.lines if line.get_marker() == "o"] == [[0.6, 0.7]]
    named = {text.get_text() for text in axis.texts}
    assert "mine" in named
    assert "convlstm" not in named


def test_cost_leaves_out_what_nobody_measured():
    times, skill = (
        {"mine": 3.0, "convlstm": 0.0, "persistence": 0.5},
        {"mine": 0.2, "convlstm": 0.1, "persistence": 0.0},
    )
    (axis,) = diagrams.cost_figure(times, skill, "MSE skill", STYLES).axes
    assert {text.get_text() for text in axis.texts} == {"mine", "persistence"}
    assert diagrams.cost_figure({}, {}, "MSE skill", STYLES).axes


def test_names_do_not_lie_on_one_another():
    assert apart([0.5, 0.1, 0.9], 0.05) == [0.5, 0.1, 0.9]
    assert apart([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    places = apart([0.3, 0.31, 0.7, 0.305, 0.69], 0.05)
    assert np.diff(sorted(places)).min() == pytest.approx(0.05)
    assert np.argsort(places).tolist() == [0, 3, 1, 4, 2]


def test_missing_cells_are_grey_and_colours_are_the_observed_range():
    rain = xr.DataArray([[0.3, NAN]], dims=("y", "x"), attrs={"units": "mm h-1"})
    cmap, _ = figures.colour_scale(rain)
    assert cmap(np.ma.masked_invalid([NAN]))[0][:3] == pytest.approx((196 / 255,) * 3)
    warm = xr.DataArray([[280.0, 285.0]], dims=("y", "x"), attrs={"units": "K"})
    _, norm = figures.colour_scale(warm)
    assert 280 <= norm.vmin < norm.vmax < 285.1


def test_differences_are_white_around_zero_and_alike_on_both_sides():
    errors = xr.DataArray(np.linspace(-4.2, 1, 500).reshape(20, 25), dims=("y", "x"), attrs={"units": "K"})
    cmap, norm = figures.difference_scale([errors])
    assert norm.boundaries.tolist() == [-5, -4, -3, -2, -1, 1, 2, 3, 4, 5]
    assert min(cmap(norm(0.9))[:3]) > 0.95
    assert cmap(norm(-9.0)) == cmap(norm(-5.5)) != cmap(norm(-4.5))
    red, _, blue, _ = cmap(norm(4.5))
    assert red > blue
    _, none = figures.difference_scale([errors * NAN])
    assert none.boundaries.tolist()[5:] == [1, 2, 3, 4, 5]
    _, rain = figures.difference_scale([errors.assign_attrs(units="mm h-1")])
    assert rain.boundaries.tolist()[5:] == list(figures.RAIN_STEPS)


def test_leads_are_spread_to_the_last():
    assert figures.spread_out(4, 12) == [2, 5, 8, 11]
    assert figures.spread_out(4, 2)[-1] == 1
    assert figures.spread_out(3, 1) == [0]
    assert lead_unit([60, 120, 180]) == (60, "hours")
    assert lead_unit([5, 60]) == (1, "minutes")


def test_colours_stand_off_the_paper():
    for style in STYLES.values():
        luminance = float(np.dot(to_rgb(style["color"]), (0.2126, 0.7152, 0.0722)))
        assert math.isfinite(luminance)
        assert luminance < 0.7
