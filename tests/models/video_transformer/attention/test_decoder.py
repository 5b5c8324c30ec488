import pytest
import torch
from torch import nn

from fieldcast.models.video_transformer.attention.core import attend
from fieldcast.models.video_transformer.attention.decoder import Decoder, DecoderLayer, keys_and_values, queries
from fieldcast.models.video_transformer.attention.masks import not_later

DIM, HEADS, HIDDEN = 12, 3, 20


def frames_not_later(frames, cells):
    times = torch.arange(frames).repeat_interleave(cells)
    return not_later(times, times)


@pytest.fixture
def no_fast_path():
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(enabled)


def copy_torch_attention(ours, theirs):
    """Their key bias stays: softmax cancels it."""
    weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    for linear, weight in zip((ours.query, ours.key, ours.value), weights, strict=True):
        linear.weight.copy_(weight)
    ours.query.bias.copy_(biases[0])
    ours.value.bias.copy_(biases[2])
    ours.out.load_state_dict(theirs.out_proj.state_dict())


@pytest.mark.usefixtures("no_fast_path")
def test_layer_equals_torch(shaken):
    theirs = nn.TransformerDecoderLayer(DIM, HEADS, HIDDEN, norm_first=True, activation="gelu", batch_first=True)
    theirs = shaken(theirs).eval()
    ours = DecoderLayer(DIM, HEADS, HIDDEN).eval()
    with torch.no_grad():
        copy_torch_attention(ours.self_attention, theirs.self_attn)
        copy_torch_attention(ours.cross_attention, theirs.multihead_attn)
    pairs = [("self_norm", "norm1"), ("cross_norm", "norm2"), ("mlp_norm", "norm3"), ("up", "linear1")]
    for mine, other in [*pairs, ("down", "linear2")]:
        getattr(ours, mine).load_state_dict(getattr(theirs, other).state_dict())
    tokens, memory, allowed = torch.randn(2, 10, DIM), torch.randn(2, 7, DIM), frames_not_later(2, 5)
    result, _ = ours(tokens, ours.remember(memory), allowed=allowed)
    expected = theirs(tokens, memory, tgt_mask=~allowed[0, 0])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def copy_detr_layer(ours, theirs):
    for mine, other in [(ours.self_attention, theirs.self_attn), (ours.cross_attention, theirs.encoder_attn)]:
        mine.query.load_state_dict(other.q_proj.state_dict())
        mine.key.load_state_dict({"weight": other.k_proj.weight})
        mine.value.load_state_dict(other.v_proj.state_dict())
        mine.out.load_state_dict(other.o_proj.state_dict())
    ours.self_norm.load_state_dict(theirs.self_attn_layer_norm.state_dict())
    ours.cross_norm.load_state_dict(theirs.encoder_attn_layer_norm.state_dict())
    ours.mlp_norm.load_state_dict(theirs.final_layer_norm.state_dict())
    ours.up.load_state_dict(theirs.mlp.fc1.state_dict())
    ours.down.load_state_dict(theirs.mlp.fc2.state_dict())


def post_norm(layer, tokens, memory, positions, memory_positions):
    """The layer's parts in the order of DETR: norms after the additions, and a ReLU."""
    asked, seen = layer.self_attention, layer.cross_attention
    mixed = asked.mix(queries(asked, tokens, positions), *keys_and_values(asked, tokens, positions))
    tokens = layer.self_norm(tokens + mixed)
    read = seen.mix(queries(seen, tokens, positions), *layer.remember(memory, memory_positions))
    tokens = layer.cross_norm(tokens + read)
    return layer.mlp_norm(tokens + layer.down(layer.up(tokens).relu()))


def test_positions_enter_as_in_detr(shaken):
    """Queries start as zeros; their positions enter queries and keys in every layer, never values."""
    from transformers import DetrConfig
    from transformers.models.detr.modeling_detr import DetrDecoder

    config = DetrConfig(
        d_model=DIM, decoder_attention_heads=HEADS, decoder_ffn_dim=HIDDEN, decoder_layers=3, dropout=0.0
    )
    config._attn_implementation = "sdpa"
    theirs = shaken(DetrDecoder(config)).eval()
    between = []
    for layer in theirs.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: between.append(output))
    memory, positions, memory_positions = torch.randn(2, 7, DIM), torch.randn(1, 5, DIM), torch.randn(1, 7, DIM)
    whole = theirs(
        inputs_embeds=torch.zeros(2, 5, DIM),
        encoder_hidden_states=memory,
        spatial_position_embeddings=memory_positions,
        object_queries_position_embeddings=positions,
    ).last_hidden_state
    tokens = torch.zeros(2, 5, DIM)
    for layer, expected in zip(theirs.layers, between, strict=True):
        ours = DecoderLayer(DIM, HEADS, HIDDEN).eval()
        copy_detr_layer(ours, layer)
        tokens = post_norm(ours, tokens, memory, positions, memory_positions)
        torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.layernorm(tokens), whole, rtol=0, atol=1e-5)


def decoder_at(layers=2, seed=0):
    torch.manual_seed(seed)
    return Decoder(DIM, HEADS, HIDDEN, layers).eval()


def test_steps_equal_all_at_once():
    decoder, frames, n = decoder_at(), 12, 5
    tokens, memory = torch.randn(2, frames * n, DIM), torch.randn(2, 7, DIM)
    positions, memory_positions = torch.randn(1, frames * n, DIM), torch.randn(1, 7, DIM)
    allowed = frames_not_later(frames, n)
    at_once = decoder(tokens, decoder.start(memory, memory_positions), allowed=allowed, positions=positions)
    cache = decoder.start(memory, memory_positions)
    for frame in range(frames):
        part = slice(frame * n, (frame + 1) * n)
        step = decoder(tokens[:, part], cache, positions=positions[:, part])
        torch.testing.assert_close(step, at_once[:, part], rtol=0, atol=1e-5)
        assert all(key.shape == value.shape == (2, HEADS, (frame + 1) * n, DIM // HEADS) for key, value in cache.own)


def test_steps_with_gaps_equal_all_at_once():
    decoder, frames, n = decoder_at(), 12, 5
    tokens, memory, valid = torch.randn(2, frames * n, DIM), torch.randn(2, 7, DIM), torch.rand(2, frames * n) < 0.7
    at_once = decoder(tokens, decoder.start(memory), valid=valid, allowed=frames_not_later(frames, n))
    cache = decoder.start(memory)
    for frame in range(frames):
        part = slice(frame * n, (frame + 1) * n)
        step = decoder(tokens[:, part], cache, valid=valid[:, part])
        torch.testing.assert_close(step, at_once[:, part], rtol=0, atol=1e-5)


def test_gradients_go_back_in_time_only():
    decoder, frames, n = decoder_at(), 4, 3
    tokens = torch.randn(1, frames * n, DIM, requires_grad=True)
    out = decoder(tokens, decoder.start(torch.randn(1, 5, DIM)), allowed=frames_not_later(frames, n))
    for frame in range(frames):
        (gradient,) = torch.autograd.grad(out[0, frame * n + 1, 0], tokens, retain_graph=True)
        reach = gradient[0].abs().sum(dim=1).view(frames, n) > 0
        assert reach[: frame + 1].all()
        assert not reach[frame + 1 :].any()


def test_the_memory_is_read_by_cross_attention_alone():
    decoder = decoder_at()
    tokens, memory, other = torch.randn(2, 5, DIM), torch.randn(2, 7, DIM), torch.randn(2, 7, DIM)
    outs = [decoder(tokens, decoder.start(seen)) for seen in (memory, other)]
    assert (outs[0] - outs[1]).abs().max() > 1e-3
    with torch.no_grad():
        for layer in decoder.layers:
            layer.cross_attention.out.weight.zero_()
    assert torch.equal(*(decoder(tokens, decoder.start(seen)) for seen in (memory, other)))


def test_values_do_not_know_positions():
    layer = DecoderLayer(DIM, HEADS, HIDDEN)
    tokens, positions = torch.randn(1, 5, DIM), torch.randn(1, 5, DIM)
    with_positions = keys_and_values(layer.cross_attention, tokens, positions)
    without = keys_and_values(layer.cross_attention, tokens, None)
    assert torch.equal(with_positions[1], without[1])
    assert not torch.equal(with_positions[0], without[0])


def test_a_loop_over_queries_equals_the_matrix_form_in_many_more_operations(count_operations):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 512, 8)

    def loop():
        return torch.cat([attend(query[:, :, k : k + 1], key, value) for k in range(512)], dim=2)

    torch.testing.assert_close(loop(), attend(query, key, value), rtol=0, atol=1e-6)
    assert count_operations(loop) >= 5 * count_operations(attend, query, key, value)
