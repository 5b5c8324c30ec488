"""The report in a real browser: phone and screen, dark and light, by keyboard, in print."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from playwright.sync_api import Browser, Page

from fieldcast.pipeline.datasets.labels import readable
from fieldcast.pipeline.forecasting.costs import Costs
from fieldcast.pipeline.report import html as report
from fieldcast.pipeline.report import maps
from fieldcast.pipeline.report import plots as diagrams
from fieldcast.pipeline.report import style as figures
from fieldcast.pipeline.report.html import Part, Picture
from fieldcast.pipeline.report.plots import Bins, Gain, Panel, Performance, Reliability, Spectrum
from fieldcast.pipeline.report.tables import Cell, Differences, Groups, Matrix
from fieldcast.pipeline.verification.scores import Score

RMSE = Score("rmse")
REFERENCES = ("persistence", "climatology", "damped_persistence", "advection")
MODELS = (*REFERENCES, "convlstm", "convlstm_ensemble", "transformer_quantiles", "video_transformer")
LEADS = tuple(range(5, 65, 5))
CELLS = 64
STYLES = figures.model_styles(MODELS, REFERENCES)
WIDTHS = (360, 768, 1400)


def smooth(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return random fields with power at all wavelengths, standardised."""
    y, x = (np.fft.fftfreq(size) for size in shape[-2:])
    slope = 1 / np.maximum(np.hypot(y[:, None], x), 0.01) ** 1.8
    fields = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * slope).real
    return (fields - fields.mean()) / fields.std()


def case(seed: int) -> maps.Case:
    rng = np.random.default_rng(seed)
    base = np.cumsum(smooth(rng, len(LEADS), CELLS, CELLS), axis=0) * 0.3 + smooth(rng, CELLS, CELLS)
    kilometres = {"units": "m"}
    coords = {
        "lead_time": np.array(LEADS, "timedelta64[m]").astype("timedelta64[ns]"),
        "y": ("y", np.arange(CELLS)[::-1] * 1000.0, kilometres),
        "x": ("x", np.arange(CELLS) * 1000.0, kilometres),
    }

    def rain(values: np.ndarray) -> xr.DataArray:
        rate = np.maximum(np.exp(1.5 * values) - 1, 0).astype(np.float32)
        return xr.DataArray(rate, coords, ("lead_time", "y", "x"), "rain_rate", {"units": "mm h-1"})

    forecasts = {name: rain(base + 0.3 * smooth(rng, len(LEADS), CELLS, CELLS)) for name in MODELS}
    return maps.Case(np.datetime64("2024-07-01T12:00"), rain(base), forecasts)


def curve(k: int, rise: float = 1.0) -> dict[int, float]:
    return {lead: (0.4 + 0.05 * k + lead * (0.016 - 0.0008 * k)) * rise for lead in LEADS}


def pictures(folder: Path) -> list[Picture]:
    """Write every kind of picture that a report can have; return them."""
    rng = np.random.default_rng(7)
    curves = {name: curve(k) for k, name in enumerate(MODELS)}
    titles = ("RMSE", "MAE", "Mean error", "CRPS", "CSI ≥ 1 mm/h", "CSI ≥ 5 mm/h", "FSS ≥ 1 mm/h, 10 km")
    panels = [Panel(title, "mm/h", curves) for title in titles]
    wave = np.geomspace(128, 2, 40)
    power = {name: wave**2.5 * np.minimum(1, (wave / (2 + 2 * k)) ** 3) for k, name in enumerate(MODELS)}
    said = (np.arange(10) + 0.5) / 10
    count = np.geomspace(1e6, 1e3, 10)
    bins = {
        name: Bins(count, count * said, count * said**p) for name, p in (("convlstm_ensemble", 1.3), (MODELS[6], 1))
    }
    rates = {name: (0.8 - 0.06 * k, 0.2 + 0.05 * k) for k, name in enumerate(MODELS)}
    milliseconds = {name: 0.5 * 2.2**k for k, name in enumerate(MODELS)}
    skill = {name: 0.1 * (k % 4) for k, name in enumerate(MODELS)}
    coverage = Panel("Coverage", "", {name: curve(k, 0.6) for k, name in enumerate(bins)}, 0.9, (0, 1))
    apart = {name: dict.fromkeys(LEADS, (0.1 * k, 0.1 * k - 0.2, 0.1 * k + 0.2)) for k, name in enumerate(MODELS)}
    gain = Gain("Δ RMSE", "below 0: better", apart, dict.fromkeys(LEADS, MODELS[0]), MODELS[4:])
    drawn = {
        "skill_difference": diagrams.gain_figure(gain, STYLES),
        **{f"skill_{k}": diagrams.panel_figure(panel, STYLES) for k, panel in enumerate(panels)},
        "spectra_05": diagrams.spectra_figure([Spectrum(5, wave, wave**2.5, power)], STYLES),
        "spectra_60": diagrams.spectra_figure([Spectrum(60, wave, wave**2.5, power)], STYLES),
        "reliability": diagrams.reliability_figure(Reliability("≥ 1 mm/h", bins), STYLES),
        **{f"ranks_{name}": diagrams.rank_figure(name, 90 + 20 * rng.random(11), STYLES) for name in bins},
        "coverage": diagrams.panel_figure(coverage, STYLES),
        "performance": diagrams.performance_figure(Performance("≥ 1 mm/h, 30 minutes", rates), STYLES),
        "cost": diagrams.cost_figure(milliseconds, skill, "MSE skill, best reference 0", STYLES),
        "case": maps.case_figure(case(3)),
    }
    result = []
    for name, figure in drawn.items():
        figures.write_png(figure, folder / f"{name}.png")
        result.append(Picture(folder / f"{name}.png", f"What {name} shows.", name.split("_")[0]))
    return result


def comparison(folder: Path) -> report.Page:
    """Return a report with every section, of realistic size; its pictures are written to `folder`."""
    metrics = {
        name: {
            RMSE: curve(k),
            Score("crps"): curve(k, 0.6),
            Score("csi", 1.0, units="mm h-1"): curve(k, 0.4),
            Score("fss", 1.0, 10.0, "mm h-1"): curve(k, 0.5),
        }
        for k, name in enumerate(MODELS)
    }
    pairs = {
        (a, b): Cell(("better", "worse", "no difference")[(i + j) % 3], -0.12, -0.2, -0.05)
        for i, a in enumerate(MODELS) for j, b in enumerate(MODELS) if a != b
    }  # fmt: skip
    hours = {f"{hour:02d} UTC": {name: 0.4 + 0.1 * k for k, name in enumerate(MODELS)} for hour in range(0, 24, 6)}
    series = [maps.write_map_series(case(k), folder, f"case_{k}", f"Case {k}") for k in (1, 2)]
    against = {name: dict.fromkeys((15, 30, 45, 60), Cell("better", -0.12, -0.2, -0.05)) for name in MODELS}
    part = Part(
        title="rain rate, mm/h",
        verdict=["advection is better than every other model from 5 to 30 minutes.", "Paired block bootstrap."],
        metrics=metrics, leading=[RMSE],
        facts={"Field": "rain rate, mm/h", "Init times": "130, from 2024-07-01 00:00 to 2024-07-03 00:00 UTC"},
        pictures=pictures(folder),
        left_out={"climatology": ["scored on other init times than the others"]},
        differences=[Differences("RMSE", against, dict.fromkeys((15, 30, 45, 60), "damped_persistence"))],
        matrices=[Matrix("RMSE, mm/h", lead, pairs) for lead in (30, 60)], maps=series,
        groups=[Groups("RMSE, mm/h, by hour of day", RMSE, hours)],
    )  # fmt: skip
    return report.Page(
        parts=[part], references=REFERENCES, settings={"source": {"kind": "storms", "cells": 64}},
        project="storms", head={"Made": "2024-07-04 12:00 UTC", "Commit": "0123456789abcdef" * 2 + "01234567"},
        costs={name: Costs(10**k, 10 ** (k + 3), 12.5 * k, 2.0**k, 400.0, device="x86_64, 2 threads")
               for k, name in enumerate(MODELS)},
        runs={"convlstm": "http://127.0.0.1:5000/#/experiments/1/runs/0123", "advection": "mlflow ui --port 5000"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    path = folder / "report.html"
    path.write_text(report.render(comparison(folder)), encoding="utf-8")
    return path


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Return a page that fails the test when the browser reports an error or asks the network for anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    fresh = context.new_page()
    errors: list[str] = []
    fresh.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    fresh.on("pageerror", lambda error: errors.append(str(error)))
    fresh.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else errors.append(asked.url))
    yield fresh
    context.close()
    assert errors == []


def shade(page: Page) -> float:
    """Return how light the page's background is, 0 to 1."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return float(np.mean([int(part) for part in colour.strip("rgb()").split(",")]) / 255)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_page(page: Page, page_file: Path, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 780})
    page.emulate_media(color_scheme=scheme)
    page.goto(page_file.as_uri())
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (shade(page) > 0.9) == (scheme == "light")
    assert page.locator("img").evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")


def test_the_slider_moves_the_maps_and_says_when(page: Page, page_file: Path) -> None:
    page.goto(page_file.as_uri())
    maps_of_a_case = page.locator(".maps").nth(1)
    slider, spoken = maps_of_a_case.locator("input"), maps_of_a_case.locator("output")
    assert spoken.text_content() == "12:35 UTC (+35 min)"
    before = maps_of_a_case.locator(".tiles svg").nth(3).screenshot()
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert spoken.text_content() == slider.get_attribute("aria-valuetext") == "12:40 UTC (+40 min)"
    assert maps_of_a_case.locator(".tiles svg").nth(3).screenshot() != before
    page.keyboard.press("Home")
    assert spoken.text_content() == "12:05 UTC (+5 min)"
    assert page.locator(".maps").nth(0).locator("output").text_content() == "12:35 UTC (+35 min)"


def test_every_model_has_a_map_of_its_own(page: Page, page_file: Path) -> None:
    page.goto(page_file.as_uri())
    tiles = page.locator(".maps").nth(0).locator(".tiles figure")
    assert tiles.locator("figcaption").all_text_contents() == ["observed", *map(readable, MODELS)]
    seen = [tile.screenshot() for tile in tiles.locator("svg").all()]
    assert len(set(seen)) == len(MODELS) + 1


def test_without_script_one_lead_is_there(browser: Browser, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert not page.locator(".maps input").nth(0).is_visible()
    assert page.locator(".maps output").nth(0).is_visible()
    assert page.locator(".maps .tiles svg").nth(8).is_visible()
    context.close()


def test_it_can_be_printed(page: Page, page_file: Path, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 718, "height": 1040})  # A4 less its margins
    page.emulate_media(media="print", color_scheme="dark")
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    assert shade(page) == 1
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert 5 <= content.count(b"/Type /Page\n") <= 15


def test_the_page_is_light_enough_to_send(page_file: Path) -> None:
    assert 100_000 < page_file.stat().st_size < 3_000_000


def test_contents_lead_to_every_section(page: Page, page_file: Path) -> None:
    page.goto(page_file.as_uri())
    for link in page.locator("nav a").all():
        link.click()
        target = page.locator(f"[id='{(link.get_attribute('href') or '').removeprefix('#')}']")
        assert target.is_visible()
    wanted = page.locator("h2[id]").count()
    assert page.locator("nav a").count() == wanted > 10


def test_lines_and_scale_are_drawn_over_the_maps(page: Page, page_file: Path) -> None:
    page.goto(page_file.as_uri())
    tiles = page.locator(".maps").nth(0).locator(".tiles svg")
    assert tiles.nth(0).locator("use").count() == 2  # field, lines with the bar
    assert tiles.nth(1).locator("use").count() == 3  # fields, lines over both
    before = tiles.nth(1).screenshot()
    page.locator("[id$='-lines']").evaluate_all("all => all.forEach(one => one.remove())")
    assert tiles.nth(1).screenshot() != before


def test_printed_legends_stand_on_each_page_of_their_charts(page: Page, page_file: Path) -> None:
    page.emulate_media(media="print")
    page.goto(page_file.as_uri())
    charts = page.locator(".charts:has(.legend)")
    assert charts.count() >= 4
    for chart in charts.all():  # a table's head is repeated by the browser on every page
        assert chart.evaluate("one => getComputedStyle(one).display") == "table"
        head = chart.locator(".head")
        assert head.evaluate("one => getComputedStyle(one).display") == "table-header-group"
        legend, first = head.bounding_box(), chart.locator("figure").nth(0).bounding_box()
        assert legend is not None
        assert first is not None
        assert 0 <= first["y"] - legend["y"] - legend["height"] < 30
