"""Linear attention against its own definition with all weights written out."""

import torch

from fieldcast.models.video_transformer.attention.approximate.linear import (
    EPSILON,
    LinearAttention,
    elu_features,
    kernel_attention,
)


def explicit(query, key, value):
    weights = query @ key.transpose(-2, -1)
    return weights @ value / (weights.sum(dim=-1, keepdim=True) + EPSILON)


def make_heads(n, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(2, 3, n, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    return elu_features(query), elu_features(key), value


def test_features_are_positive_and_linear_above_zero():
    features = elu_features(torch.tensor([-2.0, 0.0, 1.5]))
    torch.testing.assert_close(features, torch.tensor([0.1353353, 1.0, 2.5]))


def test_equals_the_explicit_weights():
    query, key, value = make_heads(37, seed=0)
    torch.testing.assert_close(kernel_attention(query, key, value), explicit(query, key, value), rtol=0, atol=1e-12)


def test_float32_equals_the_explicit_weights():
    query, key, value = (x.float() for x in make_heads(37, seed=0))
    torch.testing.assert_close(kernel_attention(query, key, value), explicit(query, key, value), rtol=0, atol=1e-6)


def test_the_layer_leaves_out_masked_tokens_as_if_they_were_not_there():
    torch.manual_seed(0)
    mixer, grid = LinearAttention(10, 2), torch.randn(1, 1, 1, 13, 10)
    valid = torch.ones(1, 1, 1, 13, dtype=torch.bool)
    valid[..., 9:] = False
    torch.testing.assert_close(mixer(grid, valid)[..., :9, :], mixer(grid[..., :9, :]))
