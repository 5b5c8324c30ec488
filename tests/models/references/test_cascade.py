import sys

import numpy as np
import pytest

from fieldcast.models.layers.cascade import amounts, bordered, decibels, inputs_of, load_pysteps
from fieldcast.models.layers.cascade_options import CascadeOptions
from tests.models.references.showers import ODD, rain

NAN = np.nan


def test_decibels_and_back():
    amount = np.array([0.0, 0.05, 0.1, 1, 100])
    assert decibels(amount, 0.1).tolist() == [-15, -15, -10, 0, 20]
    np.testing.assert_allclose(amounts(decibels(amount, 0.1), 0.1), [0, 0, 0.1, 1, 100])
    assert np.isnan(amounts(np.array([NAN]), 0.1)).all()


def test_inputs_are_the_latest_frames_and_their_flow():
    history = rain(40, 48, 5)[0, :, 0]
    inputs = inputs_of(history, CascadeOptions())
    np.testing.assert_allclose(inputs.frames, decibels(history[-3:], 0.1), rtol=1e-5)
    np.testing.assert_allclose(np.median(inputs.flow, axis=(1, 2)), [2, 1], atol=0.3)
    assert inputs.levels == 5  # 40 cells are no 64
    assert inputs_of(ODD["dry"][0, :, 0].astype(np.float32), CascadeOptions()) is None


def test_unknown_cells_go_on_with_their_neighbours():
    fields = np.arange(12.0).reshape(1, 1, 3, 4) * np.ones((2, 5, 1, 1))
    known = bordered(fields)
    fields[..., -1] = NAN
    np.testing.assert_array_equal(known[..., :-1], bordered(fields)[..., :-1])
    assert np.isfinite(bordered(fields)).all()


def test_without_pysteps_the_fix_is_named(monkeypatch):
    load_pysteps.cache_clear()
    monkeypatch.setitem(sys.modules, "pysteps.nowcasts.interface", None)
    with pytest.raises(ValueError, match=r"steps and sprog need pysteps: pip install fieldcast\[advection\]"):
        load_pysteps("sprog")
    load_pysteps.cache_clear()
