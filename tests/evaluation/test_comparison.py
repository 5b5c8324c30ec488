import json
import math

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from fieldcast.pipeline.config import Compare
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.evaluation import comparison
from fieldcast.pipeline.evaluation.comparison import Entry, eventful, extremes, leading_scores
from fieldcast.pipeline.forecasting.costs import Costs
from fieldcast.pipeline.report.content import Content
from fieldcast.pipeline.report.terminal import terminal_table
from fieldcast.pipeline.report.write import write_report
from fieldcast.pipeline.verification.aggregation import frame_sums, label_sums
from fieldcast.pipeline.verification.scores import Score

INITS, LEADS, N = 24, 3, 12
ERRORS = {"persistence": (1.0, 2.0, 3.0), "advection": (0.25, 1.0, 2.5), "convlstm": (0.5, 0.75, 1.5)}
OPTIONS = Compare(resamples=200)
RMSE = Score("rmse")


def sums_of(forecast, observed, valid=None):
    valid = np.ones(observed.shape, bool) if valid is None else valid
    inits = np.datetime64("2020-06-01", "ns") + np.arange(INITS) * np.timedelta64(15, "m")
    leads = np.arange(1, LEADS + 1) * np.timedelta64(5, "m").astype("timedelta64[ns]")
    coords = {"init_time": xr.DataArray(inits, dims="init_time"), "lead_time": xr.DataArray(leads, dims="lead_time")}
    arrays = frame_sums(forecast, observed, valid, [1.0, 5.0, 500.0], [(1, 1), (3, 3)])
    return label_sums(arrays, "rain_rate", "mm h-1", coords, [1.0, 5.0, 500.0], [2.0, 6.0])


@pytest.fixture
def observed():
    rain = np.random.default_rng(5).gamma(0.5, 3, (INITS, LEADS, N, N)).astype(np.float32)
    rain[4] += 2  # the wettest
    return rain


@pytest.fixture
def entries(observed):
    """Return three models whose errors at the three leads are near those of ERRORS."""
    noise = np.random.default_rng(1).normal(1, 0.1, (INITS, 1, 1, 1))
    return {
        name: Entry(
            sums_of((observed + np.asarray(errors)[:, None, None] * noise).astype(np.float32), observed),
            name,
            Costs(forecast_milliseconds=10.0 * (k + 1)),
        )
        for k, (name, errors) in enumerate(ERRORS.items())
    }


@pytest.fixture
def compared(entries):
    return comparison.compare(entries, OPTIONS)


def test_values_and_file(compared, tmp_path):
    assert compared.metrics["convlstm"][RMSE] == pytest.approx({5: 0.5, 10: 0.75, 15: 1.5}, rel=0.05)
    assert math.isnan(compared.metrics["convlstm"][Score("csi", 500.0, units="mm h-1")][5])
    comparison.write_scores(compared.metrics, tmp_path / "scores.json")
    stored = json.loads((tmp_path / "scores.json").read_text())
    assert list(stored) == sorted(ERRORS)
    assert list(stored["advection"]["rmse"]) == ["5", "10", "15"]
    assert stored["advection"]["csi_500_mm_h"]["5"] is None


def test_the_verdict_is_first_about_rmse_and_sure(compared):
    assert compared.verdict[0] == (
        "RMSE: advection is better than every other model at 5 minutes; convlstm is better than every other model from "
        "10 to 15 minutes."
    )
    assert any(sentence.startswith("Differences over 24 init times, paired block") for sentence in compared.verdict)


def test_skill_against_the_best_reference(compared):
    values = comparison.skill(compared, "convlstm", RMSE)
    assert values == pytest.approx({5: 1 - 4, 10: 1 - 0.75**2, 15: 1 - 0.36}, rel=1e-3)


def test_a_reference_that_was_scored_on_other_cells_is_no_best_one(entries, observed):
    valid = np.ones(observed.shape, bool)
    valid[0, 0, 0, 0] = False
    perfect = Entry(sums_of(observed, observed, valid), "climatology")
    found = comparison.compare({**entries, "climatology": perfect}, OPTIONS)
    assert found.rivals == ["persistence", "advection"]
    assert comparison.skill(found, "convlstm", RMSE)[10] == pytest.approx(1 - 0.75**2, rel=1e-3)


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_table_fits_the_terminal(entries, width):
    many = {
        "persistence": entries["persistence"],
        "damped_persistence": Entry(entries["advection"].sums, "damped_persistence"),
        "video_transformer": Entry(entries["convlstm"].sums, "video_transformer"),
    }
    with open("/dev/null", "w") as nowhere:  # noqa: PTH123
        console = Console(width=width, record=True, file=nowhere)
        console.print(terminal_table(comparison.compare(many, OPTIONS), width))
        text = console.export_text()
    assert "…" not in text
    assert text.count("video_transformer") == (2 if width < 100 else 1)  # a narrow one has two parts
    assert max(map(len, text.splitlines())) <= width


def test_all_models_within_chance_of_the_best_are_marked_alike(entries, observed):
    """A twin with noise of its own differs in the fifth digit; persistence is certainly worse."""
    noise = np.random.default_rng(3).normal(0, 1e-4, observed.shape).astype(np.float32)
    twin = Entry(sums_of(observed + np.float32(0.75) + noise, observed), "recurrent")
    other = Entry(sums_of(observed + np.float32(0.75) - noise, observed), "recurrent")
    found = comparison.compare({"persistence": entries["persistence"], "a": twin, "b": other}, OPTIONS)
    leaders = Content(found).leaders()[RMSE]
    assert [set(leaders[lead]) for lead in (5, 10, 15)] == [{"a", "b"}] * 3
    (table, *_) = terminal_table(found).renderables
    bold = [str(cell).split(".")[0] for cell in table.columns[1].cells if "bold" in str(cell.style)]
    assert len(bold) == 2


def test_who_was_scored_on_other_cells_is_marked_and_in_no_verdict(entries, observed, tmp_path):
    valid = np.ones(observed.shape, bool)
    valid[0, 0, 0, 0] = False
    odd = Entry(sums_of(observed, observed, valid), "video_transformer")
    found = comparison.compare({**entries, "video_transformer": odd}, OPTIONS)
    assert list(found.left_out) == ["video_transformer"]
    assert "scored on other cells" in found.left_out["video_transformer"][0]
    assert "video_transformer" in found.metrics
    assert found.evidence.models == list(entries)
    assert not any(sentence.startswith("RMSE: video transformer") for sentence in found.verdict)
    write_report({"rain_rate": found}, tmp_path, {})
    assert "scored on other cells" in (tmp_path / "report.html").read_text()


def test_another_budget_is_marked(entries):
    budgets = {"a": 5, "b": 5, "c": 50}
    learned = {
        name: Entry(entries["convlstm"].sums, "recurrent", Costs(budget={"epochs": epochs}))
        for name, epochs in budgets.items()
    }
    found = comparison.compare({**entries, **learned}, OPTIONS)
    assert list(found.left_out) == ["c"]
    assert "epochs 50 instead of 5" in found.left_out["c"][0]


def test_nothing_to_compare():
    with pytest.raises(InputError, match="no model"):
        comparison.compare_all({}, OPTIONS)


def test_the_case_is_the_wettest_and_the_next_lies_a_horizon_away(entries):
    sums = entries["convlstm"].sums
    first, second = eventful(sums, 2)
    assert first == sums.init_time.values[4]
    assert abs(second - first) >= np.timedelta64(15, "m")


def test_best_and_worst_case_are_those_of_the_leader(entries, observed):
    forecast = observed + np.float32(0.1)
    order = np.argsort(-(observed >= 1).mean(axis=(1, 2, 3)))
    forecast[order[1]] = observed[order[1]] + 2  # wet enough to count, and a miss
    forecast[order[2]] = observed[order[2]]
    found = comparison.compare({**entries, "wide": Entry(sums_of(forecast, observed), "recurrent")}, OPTIONS)
    best, worst = extremes(found).values()
    inits = found.sums.init_time.values
    assert (best, worst) == (inits[order[2]], inits[order[1]])
    assert next(iter(extremes(found))).startswith("Best case of wide")


def test_scores_that_lead_every_summary(entries):
    assert [score.key() for score in leading_scores(entries["convlstm"].sums)] == [
        "rmse", "csi_5_mm_h", "csi_500_mm_h", "spectrum_ratio", "fss_5_mm_h_2_km", "crps",
    ]  # fmt: skip


def test_contents_are_what_the_sums_say(compared):
    content = Content(compared)
    rmse = next(panel for panel in content.panels() if panel.title == "RMSE")
    assert rmse.values["convlstm"] == compared.metrics["convlstm"][RMSE]
    for model in ERRORS:
        assert list(rmse.values[model]) == [5, 10, 15]
    matrix = content.matrices()[0]
    cell, back = matrix.cells["convlstm", "persistence"], matrix.cells["persistence", "convlstm"]
    assert (cell.word, back.word) == ("better", "worse")
    assert cell.value == pytest.approx(
        rmse.values["convlstm"][matrix.lead] - rmse.values["persistence"][matrix.lead], rel=1e-4
    )
    (milliseconds, skills, label) = content.skill_by_cost()
    assert milliseconds == {"persistence": 10.0, "advection": 20.0, "convlstm": 30.0}
    assert skills["advection"] == 0  # the best reference at that lead
    assert skills["convlstm"] == pytest.approx(1 - 0.75**2, rel=1e-3)
    assert label == "MSE skill, best reference 0, 10 minutes ahead"
    hours = next(group for group in content.groups() if "hour" in group.title)
    assert list(hours.values) == ["00", "01", "02", "03", "04", "05"]
    pod, far = content.performance().points["advection"]
    assert (pod, far) == (
        compared.metrics["advection"][Score("pod", 5.0, units="mm h-1")][10],
        compared.metrics["advection"][Score("far", 5.0, units="mm h-1")][10],
    )


def test_differences_are_from_the_best_reference_at_each_lead(compared):
    content = Content(compared)
    titles = [panel.title for panel in content.panels()]
    assert titles[titles.index("RMSE") + 1] == "Δ RMSE"
    gain = next(gain for gain in content.gains() if gain.title == "Δ RMSE")
    assert gain.zero == dict.fromkeys((5, 10, 15), "advection")
    assert (gain.unit, gain.banded) == ("below 0: better", ["convlstm"])
    assert gain.differences["advection"][10] == (0, 0, 0)
    value, low, high = gain.differences["convlstm"][10]
    assert low < value < high
    assert value == pytest.approx(0.75 - 1.0, rel=0.05)
    events = next(gain for gain in content.gains() if gain.title == "Δ CSI ≥ 5 mm/h")
    assert events.unit == "above 0: better"
    assert {panel.title for panel in content.leading_panels()} >= {"RMSE", "Δ RMSE", "MSE skill, best reference 0"}
    assert "MAE" not in {panel.title for panel in content.leading_panels()}


def test_bands_are_of_the_best_models(entries, observed):
    errors = {f"net_{k}": 2.0 - 0.2 * k for k in range(6)}
    nets = {
        name: Entry(sums_of((observed + np.float32(error)).astype(np.float32), observed), "recurrent")
        for name, error in errors.items()
    }
    content = Content(comparison.compare({**entries, **nets}, OPTIONS))
    gain = next(gain for gain in content.gains() if gain.title == "Δ RMSE")
    assert gain.banded == ["convlstm", "net_5", "net_4", "net_3"]


def test_without_references_there_is_nothing_to_differ_from(entries):
    content = Content(comparison.compare({"convlstm": entries["convlstm"]}, OPTIONS))
    assert content.gains() == []
    assert content.skill_by_cost() is None
    assert "RMSE" in {panel.title for panel in content.panels()}


def test_the_report_is_whole_and_repeatable(compared, tmp_path):
    for folder in ("one", "two"):
        write_report({"rain_rate": compared}, tmp_path / folder, {"source": {"kind": "<storms>"}})
    html = (tmp_path / "one" / "report.html").read_text()
    assert "source.kind</dt><dd>&lt;storms&gt;" in html
    assert html.index("RMSE: advection is better") < html.index("<table")
    assert html == (tmp_path / "two" / "report.html").read_text()
    metrics, scores = (json.loads((tmp_path / "one" / name).read_text()) for name in ("metrics.json", "scores.json"))
    assert {len(each) * len(each["rmse"]) for each in metrics.values()} == {18}  # six scores at three leads
    for model, few in metrics.items():
        assert few.items() <= scores[model].items()
        assert len(few) < len(scores[model])
    files = {path.name for path in (tmp_path / "one" / "figures").iterdir()}
    assert {"skill.png", "skill_rmse.png", "skill_difference_rmse.png", "performance.png", "cost.png"} <= files


def test_an_infinite_score_is_not_written(tmp_path):
    scores = {Score("psnr", field="rain"): {5: 20.0, 10: math.inf}}
    with pytest.raises(InputError, match=r"scores.json: .*psnr of convlstm at 10 minutes is inf: nothing is written"):
        comparison.write_scores({"convlstm": scores}, tmp_path / "scores.json")
    assert not list(tmp_path.iterdir())
