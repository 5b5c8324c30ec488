"""Random features against the softmax that they estimate."""

import math

import pytest
import torch
from torch.nn import functional

from fieldcast.models.video_transformer.attention.approximate.linear import kernel_attention
from fieldcast.models.video_transformer.attention.approximate.performer import (
    Performer,
    key_features,
    orthogonal_directions,
    query_features,
)
from fieldcast.models.video_transformer.attention.core import attend
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes

WIDTH = 16


def make_heads(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, 1, 97, WIDTH, generator=generator) for _ in range(3))
    return length * functional.normalize(query, dim=-1), length * functional.normalize(key, dim=-1), value


def relative_error(features, seed, heads):
    query, key, value = heads
    directions = orthogonal_directions(features, WIDTH, seed)
    estimate = kernel_attention(query_features(query, directions), key_features(key, directions), value)
    exact = attend(query, key, value)
    return ((estimate - exact).norm() / exact.norm()).item()


def mean_error(features, heads, seeds=8):
    return sum(relative_error(features, seed, heads) for seed in range(seeds)) / seeds


@pytest.mark.parametrize(("length", "largest"), [(1.0, 0.02), (2.0, 0.1)])
def test_error_falls_with_the_root_of_the_features(length, largest):
    heads = make_heads(length)
    few, many = mean_error(64, heads), mean_error(4096, heads)
    assert many <= largest
    assert math.log(many / few) / math.log(4096 / 64) == pytest.approx(-0.5, abs=0.1)


def test_directions_are_orthogonal_in_blocks_and_normal_in_length():
    directions = orthogonal_directions(4 * WIDTH + 3, WIDTH, seed=1)
    assert directions.shape == (67, WIDTH)
    for block in directions.split(WIDTH):
        product = block @ block.T
        torch.testing.assert_close(product, product.diagonal().diag(), rtol=0, atol=1e-4)
    many = orthogonal_directions(20000, WIDTH, seed=2)
    assert many.square().sum(dim=-1).mean().item() == pytest.approx(WIDTH, rel=0.02)
    assert many.mean(dim=0).abs().max() < 0.05  # no side is preferred
    torch.testing.assert_close(many.T @ many / 20000, torch.eye(WIDTH), rtol=0, atol=0.06)


def test_directions_follow_the_seed():
    assert torch.equal(orthogonal_directions(7, 5, seed=3), orthogonal_directions(7, 5, seed=3))
    assert not torch.equal(Performer(10, 2, seed=3).directions, Performer(10, 2, seed=4).directions)
    assert "directions" in Performer(10, 2).state_dict()


def test_features_equal_the_formula():
    query, directions = make_heads(1.5)[0], orthogonal_directions(11, WIDTH, seed=0)
    scaled = query / WIDTH**0.25
    exponent = torch.einsum("bhnd,md->bhnm", scaled, directions) - (scaled**2).sum(dim=-1, keepdim=True) / 2
    by_row = (exponent - exponent.amax(dim=-1, keepdim=True)).exp() + 1e-6
    torch.testing.assert_close(query_features(query, directions), by_row)
    torch.testing.assert_close(key_features(query, directions), (exponent - exponent.max()).exp() + 1e-6)


def test_large_queries_and_keys_stay_finite():
    query, key, value = make_heads(100.0)
    directions = orthogonal_directions(32, WIDTH, seed=0)
    mixed = kernel_attention(query_features(query, directions), key_features(key, directions), value)
    assert mixed.isfinite().all()
    assert (mixed <= value.amax(dim=-2, keepdim=True) + 1e-3).all()  # a weighted mean still


def test_the_layer_is_close_to_exact_attention():
    torch.manual_seed(0)
    exact, estimate = AlongAxes(10, 2, "J"), Performer(10, 2, features=1024)
    estimate.load_state_dict(exact.state_dict(), strict=False)
    grid = torch.randn(1, 3, 5, 7, 10)
    assert (estimate(grid) - exact(grid)).norm() < 0.05 * exact(grid).norm()


def test_needs_features():
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        Performer(10, 2, features=0)
