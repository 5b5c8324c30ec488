import itertools

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

from fieldcast.models.video_transformer.attention.core import Attention
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes
from fieldcast.models.video_transformer.attention.exact.window import Window, cut, fitted, half, joined

SIZES = (3, 5, 7)
N = 3 * 5 * 7


def number_of_window(place, size, most, shifted):
    """Which window of an axis a place is in, by hand."""
    count = -(-size // most)
    window = -(-size // count)
    if not shifted:
        return place // window
    shift = window // 2 if count > 1 else 0
    return -1 if place < shift else (place - shift) // window  # what is cut off in front is a window of its own


def may_attend(sizes, window, shifted):
    places = list(itertools.product(*map(range, sizes)))
    numbers = torch.tensor(
        [[number_of_window(*a, shifted) for a in zip(p, sizes, window, strict=True)] for p in places]
    )
    return (numbers[:, None] == numbers[None]).all(dim=-1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("window", [(2, 3, 4), (1, 2, 2), (3, 1, 7), (2, 9, 3), (1, 1, 1)])
def test_windows_are_full_attention_under_a_mask(window, shifted, masked, shaken):
    mixer, full = shaken(Window(6, 2, window=window, shifted=shifted)), Attention(6, 2)
    full.load_state_dict(mixer.attention.state_dict())
    grid = torch.randn(2, *SIZES, 6)
    valid = torch.rand(2, *SIZES, generator=torch.Generator().manual_seed(4)) < 0.6 if masked else None
    allowed = may_attend(SIZES, window, shifted).expand(2, 1, N, N)
    if masked:
        valid[0] = False  # nothing to see in a whole sample
        allowed = allowed & valid.reshape(2, 1, 1, N)
    expected = full(grid.reshape(2, N, 6), allowed=allowed).reshape(grid.shape)
    torch.testing.assert_close(mixer(grid, valid), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("window", [SIZES, (4, 11, 8)])
@pytest.mark.parametrize("masked", [False, True])
def test_one_window_is_joint_attention(window, shifted, masked, shaken):
    mixer, joint = shaken(Window(6, 2, window=window, shifted=shifted)), AlongAxes(6, 2, "J")
    joint.load_state_dict(mixer.state_dict())
    grid = torch.randn(2, *SIZES, 6)
    valid = torch.rand(2, *SIZES) < 0.5 if masked else None
    torch.testing.assert_close(mixer(grid, valid), joint(grid, valid), rtol=0, atol=1e-6)
    assert mixer.macs(*SIZES) == joint.macs(*SIZES)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("along", "window"), [("T", (3, 1, 1)), ("S", (1, 5, 7)), ("H", (1, 5, 1)), ("W", (1, 1, 7)), ("J", SIZES)]
)
def test_a_window_of_whole_axes_is_attention_along_them(along, window, shifted, shaken):
    mixer, axes = shaken(Window(6, 2, window=window, shifted=shifted)), AlongAxes(6, 2, along)
    axes.load_state_dict(mixer.state_dict())
    grid = torch.randn(2, *SIZES, 6)
    torch.testing.assert_close(mixer(grid), axes(grid), rtol=0, atol=1e-6)


def test_nothing_mixes_over_an_edge(shaken):
    """The shifted windows at the two ends of an axis are one piece of memory, but two groups of tokens."""
    mixer = shaken(Window(4, 2, window=(1, 1, 4), shifted=True))
    reach = jacobian(lambda x: mixer(x).sum(dim=-1), torch.randn(1, 1, 1, 8, 4)).abs().sum(dim=-1).reshape(8, 8) > 0
    groups = torch.block_diag(torch.ones(2, 2), torch.ones(4, 4), torch.ones(2, 2)).bool()
    assert torch.equal(reach, groups)


def test_local_then_shifted_windows_reach_beyond_one(shaken):
    local, shifted = shaken(Window(4, 2, window=(1, 1, 4))), shaken(Window(4, 2, window=(1, 1, 4), shifted=True))
    both = jacobian(lambda x: shifted(local(x)).sum(dim=-1), torch.randn(1, 1, 1, 8, 4)).abs().sum(dim=-1)
    assert (both.reshape(8, 8)[2:6] > 0).all()
    assert (both.reshape(8, 8)[0] > 0).tolist() == [True] * 4 + [False] * 4


def test_invalid_tokens_and_padding_lend_nothing(shaken):
    mixer, grid = shaken(Window(6, 2, window=(2, 2, 3), shifted=True)), torch.randn(1, *SIZES, 6).requires_grad_()
    valid = torch.rand(1, *SIZES, generator=torch.Generator().manual_seed(4)) < 0.5
    mixed = mixer(grid, valid)
    (gradient,) = torch.autograd.grad(mixed[valid].sum(), grid)
    assert gradient.isfinite().all()
    assert (gradient[~valid] == 0).all()
    assert torch.equal(mixer(torch.where(valid[..., None], grid, 1e3), valid)[valid], mixed[valid])
    with torch.no_grad():
        mixer.attention.key.weight.mul_(50)  # a padded token that was seen would change something
    whole = mixer(grid)
    alone = Window(6, 2, window=(2, 2, 3), shifted=True)
    alone.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(whole, alone(grid, torch.ones_like(valid)), rtol=0, atol=1e-6)


def test_windows_fit_the_grid_with_little_over():
    assert fitted((9, 5, 3), (8, 4, 4)) == (5, 3, 3)
    assert fitted((8, 12, 4), (4, 4, 4)) == (4, 4, 4)
    assert half((8, 4, 3), (4, 4, 3)) == (2, 0, 0)
    assert half((3, 1, 10), (1, 1, 5)) == (0, 0, 2)


def test_joined_undoes_cut():
    grid = torch.arange(2 * 4 * 6 * 10 * 3).reshape(2, 4, 6, 10, 3)
    windows = cut(grid, (2, 3, 5))
    assert windows.shape == (2 * 2 * 2 * 2, 30, 3)
    assert torch.equal(joined(windows, (2, 3, 5), (4, 6, 10)), grid)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("window", [(2, 3, 4), (1, 5, 7)])
def test_multiply_adds_are_those_counted(window, shifted, count_macs):
    mixer = Window(6, 2, window=window, shifted=shifted)
    assert mixer.macs(*SIZES) == count_macs(mixer, *SIZES)
    assert mixer.macs(4, 6, 8) == count_macs(mixer, 4, 6, 8)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_held_values_are_those_kept(shifted, masked, count_held):
    """Beyond them, five vectors a token; the fused kernel keeps a number for each token and head, and for its mask."""
    t, h, w = sizes = (4, 6, 8)
    valid = torch.rand(1, *sizes) < 0.5 if masked else None
    tokens = t * h * w
    fused = Window(6, 2, window=(2, 3, 4), shifted=shifted)
    assert fused.held(*sizes) == (tokens * 24 if shifted else 0)
    keys = tokens if masked and not shifted else 0
    assert count_held(fused, *sizes, valid=valid) == fused.held(*sizes) + 5 * tokens * 6 + 2 * tokens + keys


@pytest.mark.parametrize("shifted", [False, True])
def test_memory_grows_as_the_number_of_tokens(shifted, count_held):
    """Even with weights written out."""
    mixer = Window(4, 2, window=(2, 4, 4), shifted=shifted).to("meta")
    mixer.attention.impl = "eager"
    tokens = np.array([1024, 2048, 4096])
    held = np.array([count_held(mixer, 4, 16, n // 64, device="meta") for n in tokens])
    fit = np.polynomial.Polynomial.fit(tokens, held, 1, domain=[-1, 1], window=[-1, 1])
    assert 1 - ((held - fit(tokens)) ** 2).sum() / ((held - held.mean()) ** 2).sum() > 0.99
    assert fit.coef[1] == pytest.approx(2 * 32 + 5 * 4, rel=0.02)  # heads times a window; vectors


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"window must be three sizes of 1 or more, got \(2, 0, 4\)"):
        Window(6, 2, window=(2, 0, 4))
