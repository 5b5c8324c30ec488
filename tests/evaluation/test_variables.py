"""Comparison, guards and promotion of models that forecast two variables, in the user's order."""

import json

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.config import Compare, Guards, Promotion
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.evaluation.comparison import Entry, compare_all, joined_metrics
from fieldcast.pipeline.evaluation.guards import guard_fault
from fieldcast.pipeline.evaluation.promotion import decide
from fieldcast.pipeline.report.write import write_report
from fieldcast.pipeline.verification.aggregation import fields_of
from fieldcast.pipeline.verification.scores import Score
from fieldcast.pipeline.verification.sums_file import read_sums, write_sums
from tests.made_sums import made_sums

FEW = Compare(resamples=200)
FIELDS = {"wind": "m s-1", "temperature": "K"}  # not in alphabetical order
REFERENCES = ["persistence"]


def both(wind: float, temperature: float, offset: float = 0.0) -> xr.Dataset:
    """Return the sums of a model whose errors have these standard deviations; `offset` is that of temperature."""
    rng = np.random.default_rng(11)
    wind_errors, others = rng.normal(0, wind, (64, 3, 9)), offset + rng.normal(0, temperature, (64, 3, 9))
    parts = [
        made_sums(errors, thresholds=[0.5], field=name, units=units)
        for (name, units), errors in zip(FIELDS.items(), (wind_errors, others), strict=True)
    ]
    return xr.merge(parts)


def test_files_of_scores_keep_the_order_of_the_variables(tmp_path) -> None:
    sums = both(1.0, 2.0)
    write_sums(sums, tmp_path / "a.nc")
    back = read_sums(tmp_path / "a.nc")
    assert fields_of(back) == fields_of(sums) == list(FIELDS)
    xr.testing.assert_equal(back, sums)


def test_each_variable_is_compared_as_if_it_were_alone() -> None:
    entries = {"persistence": Entry(both(2, 1), "persistence"), "convlstm": Entry(both(1, 2), "recurrent")}
    found = compare_all(entries, FEW)
    assert [(name, each.variable, each.units) for name, each in found.items()] == [
        ("wind", "wind", "m s-1"),
        ("temperature", "temperature", "K"),
    ]
    assert found["wind"].verdict[0] == "RMSE: convlstm is better than every other model at every lead."
    assert found["temperature"].verdict[0] == "RMSE: persistence is better than every other model at every lead."
    sums = entries["convlstm"].sums
    for field, each in found.items():
        by_hand = np.sqrt(sums[f"{field}.squared_error"].sum("init_time") / sums[f"{field}.weight"].sum("init_time"))
        assert list(each.metrics["convlstm"][Score("rmse")].values()) == pytest.approx(by_hand.values, rel=1e-5)
    metrics = joined_metrics(found)["convlstm"]
    assert metrics[Score("rmse", field="wind")] == found["wind"].metrics["convlstm"][Score("rmse")]


def test_the_report_has_a_part_and_a_folder_of_pictures_for_each_variable(tmp_path) -> None:
    entries = {"persistence": Entry(both(2, 1), "persistence"), "convlstm": Entry(both(1, 2), "recurrent")}
    write_report(compare_all(entries, FEW), tmp_path, {})
    html = (tmp_path / "report.html").read_text()
    assert html.index(">wind, m s-1</h2>") < html.index(">temperature, K</h2>")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"1_wind", "2_temperature", "skill.png"}
    for folder in ("1_wind", "2_temperature"):
        assert (tmp_path / "figures" / folder / "skill_rmse.png").exists()
    keys = json.loads((tmp_path / "metrics.json").read_text())["convlstm"]
    assert {"wind/rmse", "temperature/rmse", "temperature/csi_0.5_k"} <= set(keys)


@pytest.mark.parametrize(
    ("limit", "wind", "temperature"),
    [
        (0.5, None, None),  # a plain number is of the first variable
        ({"temperature": 0.5}, None, "mean error 0.9"),
        ({"wind": 0.5, "temperature": 2.0}, None, None),
    ],
)
def test_limits_of_mean_errors_are_by_variable(limit, wind, temperature) -> None:
    promotion = Promotion(guards=Guards(max_mean_error=limit))
    sums = both(0.1, 0.1, offset=0.9)
    for field, start in (("wind", wind), ("temperature", temperature)):
        fault = guard_fault(sums, promotion, field)
        assert fault is None if start is None else fault is not None and fault.startswith(start)


def test_the_first_variable_or_the_one_that_is_named_decides() -> None:
    sums = {"persistence": both(2, 2), "convlstm": both(1, 2)}
    assert decide(sums, Promotion(), FEW, REFERENCES).champion == "convlstm"
    assert decide(sums, Promotion(), FEW, REFERENCES).reason.startswith("wind: rmse of convlstm over 5 to 15 minutes")
    other = decide(sums, Promotion(variable="temperature"), FEW, REFERENCES)
    assert other.champion == "persistence"
    assert "temperature: no certain difference in rmse" in other.reason
    with pytest.raises(InputError, match=r"promotion\.variable is 'rain', forecast are wind, temperature"):
        decide(sums, Promotion(variable="rain"), FEW, REFERENCES)


def test_a_reference_that_is_better_in_another_variable_keeps_a_model_out() -> None:
    sums = {"persistence": both(2, 2), "convlstm": both(1, 3)}
    found = decide(sums, Promotion(), FEW, REFERENCES)
    assert found.champion == "persistence"
    assert "temperature: rmse at 5 minutes is certainly worse than that of persistence" in found.reason
    biased = {"persistence": both(2, 2), "convlstm": both(1, 1, offset=1.0)}
    limits = Promotion(guards=Guards(max_mean_error={"temperature": 0.5}))
    assert decide(biased, Promotion(), FEW, REFERENCES).champion == "convlstm"
    assert "temperature: mean error" in decide(biased, limits, FEW, REFERENCES).reason
