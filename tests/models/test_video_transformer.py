import math

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

import models
from models.video_transformer.attention import Attention
from models.video_transformer.block import DividedBlock, SubLayer, drop_path, rising
from models.video_transformer.options import VideoTransformerOptions
from models.video_transformer.positions import minutes_from_init, sines, space_positions


@pytest.fixture
def no_fast_path():
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(enabled)


@pytest.mark.usefixtures("no_fast_path")
@pytest.mark.parametrize("heads", [1, 3])
def test_attention_equals_torch(heads, shaken):
    ours, theirs = shaken(Attention(12, heads)), nn.MultiheadAttention(12, heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.randn(12), ours.value.bias]))  # key bias: no effect
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    tokens = torch.randn(2, 7, 12)
    expected, _ = theirs(tokens, tokens, tokens, need_weights=False)
    torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-6)


def copy_attention(ours, theirs):
    with torch.no_grad():
        weights = theirs.attention.qkv.weight.chunk(3)
        biases = theirs.attention.qkv.bias.chunk(3)
        for linear, weight in zip((ours.query, ours.key, ours.value), weights, strict=True):
            linear.weight.copy_(weight)
        ours.query.bias.copy_(biases[0])
        ours.value.bias.copy_(biases[2])
        ours.out.load_state_dict(theirs.output.dense.state_dict())


def test_divided_block_equals_timesformer(shaken):
    """Their class token is one more position of ours: constant over features, so that nothing moves it in time."""
    from transformers import TimesformerConfig
    from transformers.models.timesformer.modeling_timesformer import TimesformerLayer

    d, t, h, w = 12, 3, 2, 2
    config = TimesformerConfig(
        image_size=4, patch_size=2, num_frames=t, hidden_size=d, num_attention_heads=3, intermediate_size=20
    )
    theirs = shaken(TimesformerLayer(config, 0)).eval()
    with torch.no_grad():
        qkv_bias = theirs.temporal_attention.attention.qkv.bias
        for bias in (theirs.temporal_layernorm.bias, qkv_bias, theirs.temporal_dense.bias):
            bias.zero_()
        theirs.temporal_attention.output.dense.bias.zero_()
    ours = DividedBlock(VideoTransformerOptions(attention="divided", dim=d, heads=3), 0.0)
    ours.mlp = nn.Sequential(theirs.intermediate, theirs.output)
    copy_attention(ours.time_attention, theirs.temporal_attention)
    copy_attention(ours.space_attention, theirs.attention)
    norms = [theirs.temporal_layernorm, theirs.layernorm_before, theirs.layernorm_after]
    for mine, other in zip([ours.time_norm, ours.space_norm, ours.mlp_norm], norms, strict=True):
        mine.load_state_dict(other.state_dict())
        mine.eps = other.eps
    ours.time_out.load_state_dict(theirs.temporal_dense.state_dict())

    patches = torch.randn(2, t, h * w, d)
    token = torch.full((2, 1, d), 0.7)
    expected = theirs(torch.cat([token, patches.transpose(1, 2).reshape(2, h * w * t, d)], dim=1))[0]
    expected = expected if expected.dim() == 3 else expected[None]
    mixed = ours(torch.cat([token[:, None].expand(-1, t, -1, -1), patches], dim=2))[:, :, 1:]
    result = mixed.transpose(1, 2).reshape(2, h * w * t, d)
    torch.testing.assert_close(result, expected[:, 1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("along", ["T", "S", "J"])
def test_reach_of_a_sub_layer(along, shaken):
    options = VideoTransformerOptions(dim=8, heads=2)
    layer = shaken(SubLayer(options, along, 0.0))
    t, n = 3, 5
    reach = jacobian(lambda x: layer(x).sum(dim=-1), torch.randn(1, t, n, 8)).abs().sum(dim=-1)[0, :, :, 0]
    same_slot = torch.eye(t, dtype=torch.bool)[:, None, :, None].expand(t, n, t, n)
    same_position = torch.eye(n, dtype=torch.bool)[None, :, None, :].expand(t, n, t, n)
    expected = {"T": same_position, "S": same_slot, "J": torch.ones(t, n, t, n, dtype=torch.bool)}[along]
    assert torch.equal(reach > 0, expected)


def test_space_positions_by_brute_force():
    positions = space_positions(3, 5, 16, torch.device("cpu"))
    for y in range(3):
        for x in range(5):
            expected = []
            for value in (y, x):
                angles = [value / 10_000 ** (2 * k / 8) for k in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(positions[y * 5 + x], torch.tensor(expected), rtol=0, atol=1e-6)


def test_space_positions_equal_an_independent_table():
    """A row of one frame is the 1-D sine table that transformers' VideoMAE uses, in another feature order."""
    from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

    table = get_sinusoid_encoding_table(11, 6)[0]
    expected = torch.cat([table[:, 0::2], table[:, 1::2]], dim=1)
    torch.testing.assert_close(sines(torch.arange(11.0), 6), expected.float(), rtol=0, atol=1e-6)


def test_minutes_count_from_init():
    assert minutes_from_init(3, 2, 10).tolist() == [-20, -10, 0, 10, 20]


def test_weights_of_the_reference_size():
    options = VideoTransformerOptions(dim=256, heads=8, layers=6, mlp_ratio=4, order="TSST", patch=8)
    sizes = {"channels_in": 1, "channels_out": 1, "history": 10, "horizon": 10, "step_minutes": 1}
    with torch.device("meta"):
        model = models.build("video_transformer", options, **sizes)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(25.2e6, rel=0.01)


def test_factorised_and_joint_have_equal_weights(small):
    counts = [sum(p.numel() for p in small(case).parameters()) for case in ("factorised", "joint")]
    assert counts[0] == counts[1]


def test_smoothing_starts_as_the_identity_and_joins_patches(small, shaken, history_with_gaps):
    model = shaken(small("factorised_smooth")).eval()
    with torch.no_grad():
        nn.init.dirac_(model.readout.smooth.weight)
    history = history_with_gaps(1, 5, 3, 17, 13)
    smoothed = model(history)
    model.readout.smooth = None
    torch.testing.assert_close(smoothed, model(history), rtol=0, atol=1e-6)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    branch = drop_path(torch.ones(4000, 2, 3, 5), 0.25, training=True)
    assert set(branch.flatten(1).std(dim=1).tolist()) == {0.0}
    assert branch.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop_path(branch, 0.25, training=False), branch)
    assert rising(0.2, 3) == pytest.approx([0, 0.1, 0.2])


def test_drop_path_option_is_used(small, shaken, history_with_gaps):
    model = shaken(small("factorised", drop_path=0.9))
    history = history_with_gaps(2, 5, 3, 17, 13)
    assert not torch.equal(model(history), model(history))


def test_step_length_is_used(shaken):
    options = VideoTransformerOptions(dim=8, heads=2, layers=1)
    sizes = {"channels_in": 1, "channels_out": 1, "history": 3, "horizon": 2}
    five, sixty = (shaken(models.build("video_transformer", options, **sizes, step_minutes=m)) for m in (5, 60))
    sixty.load_state_dict(five.state_dict())
    history = torch.randn(1, 3, 1, 17, 13)
    assert not torch.equal(five(history), sixty(history))
