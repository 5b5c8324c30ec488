import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from fieldcast.models.video_transformer.attention.core import Attention
from fieldcast.models.video_transformer.attention.exact.axes import AXES, AlongAxes

SIZES = (3, 5, 2)
MIXED = {"J": (1, 1, 1), "T": (1, 0, 0), "S": (0, 1, 1), "H": (0, 1, 0), "W": (0, 0, 1)}  # (t, h, w) may differ


def may_attend(along, t, h, w):
    """Token by token: two of them may attend to each other where only mixed axes differ."""
    places = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w))
    same = places[:, None] == places[None]
    return (same | torch.tensor(MIXED[along], dtype=torch.bool)).all(dim=-1)


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("along", AXES)
def test_each_axis_is_full_attention_under_a_mask(along, masked, impl, shaken):
    mixer, full = shaken(AlongAxes(6, 2, along, impl=impl)), Attention(6, 2)
    full.load_state_dict(mixer.attention.state_dict())
    grid = torch.randn(2, *SIZES, 6)
    valid = torch.rand(2, *SIZES, generator=torch.Generator().manual_seed(4)) < 0.6 if masked else None
    if masked:  # for each way some lines where nothing can be seen
        valid[1, 2], valid[0, :, 3, 1] = False, False
    allowed = may_attend(along, *SIZES).expand(2, 1, 30, 30)
    if masked:
        allowed = allowed & valid.reshape(2, 1, 1, 30)
        assert (~allowed.any(dim=-1)).any() == (along != "J")
    expected = full(grid.reshape(2, 30, 6), allowed=allowed).reshape(grid.shape)
    torch.testing.assert_close(mixer(grid, valid), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("along", AXES)
def test_reach(along, shaken):
    mixer = shaken(AlongAxes(4, 2, along))
    reach = jacobian(lambda x: mixer(x).sum(dim=-1), torch.randn(1, *SIZES, 4)).abs().sum(dim=-1)
    assert torch.equal(reach.reshape(30, 30) > 0, may_attend(along, *SIZES))


@pytest.mark.parametrize("along", ["J", "S", "W"])
def test_a_single_row_is_full_attention(along, shaken):
    mixer, theirs = shaken(AlongAxes(6, 3, along)), nn.MultiheadAttention(6, 3, batch_first=True)
    attention = mixer.attention
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([attention.query.weight, attention.key.weight, attention.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([attention.query.bias, torch.zeros(6), attention.value.bias]))
        theirs.out_proj.load_state_dict(attention.out.state_dict())
    row = torch.randn(2, 1, 1, 11, 6)
    expected, _ = theirs(row[:, 0, 0], row[:, 0, 0], row[:, 0, 0])
    torch.testing.assert_close(mixer(row)[:, 0, 0], expected, rtol=0, atol=1e-6)


def test_invalid_tokens_lend_no_value_and_get_no_gradient(shaken):
    mixer, grid = shaken(AlongAxes(6, 2, "S")), torch.randn(1, *SIZES, 6, requires_grad=True)
    valid = torch.rand(1, *SIZES, generator=torch.Generator().manual_seed(4)) < 0.5
    mixed = mixer(grid, valid)
    (gradient,) = torch.autograd.grad(mixed[valid].sum(), grid)
    assert (gradient[~valid] == 0).all()
    assert (gradient[valid] != 0).all()
    other = torch.where(valid[..., None], grid, 1e3)
    assert torch.equal(mixer(other, valid)[valid], mixed[valid])


@pytest.mark.parametrize("along", AXES)
def test_rotation_sees_places_along_the_axis(along, shaken):
    mixer, shapes = shaken(AlongAxes(6, 2, along)), []
    mixer(torch.randn(2, *SIZES, 6), rotate=lambda x: shapes.append(x.shape) or x)
    n = {"J": 30, "T": 3, "S": 10, "H": 5, "W": 2}[along]
    assert shapes == [(2 * 30 // n, 2, n, 3)] * 2


@pytest.mark.parametrize("along", AXES)
def test_multiply_adds_are_those_counted(along, count_macs):
    mixer = AlongAxes(6, 2, along)
    assert mixer.macs(*SIZES) == count_macs(mixer, *SIZES)
    assert mixer.macs(4, 5, 7) == count_macs(mixer, 4, 5, 7)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("along", AXES)
def test_held_values_are_those_kept(along, masked, count_held):
    """Beyond them, five vectors a token: itself, its query, key and value, and what it became."""
    mixer = AlongAxes(6, 2, along, impl="eager")
    valid = torch.rand(1, *SIZES) < 0.5 if masked else None
    assert count_held(mixer, *SIZES, valid=valid) == mixer.held(*SIZES) + 5 * 30 * 6
    fused = AlongAxes(6, 2, along)
    assert fused.held(*SIZES) == 0
    assert count_held(fused, *SIZES) == 5 * 30 * 6 + 30 * 2  # and a number for each token and head


@pytest.mark.parametrize(("along", "power"), [("J", 2), ("S", 2), ("T", 1)])
def test_memory_of_written_weights_grows_with_the_square_of_a_line(along, power, count_held):
    """1,000, 2,000 and 4,000 tokens: what is held is a + b N for short lines, a + b N^2 for all pairs."""
    mixer = AlongAxes(4, 2, along, impl="eager").to("meta")
    tokens = np.array([1000, 2000, 4000])
    steps, columns = (1, 40) if along == "S" else (4, 10)
    held = np.array([count_held(mixer, steps, n // 40, columns, device="meta") for n in tokens])
    fit = np.polynomial.Polynomial.fit(tokens**power, held, 1, domain=[-1, 1], window=[-1, 1])
    unexplained = ((held - fit(tokens**power)) ** 2).sum() / ((held - held.mean()) ** 2).sum()
    assert 1 - unexplained > 0.99
    assert fit.coef[1] == pytest.approx(2 if power == 2 else 5 * 4 + 2 * 4, rel=0.05)  # heads; vectors and lines of 4


def test_an_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="along must be one of J, T, S, H, W, got 'X'"):
        AlongAxes(6, 2, "X")
