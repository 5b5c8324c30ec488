import numpy as np
import xarray as xr

from pipeline.scores import categorical, continuous, spatial, sums
from pipeline.scores.ranking import best_at, runs

ALL = (*sums.CONTINUOUS.values(), *sums.CATEGORICAL.values(), spatial.fss)


def test_blocks_merge_to_the_whole(labelled, fields):
    whole = labelled(*fields)
    first = labelled(*(field[:2] for field in fields))
    rest = labelled(*(field[2:] for field in fields)).assign_coords(init_time=whole.init_time[2:])
    xr.testing.assert_identical(xr.concat([first, rest], "init_time"), whole)


def test_chunks_of_frames_change_nothing(labelled, fields, monkeypatch):
    whole = labelled(*fields)
    monkeypatch.setattr(sums, "CELLS_AT_ONCE", 1)
    xr.testing.assert_identical(labelled(*fields), whole)


def test_the_order_of_init_times_changes_no_score(labelled, fields):
    order = [3, 0, 4, 1, 2]
    permuted = labelled(*(field[order] for field in fields))
    for score in ALL:
        np.testing.assert_allclose(score(permuted), score(labelled(*fields)), rtol=1e-12)


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


def test_best_looks_the_right_way_for_each_score():
    metrics = {
        "a": {"rmse": {5: 1.0}, "csi_1_mm_h": {5: 0.2}, "mean_error": {5: -0.1}, "frequency_bias_1_mm_h": {5: 1.1}},
        "b": {"rmse": {5: 2.0}, "csi_1_mm_h": {5: 0.3}, "mean_error": {5: -0.2}, "frequency_bias_1_mm_h": {5: 0.5}},
    }
    assert {score: best_at(metrics, score, 5) for score in metrics["a"]} == {
        "rmse": ["a"], "csi_1_mm_h": ["b"], "mean_error": ["a"], "frequency_bias_1_mm_h": ["a"],
    }  # fmt: skip
    nothing = {"a": {"csi_1_mm_h": {5: float("nan")}}}
    assert best_at(nothing, "csi_1_mm_h", 5) == []
    assert runs({5: True, 10: True, 15: False, 20: True}) == [(5, 10), (20, 20)]
