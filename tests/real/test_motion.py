"""Motion of real rain, beside that of pysteps."""

import contextlib
import io
import warnings

import numpy as np
import pytest
import torch

from fieldcast.models.layers.motion import departures, motion, moved
from fieldcast.models.layers.motion_options import MotionOptions
from fieldcast.pipeline.config.sources import RadarOptions
from fieldcast.pipeline.sources import open_source

CROPS = {"knmi": (288, 256, 256, 2), "bom": (0, 0, 512, 4), "fmi": (300, 100, 512, 4)}  # first row, column, side, means
FRAMES = 40


@pytest.mark.parametrize("service", CROPS)
def test_rain_moved_along_the_flow_errs_no_more_than_along_that_of_pysteps(archive, service):
    frames = rain(archive, service)
    cases = np.stack([frames[start : start + 7] for start in range(0, len(frames) - 6, 4)])
    history = np.ascontiguousarray(cases[:, :4])
    flow = motion(history, MotionOptions())
    peer = torch.from_numpy(np.stack([pysteps_flow(case) for case in history])).float()
    ours, theirs = (errors(history[:, -1], cases[:, 4:], each) for each in (flow, peer))
    assert (ours <= 1.01 * theirs).all(), (ours, theirs)
    difference = (flow - peer).norm(dim=1).mean() / peer.norm(dim=1).mean()
    assert difference < 0.5, difference  # most of it where there is no rain, and both fill in


def rain(archive, service):
    """Return frames (t, h, w) in mm/h, NaN where missing, as means over square blocks of cells."""
    options = RadarOptions.model_validate({"path": str(archive / "radar" / service), "format": service})
    row, column, side, cells = CROPS[service]
    read = []
    for segment in open_source(options).segments():
        steps = np.arange(segment.times.size)
        fields = segment.read(steps, slice(row, row + side), slice(column, column + side))["rain_rate"].values
        read.append(fields.reshape(len(fields), side // cells, cells, side // cells, cells).mean(axis=(2, 4)))
        if sum(map(len, read)) >= FRAMES:
            break
    return np.concatenate(read)


def pysteps_flow(frames):
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pysteps.motion.lucaskanade import dense_lucaskanade

        decibels = 10 * np.log10(np.maximum(np.nan_to_num(frames), 0.1) / 0.1)
        return np.asarray(dense_lucaskanade(decibels, fd_kwargs={"min_distance": 4}))


def errors(latest, future, flow):
    """Return the RMSE of each lead, less a border that what is beyond the grid has reached."""
    field = torch.from_numpy(np.nan_to_num(latest))[:, None]
    forecast = moved(field, departures(flow, future.shape[1]))[:, :, 0].numpy()
    inner = (slice(None), slice(None), slice(16, -16), slice(16, -16))
    return np.sqrt(np.nanmean((forecast - future)[inner] ** 2, axis=(0, 2, 3)))
