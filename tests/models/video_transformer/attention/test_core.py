import copy
import math
import random
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fieldcast.models.video_transformer.attention import core
from fieldcast.models.video_transformer.attention.core import (
    Attention,
    attend,
    attend_explicitly,
    join_heads,
    projection_macs,
    score_macs,
    split_heads,
)


@pytest.fixture
def no_fast_path():
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(enabled)


def random_case(seed, dtype):
    """Queries, keys, values of different sizes and, in turn, nothing or a mask (some rows empty)."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    b, heads, n, m, d, d_v = (draw.randint(1, k) for k in (3, 4, 13, 17, 9, 11))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    query, key, value = normal(b, heads, n, d), normal(b, heads, m, d), normal(b, heads, m, d_v)
    allowed = None
    if seed % 2:
        shape = draw.choice([(b, 1, 1, m), (b, 1, n, m), (b, heads, n, m)])
        allowed = torch.rand(shape, generator=generator) < draw.choice([0.3, 0.8])
    return (query, key, value), allowed


def reference(query, key, value, allowed):
    """Torch's attention with a mask of numbers, rows without a key set to 0 afterwards."""
    mask = torch.zeros(*query.shape[:3], key.shape[2], dtype=query.dtype)
    if allowed is None:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    empty = ~allowed.any(dim=-1, keepdim=True)
    mask = mask.masked_fill(~allowed & ~empty, -math.inf)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).masked_fill(empty, 0)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("seed", range(20))
def test_both_ways_equal_torch(seed, dtype, close):
    inputs, allowed = random_case(seed, dtype)
    expected = reference(*inputs, allowed)
    outputs = [attend(*inputs, allowed=allowed), attend_explicitly(*inputs, allowed=allowed)[0]]
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    expected_gradients = torch.autograd.grad(expected, inputs, upstream)
    for output in outputs:
        torch.testing.assert_close(output, expected, rtol=0, atol=close)
        gradients = torch.autograd.grad(output, inputs, upstream)
        for gradient, other in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, other, rtol=0, atol=1e-8 if dtype == torch.float64 else 1e-4)


@torch.no_grad()
def test_scalar_loops():
    (query, key, value), allowed = random_case(7, torch.float64)
    allowed = allowed.expand(*query.shape[:3], key.shape[2])
    mixed, weights = attend_explicitly(query, key, value, allowed=allowed)
    b, heads, n, d = query.shape
    for s, head, i in torch.cartesian_prod(*map(torch.arange, (b, heads, n))).tolist():
        seen = [j for j in range(key.shape[2]) if allowed[s, head, i, j]]
        scores = [sum(query[s, head, i, k] * key[s, head, j, k] for k in range(d)) / math.sqrt(d) for j in seen]
        total = sum(math.exp(score) for score in scores)
        for c in range(value.shape[3]):
            expected = sum(math.exp(a) / total * value[s, head, j, c] for j, a in zip(seen, scores, strict=True))
            assert mixed[s, head, i, c].item() == pytest.approx(float(expected), abs=1e-12)
        assert weights[s, head, i].sum().item() == pytest.approx(1 if seen else 0)


def test_gradients_by_differences():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    allowed = torch.rand(2, 1, 3, 5, generator=generator) < 0.6
    allowed[1, 0, 2] = False
    inputs = normal(2, 2, 3, 2), normal(2, 2, 5, 2), normal(2, 2, 5, 3)
    for function in (attend, attend_explicitly):
        assert torch.autograd.gradcheck(partial(function, allowed=allowed), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_without_a_key_gets_nothing_and_gives_no_gradient(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 16, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    allowed = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    allowed[0, 0, 3] = False
    explicit, weights = attend_explicitly(q, k, v, allowed=allowed)
    for mixed in (attend(q, k, v, allowed=allowed), explicit):
        assert (mixed[0, :, 3] == 0).all()
        assert (mixed[1] != 0).all()
        gradients = torch.autograd.grad(mixed.sum(), (q, k, v), retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert (gradients[0][0, :, 3] == 0).all()
    assert (weights[0, :, 3] == 0).all()


def test_weights_are_shares_of_what_is_allowed():
    (query, key, value), allowed = random_case(11, torch.float32)
    _, weights = attend_explicitly(query, key, value, allowed=allowed)
    allowed = allowed.expand_as(weights)
    assert (weights[~allowed] == 0).all()
    assert (weights[allowed] > 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), allowed.any(dim=-1).float())


def test_softmax_is_exact_where_queries_are_half_precision():
    """Two keys with logits 0 and 1/512: a softmax in bfloat16 could not tell their weights apart."""
    query, value = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16), torch.eye(2, dtype=torch.float32)[None, None]
    key = torch.tensor([0, 2.0**-9], dtype=torch.bfloat16)[None, None, :, None]
    _, weights = attend_explicitly(query, key, value)
    expected = 1 / (1 + math.exp(2.0**-9))
    assert weights[0, 0, 0, 0].item() == pytest.approx(expected, abs=1e-6)


def test_heads_are_neighbouring_features():
    tokens = torch.arange(2.0 * 3 * 10).reshape(2, 3, 10)
    heads = split_heads(tokens, 5)
    assert heads.shape == (2, 5, 3, 2)
    assert heads[1, 3, 2].tolist() == tokens[1, 2, 6:8].tolist()
    assert torch.equal(join_heads(heads), tokens)


@pytest.mark.usefixtures("no_fast_path")
@pytest.mark.parametrize("impl", ["sdpa", "eager"])
@pytest.mark.parametrize("heads", [1, 3])
def test_multi_head_equals_torch_under_both_masks(heads, impl, shaken):
    """Torch's `key_padding_mask` is True where a key is ignored, ours is True where it may be attended to."""
    ours, theirs = shaken(Attention(12, heads, impl=impl)), nn.MultiheadAttention(12, heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.randn(12), ours.value.bias]))  # key bias: no effect
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    tokens, context = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    valid = torch.tensor([[True] * 4 + [False] * 3, [False] + [True] * 6])
    for other in (tokens, context):
        expected, _ = theirs(tokens, other, other, need_weights=False)
        torch.testing.assert_close(ours(tokens, other), expected, rtol=0, atol=1e-6)
    expected, _ = theirs(tokens, context, context, key_padding_mask=~valid, need_weights=False)
    masked = ours(tokens, context, allowed=valid[:, None, None])
    torch.testing.assert_close(masked, expected, rtol=0, atol=1e-6)
    assert (masked - ours(tokens, context, allowed=~valid[:, None, None])).abs().max() > 1e-3


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
def test_equals_videomae(impl, shaken):
    from transformers import VideoMAEConfig
    from transformers.models.videomae.modeling_videomae import VideoMAESelfAttention

    config = VideoMAEConfig(hidden_size=15, num_attention_heads=3, qkv_bias=True, attn_implementation="eager")
    theirs, ours = shaken(VideoMAESelfAttention(config)).eval(), Attention(15, 3, impl=impl)
    for name in ("query", "key", "value"):
        getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())
    tokens = torch.randn(2, 11, 15)
    expected = ours.out(theirs(tokens)[0])
    torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-6)


def test_one_head_is_plain_attention(shaken):
    module, tokens = shaken(Attention(5, 1)), torch.randn(2, 7, 5)
    query, key, value = (linear(tokens)[:, None] for linear in (module.query, module.key, module.value))
    expected = module.out(attend_explicitly(query, key, value)[0][:, 0])
    torch.testing.assert_close(module(tokens), expected, rtol=0, atol=1e-6)


def test_kept_keys_and_values_give_the_same(shaken):
    module, tokens, context = shaken(Attention(6, 2)), torch.randn(2, 3, 6), torch.randn(2, 7, 6)
    key, value = module.keys_and_values(context)
    mixed = module.mix(split_heads(module.query(tokens), 2), key, value)
    assert torch.equal(mixed, module(tokens, context))


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
def test_rotation_turns_queries_and_keys_only(impl, shaken):
    module, tokens = shaken(Attention(6, 2, impl=impl)), torch.randn(2, 5, 6)
    seen = []

    def turn(x):
        seen.append(x)
        return x.flip(-1)  # the same permutation of features in both: all their products stay

    torch.testing.assert_close(module(tokens, rotate=turn), module(tokens), rtol=0, atol=1e-6)
    assert [x.shape for x in seen] == [(2, 2, 5, 3)] * 2
    assert not torch.allclose(module(tokens, rotate=lambda x: 3 * x), module(tokens))


@pytest.mark.parametrize("d", [7, 12])
def test_number_of_weights(d):
    assert sum(p.numel() for p in Attention(d, 1).parameters()) == 4 * d**2 + 4 * d - d  # no key bias


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
def test_pruning_is_as_if_the_head_said_nothing(impl, shaken):
    module, tokens = shaken(Attention(15, 5, impl=impl)), torch.randn(2, 7, 15)
    silent = copy.deepcopy(module)
    with torch.no_grad():
        silent.out.weight[:, 3:6] = 0
        silent.out.weight[:, 12:15] = 0
    expected = silent(tokens)
    module.set_head_mask(torch.tensor([1.0, 0, 1, 1, 0]))
    torch.testing.assert_close(module(tokens), expected, rtol=0, atol=1e-6)
    module.set_head_mask(None)
    assert (module(tokens) - expected).abs().max() > 1e-3
    module.prune_heads([4, 1])
    torch.testing.assert_close(module(tokens), expected, rtol=0, atol=1e-6)
    assert (module.query.weight.shape, module.value.bias.shape, module.out.weight.shape) == ((9, 15), (9,), (15, 9))
    assert module.query.out_features == module.out.in_features == 9
    module.prune_heads([0])  # again, by the new numbers
    assert module(tokens).shape == tokens.shape
    module(tokens).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in module.parameters())


def test_a_head_mask_scales_and_survives_pruning(shaken):
    module, tokens = shaken(Attention(6, 3)), torch.randn(1, 4, 6)
    scaled = copy.deepcopy(module)
    module.set_head_mask(torch.tensor([0.5, 1.0, 2.0]))
    with torch.no_grad():
        scaled.out.weight.mul_(torch.tensor([0.5, 0.5, 1, 1, 2, 2]))
    torch.testing.assert_close(module(tokens), scaled(tokens), rtol=0, atol=1e-6)
    module.prune_heads([0])
    scaled.prune_heads([0])
    torch.testing.assert_close(module(tokens), scaled(tokens), rtol=0, atol=1e-6)
    assert "head_mask" not in module.state_dict()


def test_a_watcher_sees_the_weights_that_were_used(shaken):
    module, tokens = shaken(Attention(6, 2)), torch.randn(3, 5, 6)
    unwatched, seen = module(tokens), []
    module.watcher = seen.append
    torch.testing.assert_close(module(tokens), unwatched, rtol=0, atol=1e-6)
    (weights,) = seen
    assert not weights.requires_grad
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 2, 5))
    mixed = weights @ split_heads(module.value(tokens), 2)
    torch.testing.assert_close(module.out(join_heads(mixed)), unwatched, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("no_fast_path")
def test_multiply_adds_of_multi_head_attention():
    """10,485,760 FLOPs at 256 tokens of 32 features, which is 8 N d^2 + 4 N^2 d: two for each multiply-add."""
    theirs, tokens = nn.MultiheadAttention(32, 4, batch_first=True).eval(), torch.randn(1, 256, 32)
    counts = []
    for call in (lambda: theirs(tokens, tokens, tokens, need_weights=False), lambda: Attention(32, 4)(tokens)):
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            call()
        counts.append(counter.get_total_flops())
    assert counts == [10_485_760, 10_485_760]
    assert 2 * (projection_macs(256, 32) + score_macs(256, 256, 32)) == 10_485_760


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"dim must be a multiple of heads \(5\), got 12"):
        Attention(12, 5)
    with pytest.raises(ValueError, match="impl must be sdpa or eager, got 'flash'"):
        Attention(12, 3, impl="flash")
    with pytest.raises(ValueError, match=r"head mask must have shape \(3,\), got \(2,\)"):
        Attention(12, 3).set_head_mask(torch.ones(2))
    for heads in ([0, 1, 2], [3], [-1]):
        with pytest.raises(ValueError, match="heads to prune must be some, not all, of 0 to 2"):
            Attention(12, 3).prune_heads(heads)


def test_short_lines_in_bfloat16_take_explicit_weights(monkeypatch):
    """Torch's fused kernel for CPUs is several times slower there; the result is the same."""
    fused = []
    monkeypatch.setattr(core, "attend", lambda *given, **named: fused.append(1) or attend(*given, **named))
    torch.manual_seed(0)
    layer = core.Attention(12, 3).eval()
    for keys, dtype, calls in ((7, torch.bfloat16, 0), (7, torch.float32, 1), (core.SHORT + 1, torch.bfloat16, 1)):
        tokens = torch.randn(2, keys, 12)
        fused.clear()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            mixed = layer(tokens)
        assert len(fused) == calls
        with torch.no_grad():
            torch.testing.assert_close(mixed.float(), layer(tokens), rtol=0.05, atol=0.02)
