import pytest
import torch
from torch.nn import functional

from fieldcast import models
from fieldcast.models.simvp.layers import ChannelNorm, Decoder, GatedMixing
from fieldcast.models.simvp.options import SimVPOptions
from fieldcast.pipeline.explain.sensitivity import sensitivity

SIZES = {"channels_in": 1, "channels_out": 1, "history": 3, "horizon": 2, "step_minutes": 5}
TINY = {"channels": 3, "hidden": 7, "blocks": 1}


def build(shaken, **options):
    torch.manual_seed(0)
    return shaken(models.build("simvp", SimVPOptions(**{**TINY, **options}), **SIZES)).eval()


def cell(row, column, height, width):
    region = torch.zeros(height, width, dtype=torch.bool)
    region[row, column] = True
    return region


def radius(gradient, row, column):
    """The largest distance along an axis, in cells, at which any frame or channel matters."""
    rows, columns = gradient.ne(0).flatten(0, -3).any(dim=0).nonzero(as_tuple=True)
    return max((rows - row).abs().max().item(), (columns - column).abs().max().item())


def test_default_is_as_large_as_the_others():
    sizes = {**SIZES, "history": 6, "horizon": 12}
    counts = [
        sum(p.numel() for p in models.build(name, models.OPTIONS[name](), **sizes).parameters())
        for name in ("recurrent", "video_transformer", "simvp")
    ]
    assert max(counts) < 1.5 * min(counts)


@pytest.mark.parametrize(("kernel", "blocks"), [(5, 1), (3, 1), (3, 2)])
def test_reach_without_levels(kernel, blocks, shaken):
    """One cell for each 3 x 3 of encoder, decoder and MLP; a block adds half its kernel and 3 * 3 cells."""
    model = build(shaken, levels=0, kernel=kernel, blocks=blocks)
    gradient = sensitivity(model, torch.randn(1, 3, 1, 73, 71), 1, cell(36, 35, 73, 71))
    assert radius(gradient, 36, 35) == 1 + blocks * (kernel // 2 + 9 + 1) + 1
    assert gradient.ne(0).flatten(1).any(dim=1).all()  # every frame


def test_a_tile_forecasts_what_the_field_does(shaken):
    model = build(shaken, levels=1, kernel=3)
    history = torch.randn(1, 3, 1, 128, 118)
    reach = 2 * (1 + 9 + 1) + 8  # coarse cells are two wide
    inside = model(history)[..., 10 + reach : 110 - reach, 8 + reach : 108 - reach]
    tile = model(history[..., 10:110, 8:108])[..., reach:-reach, reach:-reach]
    assert tile.shape[-1] > 30
    torch.testing.assert_close(tile, inside, rtol=0, atol=1e-5)


def test_channel_norm_by_hand():
    norm = ChannelNorm(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
    maps = torch.tensor([1.0, 5.0])[None, :, None, None].expand(1, 2, 3, 5) * torch.arange(1.0, 4)[:, None]
    expected = torch.tensor([-2.0, 3.0])[None, :, None, None].expand(1, 2, 3, 5)
    torch.testing.assert_close(norm(maps), expected, rtol=1e-4, atol=0)


def test_gated_mixing_by_brute_force(shaken):
    mixing = shaken(GatedMixing(2, 3)).double()
    maps = torch.randn(1, 2, 25, 23, dtype=torch.float64)
    entered = torch.einsum("dc,chw->dhw", mixing.enter.weight[:, :, 0, 0], maps[0])
    entered = functional.gelu(entered + mixing.enter.bias[:, None, None])
    y, x = 12, 11
    wide = []
    for c in range(2):
        total = mixing.far.bias[c]
        for i in range(7):
            for j in range(7):
                row, column = y + 3 * (i - 3), x + 3 * (j - 3)
                near = mixing.near.bias[c] + sum(
                    mixing.near.weight[c, 0, k, m] * entered[c, row + k - 1, column + m - 1]
                    for k in range(3)
                    for m in range(3)
                )
                total = total + mixing.far.weight[c, 0, i, j] * near
        wide.append(total)
    split = mixing.split.weight[:, :, 0, 0] @ torch.stack(wide) + mixing.split.bias
    gated = split[:2] / (1 + torch.exp(-split[2:]))
    expected = mixing.leave.weight[:, :, 0, 0] @ gated + mixing.leave.bias
    torch.testing.assert_close(mixing(maps)[0, :, y, x], expected)


def test_decoder_joins_as_one_convolution_of_both(shaken):
    decoder = shaken(Decoder(3, 0))
    coarse, fine = torch.randn(2, 5, 3, 7, 11), torch.randn(2, 3, 7, 11)
    joined = torch.cat([coarse, fine[:, None].expand_as(coarse)], dim=2).flatten(0, 1)
    weight = torch.cat([decoder.of_lead.weight, decoder.of_frame.weight], dim=1)
    expected = functional.silu(functional.conv2d(joined, weight, decoder.of_lead.bias, padding=1))
    torch.testing.assert_close(decoder(coarse, fine).flatten(0, 1), expected, rtol=0, atol=1e-5)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="kernel must be odd, got 4"):
        SimVPOptions(kernel=4)
