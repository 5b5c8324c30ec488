"""Mixtures of keys and values: identities give exact attention, and they stretch to any size."""

import pytest
import torch

from fieldcast.models.video_transformer.attention.approximate.linformer import (
    Linformer,
    reachable,
    segment_means,
    stretch,
)
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes

TOKENS = 3 * 5 * 7


def exact_pair():
    torch.manual_seed(0)
    exact, estimate = AlongAxes(12, 3, "J"), Linformer(12, 3, keys=TOKENS, tokens=TOKENS)
    estimate.load_state_dict(exact.state_dict(), strict=False)
    return exact, estimate, torch.randn(2, 3, 5, 7, 12)


def test_as_many_keys_as_tokens_is_exact_attention():
    exact, estimate, grid = exact_pair()
    assert torch.equal(estimate.mix_keys, torch.eye(TOKENS))
    torch.testing.assert_close(estimate(grid), exact(grid), rtol=0, atol=1e-6)


def test_as_many_keys_as_tokens_is_exact_attention_with_a_mask():
    exact, estimate, grid = exact_pair()
    valid = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    torch.testing.assert_close(estimate(grid, valid), exact(grid, valid), rtol=0, atol=1e-6)


def test_equals_attention_to_mixed_keys_and_values_by_hand():
    torch.manual_seed(0)
    mixer, grid = Linformer(6, 2, keys=5, tokens=14), torch.randn(1, 1, 2, 7, 6)
    with torch.no_grad():
        mixer.mix_keys.copy_(torch.randn(5, 14))
        mixer.mix_values.copy_(torch.randn(5, 14))
    layer, tokens = mixer.attention, grid.reshape(14, 6)
    query, key, value = layer.query(tokens), mixer.mix_keys @ layer.key(tokens), mixer.mix_values @ layer.value(tokens)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        heads.append((query[:, head] @ key[:, head].T / 3**0.5).softmax(dim=-1) @ value[:, head])
    expected = layer.out(torch.cat(heads, dim=-1)).reshape(1, 1, 2, 7, 6)
    torch.testing.assert_close(mixer(grid), expected, rtol=1e-5, atol=1e-6)


def test_mixtures_start_as_means_of_segments():
    expected = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(segment_means(2, 5).flip(0, 1), expected)
    torch.testing.assert_close(segment_means(7, 53).sum(dim=1), torch.ones(7))


def test_stretched_means_stay_means():
    mixtures = segment_means(7, 53)
    assert torch.equal(stretch(mixtures, 53), mixtures)
    torch.testing.assert_close(stretch(mixtures, 106).sum(dim=1), torch.ones(7))
    torch.testing.assert_close(stretch(torch.tensor([[0.0, 1.0]]), 4), torch.tensor([[0.0, 0.125, 0.375, 0.5]]))


def test_reachable_mixtures_have_weight_on_a_valid_token():
    mixtures = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 2.0]])
    valid = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    expected = torch.tensor([[True, False], [False, True], [False, False]])
    assert torch.equal(reachable(mixtures, valid)[:, 0, 0], expected)


@pytest.mark.parametrize("keys", [0, 14])
def test_refuses_more_keys_than_tokens_or_none(keys):
    with pytest.raises(ValueError, match=rf"keys must be between 1 and tokens \(13\), got {keys}"):
        Linformer(6, 2, keys=keys, tokens=13)
