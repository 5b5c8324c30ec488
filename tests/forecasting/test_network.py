import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fieldcast import models
from fieldcast.models.layers.motion_options import MotionOptions
from fieldcast.models.layers.outputs import OutputOptions
from fieldcast.models.layers.sizes import Frame
from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.signature import Channel
from fieldcast.pipeline.forecasting import checkpoint
from fieldcast.pipeline.forecasting.base import Guide
from fieldcast.pipeline.forecasting.forecaster import Forecaster, build_network, load
from fieldcast.pipeline.forecasting.network import Network, calendar_planes, coordinate_planes
from fieldcast.pipeline.forecasting.normaliser import Normaliser
from tests.forecasting.test_checkpoint import TIMES, description, history

CHANNEL = Channel("t2m", "K")


def seconds(*times: tuple[int, ...]) -> Tensor:
    return torch.tensor([[int(datetime(*time, tzinfo=UTC).timestamp()) for time in times]])


def test_calendar_by_hand() -> None:
    planes = calendar_planes(seconds((2023, 1, 1, 0), (2024, 4, 1, 6), (1999, 7, 2, 15)), 2, 3)
    assert planes.shape == (1, 3, 4, 2, 3)
    assert (planes == planes[..., :1, :1]).all()  # the same in every cell
    hours = planes[0, :, :2, 0, 0]
    torch.testing.assert_close(hours, torch.tensor([[0.0, 1], [1, 0], [-(0.5**0.5), -(0.5**0.5)]]), atol=1e-5, rtol=0)
    day = 2 * math.pi / 365.2425
    for row, days in enumerate((0.0, 91.25, 182.6)):
        expected = [math.sin(day * days), math.cos(day * days)]
        assert planes[0, row, 2:, 0, 0].tolist() == pytest.approx(expected, abs=day)  # off by less than a day


def test_coordinates_by_hand() -> None:
    planes = coordinate_planes(torch.tensor([[0, 0], [2, 4]]), (5, 11), steps=3, h=3, w=7)
    assert planes.shape == (2, 3, 2, 3, 7)
    torch.testing.assert_close(planes[0, 1, 0, :, 5], torch.tensor([-1.0, -0.5, 0.0]))
    torch.testing.assert_close(planes[1, 2, 0, :, 0], torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(planes[1, 0, 1, 2], torch.linspace(-0.2, 1.0, 7))
    single = coordinate_planes(torch.tensor([[0, 0]]), (1, 4), steps=1, h=1, w=4)
    assert single[0, 0, 0].tolist() == [[-1.0] * 4]


class Spy(nn.Module):
    """Persistence that keeps its input."""

    def forward(self, history: Tensor, noise: Tensor | None = None) -> Tensor:
        self.seen = history
        return history[:, -1:, :1]


def spied(**inputs: Any) -> Network:
    normaliser = Normaliser(np.full((1, 2, 1, 1), 3.0), np.array([2.0, 4.0]), [CHANNEL, CHANNEL])
    planes = 4 * bool(inputs.get("calendar")) + 2 * ("grid" in inputs)
    frame = Frame(moving=False, based=False, variables=2, targets=1, planes=planes, history=3, horizon=1)
    guide = Guide((), False, MotionOptions(), 1, 1, np.timedelta64(5, "m"), 1.0)
    return Network(Spy(), normaliser, 300, OutputOptions(), frame=frame, guide=guide, **inputs)


def test_inputs_stand_behind_the_normalised_channels() -> None:
    fields, origin, init = torch.rand(1, 3, 2, 5, 7), torch.tensor([[2, 1]]), seconds((2024, 4, 1, 6))[0]
    plain, both = spied(), spied(calendar=True, grid=(11, 13))
    plain(fields, init, origin)
    both(fields, init, origin)
    assert plain.model.seen.shape[2] == 2
    assert both.model.seen.shape == (1, 3, 8, 5, 7)
    torch.testing.assert_close(both.model.seen[:, :, :2], plain.model.seen)
    frames = seconds((2024, 4, 1, 5, 50), (2024, 4, 1, 5, 55), (2024, 4, 1, 6))  # each at its own time
    torch.testing.assert_close(both.model.seen[:, :, 2:6], calendar_planes(frames, 5, 7))
    torch.testing.assert_close(both.model.seen[:, :, 6:], coordinate_planes(origin, (11, 13), 3, 5, 7))


def test_a_crop_sees_what_the_whole_field_has_there() -> None:
    network, fields, init = spied(calendar=True, grid=(11, 13)), torch.rand(2, 3, 2, 11, 13), torch.tensor([0, 3600])
    network(fields, init, torch.zeros(2, 2, dtype=torch.long))
    whole = network.model.seen
    network(fields[..., 4:9, 3:10], init, torch.tensor([[4, 3]] * 2))
    torch.testing.assert_close(network.model.seen, whole[..., 4:9, 3:10])


LEARNED = {"recurrent": {"hidden": [5], "patch": 2}, "video_transformer": {"dim": 8, "heads": 2, "patch": 3}}


@pytest.mark.parametrize("kind", sorted(LEARNED))
def test_a_checkpoint_keeps_its_inputs(kind: str, tmp_path: Path) -> None:
    options = models.OPTIONS[kind].model_validate(LEARNED[kind]).model_dump(mode="json")
    described = replace(description(kind), kind=kind, options=options, calendar=True, coordinates=True)
    assert described.sizes.channels_in == 7
    torch.manual_seed(1)
    network = build_network(described, np.full((1, 1, 1, 1), 0.2), np.array([0.5]))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    checkpoint.save_checkpoint(tmp_path / "c", described, arrays, "")
    loaded = load(tmp_path / "c")
    assert loaded.config == described
    forecast = loaded(history(), TIMES)
    np.testing.assert_array_equal(forecast, Forecaster(described, {}, network.eval())(history(), TIMES))
    assert not np.array_equal(forecast, loaded(history(), TIMES + np.timedelta64(5, "h")), equal_nan=True)
    assert np.abs(forecast - loaded.members(history(), TIMES, origin=(1, 0))[:, 0])[..., 1:].max() > 0


def test_untrained_it_is_persistence_with_any_inputs() -> None:
    described = replace(description("recurrent"), kind="recurrent", options=LEARNED["recurrent"], calendar=True)
    network = build_network(described, np.full((1, 1, 1, 1), 0.2), np.array([0.5]))
    fields = torch.rand(2, 3, 1, 11, 13)
    origin = torch.zeros(2, 2, dtype=torch.long)
    forecast = network.eval()(fields, torch.tensor([0, 3600]), origin)
    last = network.normaliser.normalise(fields, torch.zeros(2, 3, dtype=torch.long), origin)[:, -1:]
    assert torch.equal(forecast, last.expand_as(forecast))


def test_a_checkpoint_that_says_nothing_of_its_inputs_is_refused(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path, description("persistence"), {}, "")
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["format"] == 8
    assert (content["calendar"], content["coordinates"]) == (False, False)
    del content["calendar"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    manifest.write(tmp_path)
    with pytest.raises(checkpoint.InputError, match="unknown or missing keys"):
        checkpoint.read_config(tmp_path)
