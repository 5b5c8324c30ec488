"""Colours of rain: readers who lack red or green receptors can order them and tell any two apart."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from skimage.color import deltaE_ciede2000, rgb2lab

from fieldcast.pipeline.report.style import RAIN_COLOURS, RAIN_OVER, RAIN_UNDER

# linear RGB as it is seen: Machado, Oliveira and Fernandes (2009), IEEE Trans. Vis. Comput. Graph. 15, severity 1
SEEN = {
    "by most": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}


def lab(colours: list[str], seen: np.ndarray) -> np.ndarray:
    """Return CIELAB coordinates (colour, 3) of sRGB colours as they are `seen`."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    other = np.clip(linear @ seen.T, 0, 1)
    return rgb2lab(np.where(other <= 0.0031308, 12.92 * other, 1.055 * other ** (1 / 2.4) - 0.055)[None])[0]


@pytest.mark.parametrize("by", SEEN)
def test_rain_darkens_and_no_two_steps_look_alike(by: str) -> None:
    steps = lab([RAIN_UNDER, *RAIN_COLOURS, RAIN_OVER], SEEN[by])
    assert (np.diff(steps[:, 0]) < -6).all()
    first, second = np.triu_indices(len(steps), 1)
    assert deltaE_ciede2000(steps[first], steps[second]).min() > 9.9


def test_a_rainbow_fails_this_test() -> None:
    rainbow = ["#ffffff", "#a6dcf2", "#2a6fd6", "#2fae4a", "#f7e11e", "#e0301e"]
    assert (np.diff(lab(rainbow, SEEN["deuteranopia"])[:, 0]) > 0).any()
