"""Landmarks: as many as tokens are exact, and the layer equals that of transformers."""

import pytest
import torch
from einops import rearrange, repeat
from transformers import NystromformerConfig
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from fieldcast.models.video_transformer.attention.approximate import nystrom
from fieldcast.models.video_transformer.attention.approximate.nystrom import (
    Nystrom,
    iterate_inverse,
    landmark_weights,
    segment_landmarks,
    segment_valid,
    segments,
)
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes


def make_valid(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < 0.6


@pytest.fixture
def exact_inverse(monkeypatch):
    monkeypatch.setattr(nystrom, "iterate_inverse", lambda weights, _: torch.linalg.pinv(weights))


@pytest.mark.usefixtures("exact_inverse")
@pytest.mark.parametrize("masked", [False, True])
def test_as_many_landmarks_as_tokens_is_exact_attention(masked):
    torch.manual_seed(0)
    exact, estimate = AlongAxes(12, 3, "J").double(), Nystrom(12, 3, landmarks=53).double()
    estimate.load_state_dict(exact.state_dict(), strict=False)
    grid = 3 * torch.randn(2, 2, 3, 5, 12, dtype=torch.float64)
    valid = make_valid(2, 2, 3, 5) if masked else None
    torch.testing.assert_close(estimate(grid, valid), exact(grid, valid), rtol=0, atol=1e-3)


def test_equals_transformers():
    torch.manual_seed(0)
    config = NystromformerConfig(
        hidden_size=12, num_attention_heads=3, num_landmarks=7, segment_means_seq_len=35, conv_kernel_size=33
    )
    theirs, ours = NystromformerSelfAttention(config).eval(), Nystrom(12, 3, landmarks=7)
    ours.skip = torch.nn.Conv3d(12, 12, (1, 1, 33), padding="same", groups=12, bias=False)
    theirs.init_option = "exact"  # the other one takes a maximum over samples and heads
    with torch.no_grad():
        theirs.key.bias.zero_()
        for name in ("query", "key", "value"):
            ours.attention.get_submodule(name).load_state_dict(getattr(theirs, name).state_dict(), strict=False)
        ours.attention.out.weight.copy_(torch.eye(12))
        ours.attention.out.bias.zero_()
        ours.skip.weight.copy_(repeat(theirs.conv.weight, "heads 1 n 1 -> (heads d) 1 1 1 n", d=4))
    grid = torch.randn(2, 1, 1, 35, 12)
    torch.testing.assert_close(ours(grid)[:, 0, 0], theirs(grid[:, 0, 0])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "landmarks", "expected"), [(35, 7, (7, 5)), (13, 5, (5, 3)), (7, 5, (4, 2)), (3, 64, (3, 1))]
)
def test_segments_cover_the_line_without_empty_ones(tokens, landmarks, expected):
    assert segments(tokens, landmarks) == expected
    count, length = expected
    assert (count - 1) * length < tokens <= count * length


def test_landmarks_are_means_of_valid_tokens():
    heads = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])[None, None, :, None]
    valid = torch.tensor([[True, False, True, True, False, False, True]])
    assert segment_landmarks(heads, 4).flatten().tolist() == [1.5, 6.0, 24.0, 64.0]
    assert segment_landmarks(heads, 4, valid).flatten().tolist() == [1.0, 6.0, 0.0, 64.0]
    assert segment_valid(valid, 4).tolist() == [[True, True, False, True]]


def test_landmarks_that_are_not_there_stay_apart():
    query, key = torch.randn(2, 1, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    there = torch.tensor([[True, False, True, True, False]])
    weights = landmark_weights(query, key, there)
    inner = (query @ key.transpose(-2, -1) / 2)[..., there[0], :][..., there[0]].softmax(dim=-1)
    torch.testing.assert_close(weights[..., there[0], :][..., there[0]], inner)
    assert (weights[..., 1, :] == torch.eye(5)[1]).all()
    assert (weights[..., [0, 2, 3], 4] == 0).all()


def test_iterations_approach_the_pseudo_inverse():
    weights = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(dim=-1)
    exact = torch.linalg.pinv(weights)
    errors = [(iterate_inverse(weights, n) - exact).norm().item() for n in (2, 6, 25)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6 * exact.norm()


def test_the_skip_starts_at_zero_and_stays_within_its_kernel():
    torch.manual_seed(0)
    mixer, grid = Nystrom(12, 3, landmarks=5), torch.randn(1, 5, 5, 5, 12)
    before = mixer(grid)
    torch.nn.init.normal_(mixer.skip.weight)
    value = rearrange(mixer.attention.value(grid), "b t h w d -> b d t h w")
    skipped = rearrange(mixer.skip(value), "b d t h w -> b t h w d") @ mixer.attention.out.weight.T
    torch.testing.assert_close(mixer(grid), before + skipped, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("exact_inverse")
def test_more_landmarks_are_closer_to_exact_attention():
    torch.manual_seed(0)
    exact, grid = AlongAxes(12, 3, "J"), 2 * torch.randn(1, 3, 5, 7, 12)
    errors = []
    for landmarks in (3, 15, 53):
        estimate = Nystrom(12, 3, landmarks=landmarks)
        estimate.load_state_dict(exact.state_dict(), strict=False)
        errors.append((estimate(grid) - exact(grid)).norm().item())
    assert errors[0] > errors[1] > errors[2]


def test_refuses_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="landmarks must be at least 1, got 0"):
        Nystrom(12, 3, landmarks=0)
