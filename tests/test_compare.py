import json
import math

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from pipeline import compare as stage
from pipeline import report
from pipeline.compare import compare, eventful, key_scores, terminal_table, verdict, write_metrics
from pipeline.schema import InputError
from pipeline.scores.sums import frame_sums, label_sums

INITS, LEADS, N = 6, 3, 12
ERRORS = {"persistence": (1.0, 2.0, 3.0), "advection": (0.25, 1.0, 2.5), "convlstm": (0.5, 0.75, 1.5)}


def sums_of(forecast, observed, valid=None):
    valid = np.ones(observed.shape, bool) if valid is None else valid
    inits = np.datetime64("2020-06-01", "ns") + np.arange(INITS) * np.timedelta64(5, "m")
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
def sums(observed):
    """Return three models whose errors at the three leads are those of ERRORS."""
    return {
        name: sums_of(observed + np.asarray(errors, np.float32)[:, None, None], observed)
        for name, errors in ERRORS.items()
    }


def test_values_and_file(sums, tmp_path):
    metrics = compare(sums)
    assert metrics["convlstm"]["rmse"] == pytest.approx({5: 0.5, 10: 0.75, 15: 1.5}, rel=1e-5)
    assert math.isnan(metrics["convlstm"]["csi_500_mm_h"][5])
    write_metrics(metrics, tmp_path / "metrics.json")
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert list(stored) == sorted(ERRORS)
    assert stored["advection"]["rmse"]["5"] == pytest.approx(0.25, rel=1e-5)
    assert list(stored["advection"]["rmse"]) == ["5", "10", "15"]
    assert stored["advection"]["csi_500_mm_h"]["5"] is None


def test_the_verdict_names_the_best_where_it_is_best(sums):
    first, *_, last = verdict(compare(sums), key_scores(sums["convlstm"]))
    assert first == "convlstm has the lowest RMSE from 10 to 15 minutes; advection at 5 minutes."
    assert last == (
        "convlstm has a lower RMSE than persistence at every lead and than every reference from 10 to 15 minutes."
    )


def test_a_tie_names_both(sums):
    metrics = compare({"advection": sums["advection"], "convlstm": sums["advection"]})
    first, *_ = verdict(metrics, key_scores(sums["advection"]))
    assert first.startswith("advection has the lowest RMSE from 5 to 15 minutes; convlstm from 5 to 15 minutes (models")


def test_skill_against_the_best_reference(sums):
    values = stage.skill(compare(sums), "convlstm", ["persistence", "advection"], "rmse")
    assert values == pytest.approx({5: 1 - 4, 10: 1 - 0.75**2, 15: 1 - 0.36}, rel=1e-4)


def test_the_table_fits_the_terminal(sums):
    many = {
        "persistence": sums["persistence"],
        "damped_persistence": sums["advection"],
        "video_transformer": sums["convlstm"],
    }
    console = Console(width=100, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(terminal_table(compare(many), key_scores(sums["convlstm"])))
    text = console.export_text()
    console.file.close()
    assert "…" not in text
    assert "video_transformer" in text
    assert max(map(len, text.splitlines())) <= 100


def test_other_cells_or_times_are_refused(sums, observed):
    valid = np.ones(observed.shape, bool)
    valid[0, 0, 0, 0] = False
    other = valid.copy()
    other[0, 0, 0, :2] = [True, False]
    pair = {"a": sums_of(observed, observed, valid), "b": sums_of(observed, observed, other)}
    with pytest.raises(InputError, match="b was scored on other cells of 'rain_rate' than a"):
        compare(pair)
    with pytest.raises(InputError, match="'init_time' of b differs from that of a"):
        compare({"a": pair["a"], "b": pair["a"].isel(init_time=slice(1, None))})
    with pytest.raises(InputError, match="no model"):
        compare({})


def test_the_case_is_the_wettest_and_the_next_lies_a_horizon_away(sums):
    init = sums["convlstm"].init_time.values
    first, second = eventful(sums["convlstm"], 2)
    assert first == init[4]
    assert abs(second - first) >= np.timedelta64(15, "m")


def test_the_report_stands_alone_and_escapes(sums, tmp_path):
    metrics, titles = compare(sums), key_scores(sums["convlstm"])
    (tmp_path / "skill.png").write_bytes(b"picture")
    content = report.Report(
        verdict(metrics, titles), metrics, titles, ("persistence", "advection"), stage.facts(sums["convlstm"]),
        [report.Picture(tmp_path / "skill.png", "skill & more", "skill")], {"source": {"kind": "<storms>"}},
    )  # fmt: skip
    html = report.render(content)
    assert "data:image/png;base64,cGljdHVyZQ==" in html
    assert "http" not in html
    assert "<script" not in html
    assert "source.kind</dt><dd>&lt;storms&gt;" in html
    assert "over 6 init times; no test of significance" in html
    assert html.index("has the lowest RMSE") < html.index("<table")
    assert html == report.render(content)
