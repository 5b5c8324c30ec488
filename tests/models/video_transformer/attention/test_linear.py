"""Linear attention against its own definition with all weights written out."""

import pytest
import torch

from fieldcast.models.video_transformer.attention.linear import (
    BLOCK,
    EPSILON,
    LinearAttention,
    causal_kernel_attention,
    elu_features,
    kernel_attention,
)


def explicit(query, key, value, mask=None):
    weights = query @ key.transpose(-2, -1)
    weights = weights if mask is None else weights * mask
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


@pytest.mark.parametrize("n", [1, 37, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_causal_equals_the_masked_form(n):
    query, key, value = make_heads(n, seed=1)
    mask = torch.ones(n, n, dtype=torch.float64).tril()
    expected = explicit(query, key, value, mask)
    torch.testing.assert_close(causal_kernel_attention(query, key, value), expected, rtol=0, atol=1e-12)


def test_causal_gradient_does_not_come_from_later_keys():
    query, key, value = make_heads(BLOCK + 11, seed=2)
    value.requires_grad_()
    causal_kernel_attention(query, key, value)[:, :, BLOCK + 3].sum().backward()
    assert (value.grad[:, :, : BLOCK + 4] != 0).all()
    assert (value.grad[:, :, BLOCK + 4 :] == 0).all()


def test_the_layer_leaves_out_masked_tokens_as_if_they_were_not_there():
    torch.manual_seed(0)
    mixer, grid = LinearAttention(10, 2), torch.randn(1, 1, 1, 13, 10)
    valid = torch.ones(1, 1, 1, 13, dtype=torch.bool)
    valid[..., 9:] = False
    torch.testing.assert_close(mixer(grid, valid)[..., :9, :], mixer(grid[..., :9, :]))
