from itertools import product

import pytest
import torch
from torch import nn

from fieldcast import models
from fieldcast.models.video_transformer.attention.core import Attention
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes
from fieldcast.models.video_transformer.attention.inspect.recorder import record
from fieldcast.models.video_transformer.attention.inspect.rollout import (
    look_back,
    of_tokens,
    over_cells,
    over_frames,
    passed_on,
    rolled_back,
)

T, H, W = 2, 3, 5
N = T * H * W


def identity():
    """A question for each token: relevance (1, t, h, w, q) that is the identity over tokens."""
    return torch.eye(N).reshape(1, T, H, W, N)


def recorded(model):
    with torch.no_grad(), record(model) as recording:
        model(torch.randn(1, T, H, W, 6))
    return recording.calls


def matrix(rolled):
    """Rows of questions, columns of tokens."""
    return rolled[0].reshape(N, N).T


def lifted(call):
    """The whole matrix of one call by brute force: half the weights of its line, and half the token itself."""
    _, times, rows, columns = call.grid
    tokens = list(product(range(times), range(rows), range(columns)))
    line_of = {
        "T": lambda t, h, w: (h * columns + w, t),
        "S": lambda t, h, w: (t, h * columns + w),
        "H": lambda t, h, w: (t * columns + w, h),
        "W": lambda t, h, w: (t * rows + h, w),
        "J": lambda t, h, w: (0, (t * rows + h) * columns + w),
    }[call.along]
    full = 0.5 * torch.eye(len(tokens))
    for i, one in enumerate(tokens):
        for j, other in enumerate(tokens):
            (line, n), (same, m) = line_of(*one), line_of(*other)
            if line == same:
                full[i, j] += 0.5 * call.weights[line, :, n, m].mean()
    return full


@pytest.mark.parametrize("along", ["J", "T", "S", "H", "W"])
def test_one_layer_is_half_its_weights_and_half_the_identity(along, shaken):
    (call,) = recorded(shaken(AlongAxes(6, 2, along)))
    torch.testing.assert_close(matrix(rolled_back([call], identity())), lifted(call), rtol=0, atol=1e-6)


def test_layers_multiply(shaken):
    model = shaken(nn.Sequential(*(AlongAxes(6, 2, along) for along in "TSSTJ")))
    calls = recorded(model)
    matrices = torch.eye(N)
    for call in calls:
        matrices = lifted(call) @ matrices
    rolled = matrix(rolled_back(calls, identity()))
    torch.testing.assert_close(rolled, matrices, rtol=0, atol=1e-6)
    torch.testing.assert_close(rolled.sum(dim=1), torch.ones(N), rtol=0, atol=1e-6)


def test_a_row_without_weights_keeps_itself():
    weights = torch.zeros(1, 2, 3, 3)
    weights[:, :, 0, 1] = 1
    assert passed_on(weights)[0].tolist() == [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]]


def test_attention_off_the_grid_is_refused(shaken):
    model = shaken(Attention(6, 2))
    with record(model) as recording:
        model(torch.randn(1, N, 6))
    with pytest.raises(ValueError, match="attention must run along axes of a grid"):
        rolled_back(recording.calls, identity())


def test_regions_to_patches_and_patches_to_cells():
    region = torch.zeros(5, 7, dtype=torch.bool)
    region[1:3, 3] = True
    region[4, 6] = True
    shares = of_tokens(region, 2)
    expected = torch.zeros(3, 4)
    expected[0, 1] = expected[1, 1] = expected[2, 3] = 1 / 3
    torch.testing.assert_close(shares, expected)
    cells = over_cells(shares[None], 2, 5, 7)
    assert cells.shape == (1, 5, 7)
    torch.testing.assert_close(cells[0, :2, 2:4], torch.full((2, 2), 1 / 12))
    torch.testing.assert_close(cells.sum(), torch.tensor(2 / 3 + 1 / 12))  # the last patch hangs over the edge


def test_slots_to_frames():
    shares = torch.tensor([6.0, 4.0]).reshape(2, 1, 1)
    assert over_frames(shares, 2, 4).flatten().tolist() == [3, 3, 2, 2]
    assert over_frames(shares, 2, 3).flatten().tolist() == [6, 2, 2]  # the first frame was repeated
    assert over_frames(shares, 1, 2).flatten().tolist() == [6, 4]


def transformer(shaken, history=5, **options):
    torch.manual_seed(0)
    options = models.OPTIONS["video_transformer"](dim=12, heads=2, patch=4, **options)
    sizes = {"channels_in": 1, "channels_out": 1, "history": history, "horizon": 3, "step_minutes": 5}
    return shaken(models.build("video_transformer", options, **sizes)).eval()


@pytest.mark.parametrize("options", [{}, {"attention": "axial"}, {"attention": "divided"}, {"attention": "joint"}])
def test_forecast_is_followed_to_cells_of_the_history(options, shaken):
    """Two cells of one patch and one of another, of the second of three leads, on 3 x 2 patches of 11 x 7 cells."""
    model, history = transformer(shaken, **options), torch.randn(1, 5, 1, 11, 7)
    region = torch.zeros(11, 7, dtype=torch.bool)
    region[3, 2:4] = region[9, 6] = True
    with torch.no_grad(), record(model.trunk) as recording:
        model(history)
    matrices = torch.eye(8 * 6)
    for call in recording.calls:
        matrices = lifted(call) @ matrices
    rows = matrices.reshape(8, 3, 2, 8, 3, 2)[6]  # 5 + 1
    expected = (2 * rows[0, 0] + rows[2, 1])[:5] / 3
    shares = look_back(model, history, 1, region)
    assert shares.shape == (5, 11, 7)
    torch.testing.assert_close(shares[:, 4:8, :4].sum(dim=(1, 2)), expected[:, 1, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(shares[:, 8:, 4:], (expected[:, 2, 1] / 16)[:, None, None].expand(5, 3, 3))


def test_tubelets_and_direct_forecasts_are_followed(shaken):
    region = torch.ones(9, 7, dtype=torch.bool)
    shares = look_back(transformer(shaken, tubelet=2), torch.randn(1, 5, 1, 9, 7), 0, region)
    assert shares.shape == (5, 9, 7)
    torch.testing.assert_close(shares[1], shares[2])  # the slots are -5 -5, -4 -3, -2 -1
    assert not torch.allclose(shares[2], shares[3])
    direct = transformer(shaken, history=3, future="direct")
    shares = look_back(direct, torch.randn(1, 3, 1, 8, 12), 2, torch.ones(8, 12, dtype=torch.bool))
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))  # no queries, no padding
    assert shares[2].sum() > 0.4  # half stays in place in each layer; all alike would be a third


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "linear"}, "rollout needs attention: factorised, joint, divided, axial, got linear"),
        ({"global_tokens": 2}, "rollout needs arch: fill_in without global tokens, got fill_in with 2"),
        ({"arch": "encoder_decoder"}, "rollout needs arch: fill_in without global tokens, got encoder_decoder with 0"),
    ],
)
def test_models_that_cannot_be_followed_are_refused(options, message, shaken):
    model = transformer(shaken, **options)
    with pytest.raises(ValueError, match=message):
        look_back(model, torch.randn(1, 5, 1, 8, 8), 0, torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="region must hold at least one cell"):
        look_back(transformer(shaken), torch.randn(1, 5, 1, 8, 8), 0, torch.zeros(8, 8, dtype=torch.bool))
