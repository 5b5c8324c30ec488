"""Attention within buckets: one bucket is all tokens, several follow the definition token by token."""

import pytest
import torch
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from fieldcast.models.video_transformer.attention.approximate.reformer import (
    HIDDEN,
    Reformer,
    angular_buckets,
    attend_in_buckets,
    unit_length,
)


def make_heads(*shape, seed=0):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force_round(query, value, buckets, chunk):
    """One round of one head: what each token reads, and the sum of its weights."""
    n = len(query)
    order = sorted(range(n), key=lambda i: (buckets[i], i))
    chunk_of = {token: place // chunk for place, token in enumerate(order)}
    mixed, total = torch.zeros_like(value), torch.zeros(n, dtype=value.dtype)
    for i in range(n):
        near = [j for j in range(n) if buckets[j] == buckets[i] and chunk_of[j] in (chunk_of[i], chunk_of[i] - 1)]
        if buckets[i] == HIDDEN:
            continue
        others = [j for j in near if j != i]
        if not others:
            mixed[i] = value[i]
            continue
        weights = torch.stack([(query[i] @ query[j] / query[j].norm()).exp() for j in others])
        mixed[i], total[i] = weights @ value[others] / weights.sum(), weights.sum()
    return mixed, total


def brute_force(query, value, buckets, chunk):
    out = torch.zeros_like(value)
    for head in range(query.shape[1]):
        rounds = [brute_force_round(query[0, head], value[0, head], b.tolist(), chunk) for b in buckets[0, head]]
        totals = torch.stack([total for _, total in rounds])
        weights = torch.where(totals.sum(dim=0) > 0, totals / totals.sum(dim=0), 1 / len(rounds))
        out[0, head] = sum(w[:, None] * mixed for w, (mixed, _) in zip(weights, rounds, strict=True))
    return out


@pytest.mark.parametrize("chunk", [5, 7, 31])
@pytest.mark.parametrize("rounds", [1, 3])
def test_equals_the_definition_token_by_token(chunk, rounds):
    query, value = make_heads(1, 2, 31, 4)
    generator = torch.Generator().manual_seed(1)
    buckets = torch.randint(0, 9, (1, 2, rounds, 31), generator=generator)
    buckets[..., torch.rand(31, generator=generator) < 0.2] = HIDDEN
    mixed = attend_in_buckets(query, value, buckets, chunk=chunk)
    torch.testing.assert_close(mixed, brute_force(query, value, buckets, chunk), rtol=1e-4, atol=1e-4)


def test_one_bucket_is_full_attention_with_shared_queries_and_keys():
    query, value = make_heads(1, 2, 13, 4)
    weights = query @ unit_length(query).transpose(-2, -1)
    weights = weights.masked_fill(torch.eye(13, dtype=torch.bool), -torch.inf).softmax(dim=-1)
    one_bucket = torch.zeros(1, 2, 3, 13, dtype=torch.long)
    torch.testing.assert_close(attend_in_buckets(query, value, one_bucket, chunk=13), weights @ value)


def test_one_chunk_equals_transformers():
    torch.manual_seed(0)
    config = ReformerConfig(
        hidden_size=12,
        num_attention_heads=3,
        attention_head_size=4,
        lsh_attn_chunk_length=64,
        num_buckets=4,
        lsh_attention_probs_dropout_prob=0.0,
        is_decoder=False,
    )
    theirs, ours = LSHSelfAttention(config).eval(), Reformer(12, 3, chunk=64)
    with torch.no_grad():
        ours.attention.query.weight.copy_(theirs.query_key.weight)
        ours.attention.value.weight.copy_(theirs.value.weight)
        ours.attention.out.weight.copy_(torch.eye(12))
        for linear in (ours.attention.query, ours.attention.value, ours.attention.out):
            linear.bias.zero_()
    grid = torch.randn(2, 1, 5, 7, 12)
    expected = theirs(grid.flatten(1, 3)).hidden_states
    torch.testing.assert_close(ours(grid).flatten(1, 3), expected, rtol=1e-4, atol=1e-6)


def test_a_token_alone_reads_itself():
    query, value = make_heads(1, 1, 3, 4)
    buckets = torch.tensor([0, 1, 0])[None, None, None]
    assert torch.equal(attend_in_buckets(query, value, buckets, chunk=3)[0, 0], value[0, 0, [2, 1, 0]])


def test_buckets_are_the_nearest_directions():
    points = torch.tensor([[2.0, 0.1], [-1.0, 0.3], [0.1, -3.0], [0.0, 1.0]])[None, None]
    rotations = torch.eye(2)[None]
    assert angular_buckets(points, rotations).flatten().tolist() == [0, 2, 3, 1]
    assert angular_buckets(points, rotations[..., :0]).flatten().tolist() == [0, 0, 0, 0]


def test_near_tokens_share_buckets_more_often():
    torch.manual_seed(0)
    points = torch.randn(1, 1, 997, 8)
    rotations = torch.randn(1, 8, 8)
    here = angular_buckets(points, rotations)
    near = (angular_buckets(points + 0.1 * torch.randn_like(points), rotations) == here).float().mean()
    far = (angular_buckets(torch.randn_like(points), rotations) == here).float().mean()
    assert near > 0.8
    assert far < 0.2


def test_samples_of_many_chunks_see_their_own_kind():
    torch.manual_seed(0)
    mixer = Reformer(12, 3, chunk=8, rounds=4)
    grid = torch.randn(1, 2, 5, 7, 12, requires_grad=True)
    mixer(grid)[0, 0, 0, 0].sum().backward()
    share = (grid.grad.abs().amax(dim=-1) > 0).float().mean()
    assert 0 < share < 1


def test_gradients_are_finite_for_queries_at_zero():
    mixer = Reformer(12, 3, chunk=8)
    with torch.no_grad():
        mixer.attention.query.bias.zero_()
    grid = torch.zeros(1, 1, 3, 5, 12, requires_grad=True)
    mixer(grid).sum().backward()
    assert grid.grad.isfinite().all()


def test_refuses_empty_chunks_and_no_rounds():
    with pytest.raises(ValueError, match="chunk and rounds must be at least 1, got 0 and 2"):
        Reformer(12, 3, chunk=0)
