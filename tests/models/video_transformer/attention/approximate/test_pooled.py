"""Coarser keys and values: the finest are exact, squares are means of valid cells."""

import pytest
import torch

from fieldcast.models.video_transformer.attention.approximate.pooled import Pooled, square_means
from fieldcast.models.video_transformer.attention.core import Attention
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes


def make_grid(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def make_valid(*shape, share=0.5):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < share


def means_brute_force(grid, stride, valid):
    b, t, h, w, d = grid.shape
    rows, columns = -(-h // stride), -(-w // stride)
    means, any_valid = torch.zeros(b, t, rows, columns, d), torch.zeros(b, t, rows, columns, dtype=torch.bool)
    for s, k, i, j in torch.cartesian_prod(*map(torch.arange, (b, t, rows, columns))).tolist():
        square = (s, k, slice(i * stride, (i + 1) * stride), slice(j * stride, (j + 1) * stride))
        if valid[square].any():
            means[s, k, i, j], any_valid[s, k, i, j] = grid[square][valid[square]].mean(dim=0), True
    return means, any_valid


@pytest.mark.parametrize("masked", [False, True])
def test_stride_one_is_exact_attention(masked):
    torch.manual_seed(0)
    exact, pooled = AlongAxes(12, 3, "J"), Pooled(12, 3, stride=1)
    pooled.load_state_dict(exact.state_dict(), strict=False)
    grid, valid = make_grid(2, 3, 5, 7, 12), make_valid(2, 3, 5, 7) if masked else None
    torch.testing.assert_close(pooled(grid, valid), exact(grid, valid), rtol=0, atol=1e-6)


@pytest.mark.parametrize("stride", [2, 3, 5])
def test_squares_are_means_of_valid_cells(stride):
    grid, valid = make_grid(2, 3, 7, 11, 4), make_valid(2, 3, 7, 11, share=0.2)
    expected, any_expected = means_brute_force(grid, stride, valid)
    means, any_valid = square_means(grid, stride, valid)
    torch.testing.assert_close(means, expected)
    assert torch.equal(any_valid, any_expected)
    everything = torch.ones_like(valid)
    torch.testing.assert_close(square_means(grid, stride)[0], means_brute_force(grid, stride, everything)[0])


def test_the_layer_attends_to_its_squares():
    torch.manual_seed(0)
    pooled, grid, valid = Pooled(12, 3, stride=3), make_grid(2, 2, 5, 7, 12), make_valid(2, 2, 5, 7, share=0.2)
    means, any_valid = means_brute_force(grid, 3, valid)
    layer: Attention = pooled.attention
    for s in range(2):
        alone = layer(grid[s].reshape(1, -1, 12), means[s][any_valid[s]][None])
        torch.testing.assert_close(pooled(grid, valid)[s].reshape(1, -1, 12), alone)


def test_squares_are_held():
    assert Pooled(12, 3, stride=2).held(2, 5, 7) == 2 * 3 * 4 * 12


def test_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        Pooled(12, 3, stride=0)
