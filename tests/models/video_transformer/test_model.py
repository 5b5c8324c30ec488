from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.autograd.functional import jacobian
from torch.autograd.graph import saved_tensors_hooks

from fieldcast import models
from fieldcast.models.video_transformer.attention.patterns import (
    ATTENTIONS,
    AttentionName,
    AttentionOptions,
    build_pattern,
)
from fieldcast.models.video_transformer.block import DividedBlock, SubLayer, Trunk, drop_path, rising
from fieldcast.models.video_transformer.options import VideoTransformerOptions

OWN = {  # values other than the defaults of the options that are one pattern's
    "order": "HT",
    "window": (2, 3, 2),
    "features": 16,
    "keys": 8,
    "landmarks": 8,
    "stride": 3,
    "chunk": 16,
    "rounds": 3,
    "width": 2.5,
    "points": 2,
}
SIZES = {"channels_in": 3, "channels_out": 2, "history": 5, "horizon": 7, "step_minutes": 5}


def build_with(sizes=SIZES, **options):
    torch.manual_seed(0)
    given = {"dim": 12, "heads": 2, **options}
    return models.build("video_transformer", VideoTransformerOptions.model_validate(given), **sizes)


def own_options(attention):
    return {option: OWN[option] for option in ATTENTIONS[attention].options}


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
    ours = DividedBlock(VideoTransformerOptions(attention="divided", dim=d, heads=3), 0, 0.0)
    ours.mlp = nn.Sequential(theirs.intermediate, theirs.output)
    copy_attention(ours.time_mixer.attention, theirs.temporal_attention)
    copy_attention(ours.space_mixer.attention, theirs.attention)
    norms = [theirs.temporal_layernorm, theirs.layernorm_before, theirs.layernorm_after]
    for mine, other in zip([ours.time_norm, ours.space_norm, ours.mlp_norm], norms, strict=True):
        mine.load_state_dict(other.state_dict())
        mine.eps = other.eps
    ours.time_out.load_state_dict(theirs.temporal_dense.state_dict())

    patches = torch.randn(2, t, h * w, d)
    token = torch.full((2, 1, d), 0.7)
    expected = theirs(torch.cat([token, patches.transpose(1, 2).reshape(2, h * w * t, d)], dim=1))[0]
    expected = expected if expected.dim() == 3 else expected[None]
    grid = torch.cat([token[:, None].expand(-1, t, -1, -1), patches], dim=2)[:, :, None]
    result = ours(grid)[:, :, 0, 1:].transpose(1, 2).reshape(2, h * w * t, d)
    torch.testing.assert_close(result, expected[:, 1:], rtol=0, atol=1e-5)


def reach_of(module, t, h, w, d):
    """Which tokens (second t, h, w) have an effect on which (first t, h, w)."""
    torch.manual_seed(0)
    slopes = jacobian(lambda grid: module(grid)[..., 0], torch.randn(1, t, h, w, d))
    return (slopes[0, :, :, :, 0].abs().sum(dim=-1) > 0).view(t * h * w, t * h * w)


def reach_by_brute_force(t, h, w, sees):
    places = [(k, y, x) for k in range(t) for y in range(h) for x in range(w)]
    return torch.tensor([[sees(one, two) for two in places] for one in places])


SAME = {  # letter: do two places (time, row, column) differ along it only?
    "T": lambda one, two: one[1:] == two[1:],
    "S": lambda one, two: one[0] == two[0],
    "J": lambda one, two: True,
    "H": lambda one, two: one[0] == two[0] and one[2] == two[2],
    "W": lambda one, two: one[:2] == two[:2],
}


@pytest.mark.parametrize(
    ("attention", "letters"), [("factorised", "TSST"), ("joint", "JJJJ"), ("axial", "THWT"), ("divided", "TSTS")]
)
def test_reach_of_sub_layers_along_axes(attention, letters, shaken):
    options = VideoTransformerOptions(dim=8, heads=2, attention=attention)
    for index, letter in enumerate(letters):
        layer = shaken(SubLayer(options, index, 0.0))
        assert torch.equal(reach_of(layer, 3, 2, 5, 8), reach_by_brute_force(3, 2, 5, SAME[letter])), (index, letter)


def test_reach_of_a_divided_block(shaken):
    options = VideoTransformerOptions(dim=8, heads=2, attention="divided")
    assert reach_of(shaken(DividedBlock(options, 0, 0.0)), 3, 2, 5, 8).all()


def test_reach_of_windows(shaken):
    """Every second sub-layer moves by half a window along axes of several windows; none sees over an edge."""
    options = VideoTransformerOptions(dim=8, heads=2, attention="window", window=(2, 2, 3))
    for index, shift in enumerate([(0, 0, 0), (1, 0, 1), (0, 0, 0), (1, 0, 1)]):

        def window_of(place, shift=shift):
            return [(axis - by) // size for axis, by, size in zip(place, shift, (2, 2, 3), strict=True)]

        layer = shaken(SubLayer(options, index, 0.0))
        expected = reach_by_brute_force(4, 2, 6, lambda one, two, of=window_of: of(one) == of(two))
        assert torch.equal(reach_of(layer, 4, 2, 6, 8), expected), index


@pytest.mark.parametrize("attention", ["linear", "performer", "linformer", "nystrom", "pooled", "clustered"])
def test_approximations_reach_every_token(attention, shaken):
    options = VideoTransformerOptions(dim=8, heads=2, attention=attention, **own_options(attention))
    assert reach_of(shaken(SubLayer(options, 1, 0.0)), 3, 2, 5, 8).all()


@pytest.mark.parametrize("attention", ["reformer", "deformable"])
def test_sparse_patterns_reach_other_frames(attention, shaken):
    options = VideoTransformerOptions(dim=8, heads=2, attention=attention)
    reach = reach_of(shaken(SubLayer(options, 0, 0.0)), 3, 4, 5, 8).view(3, 20, 3, 20)
    assert reach.any(dim=3).any(dim=1).all()


@pytest.mark.parametrize("attention", ["factorised", "window"])
def test_global_tokens_reach_everything(attention, shaken):
    options = VideoTransformerOptions(dim=8, heads=2, attention=attention, global_tokens=2)
    assert reach_of(shaken(SubLayer(options, 0, 0.0)), 3, 2, 5, 8).all()


def test_options_of_one_attention_are_refused_with_the_others():
    assert set(ATTENTIONS) == set(get_args(AttentionName))
    owned = {option for choice in ATTENTIONS.values() for option in choice.options}
    assert owned == set(OWN)
    for attention, choice in ATTENTIONS.items():
        for option in owned:
            given = {"attention": attention, option: OWN[option]}
            if option in choice.options:
                assert getattr(AttentionOptions.model_validate(given), option) == OWN[option]
            else:
                with pytest.raises(ValidationError, match=f"{option} applies to attention: .* only, .* {attention}"):
                    AttentionOptions.model_validate(given)


@pytest.mark.parametrize("attention", [name for name, choice in ATTENTIONS.items() if choice.options])
def test_own_options_change_the_mixer(attention):
    grid, own = torch.randn(1, 6, 5, 7, 12), build_pattern(AttentionOptions(attention=attention), 12, 2, 1)
    for name in ATTENTIONS[attention].options:
        other = build_pattern(AttentionOptions.model_validate({"attention": attention, name: OWN[name]}), 12, 2, 1)
        weights = {name: value for name, value in own.state_dict().items() if name.startswith("attention.")}
        other.load_state_dict(weights, strict=False)
        assert not torch.allclose(other(grid), own(grid), atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"future": "direct", "arch": "encoder_decoder"},
            "future applies to arch: fill_in only, got 'direct' with enc",
        ),
        ({"decode": "autoregressive"}, "decode applies to arch: encoder_decoder only"),
        ({"decoder_layers": 3}, "decoder_layers applies to arch: encoder_decoder only"),
        ({"query_attention": "none"}, "query_attention applies to arch: encoder_decoder only"),
        ({"deep_supervision": True}, "deep_supervision applies to arch: encoder_decoder only"),
        (
            {"arch": "encoder_decoder", "decode": "autoregressive", "deep_supervision": True},
            "deep_supervision applies to decode: queries only",
        ),
        (
            {"arch": "encoder_decoder", "decode": "autoregressive", "query_attention": "none"},
            "query_attention applies to decode: queries only",
        ),
        (
            {"arch": "encoder_decoder", "decode": "autoregressive", "output": "ensemble"},
            "decode: autoregressive gives output: point only, got ensemble",
        ),
        ({"future": "direct", "tubelet": 2}, "future: direct needs a tubelet of 1, got 2"),
        ({"positions_grid": (3, 3)}, "positions_grid applies to positions: learned or onehot only"),
        ({"positions": "learned", "positions_grid": (0, 3)}, "positions_grid must be at least 1 by 1"),
        ({"positions": "sincos3d", "dim": 8}, "sincos3d needs a dim of at least 12, got 8"),
        ({"positions": "rotary3d", "attention": "linear"}, "rotary3d applies to arch: fill_in with attention: factor"),
        ({"positions": "rotary3d", "global_tokens": 1}, "no global tokens, got fill_in with factorised and 1"),
        ({"positions": "rotary3d", "dim": 8, "heads": 2}, r"heads of an even width of at least 6 .*, got 4"),
        ({"global_tokens": 9}, "less than or equal to 8"),
        ({"tubelet": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_do_not_fit_are_named(wrong, message):
    with pytest.raises(ValidationError, match=message):
        VideoTransformerOptions.model_validate(wrong)


def test_weights_of_the_reference_size():
    options = VideoTransformerOptions(dim=256, heads=8, layers=6, mlp_ratio=4, order="TSST", patch=8)
    sizes = {"channels_in": 1, "channels_out": 1, "history": 10, "horizon": 10, "step_minutes": 1}
    with torch.device("meta"):
        model = models.build("video_transformer", options, **sizes)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(25.2e6, rel=0.01)


def test_exact_patterns_have_equal_weights():
    counts = {
        attention: sum(p.numel() for p in build_with(attention=attention).parameters())
        for attention in ("factorised", "joint", "axial", "window", "linear", "performer")
    }
    assert len(set(counts.values())) == 1, counts


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    branch = drop_path(torch.ones(4000, 2, 3, 5, 7), 0.25, training=True)
    assert set(branch.flatten(1).std(dim=1).tolist()) == {0.0}
    assert branch.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop_path(branch, 0.25, training=False), branch)
    assert rising(0.2, 3) == pytest.approx([0, 0.1, 0.2])


def test_drop_path_option_is_used(small, shaken, history_with_gaps):
    model = shaken(small("factorised", drop_path=0.9))
    history = history_with_gaps(2, 5, 3, 17, 13)
    assert not torch.equal(model(history), model(history))


def gradients_and_held(model, history):
    """Gradients of all weights, and the bytes that the trunk's forward pass holds for them."""
    held = {}

    def note(tensor):
        held[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    kept = []
    torch.manual_seed(3)  # dropout
    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(history).square().mean()
    held_bytes = sum(held.values())
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}, held_bytes


@pytest.mark.parametrize("arch", ["fill_in", "encoder_decoder"])
@pytest.mark.parametrize("positions", ["sines", "rotary3d"])
def test_checkpointing_holds_less_for_equal_gradients(arch, positions, shaken, history_with_gaps):
    if arch == "encoder_decoder" and positions == "rotary3d":
        positions = "learned"
    history = history_with_gaps(2, 5, 3, 41, 37)
    options = {"arch": arch, "positions": positions, "layers": 2, "dropout": 0.3, "drop_path": 0.2, "patch": 4}
    plain, sparing = (shaken(build_with(checkpoint_activations=on, **options)) for on in (False, True))
    (expected, plain_bytes), (gradients, sparing_bytes) = (gradients_and_held(m, history) for m in (plain, sparing))
    assert sparing_bytes < 0.5 * plain_bytes
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


def test_checkpointing_is_off_where_nothing_is_learned(shaken):
    trunk = shaken(Trunk(VideoTransformerOptions(dim=8, heads=2, checkpoint_activations=True)))
    grid = torch.randn(1, 3, 2, 5, 8)
    with torch.no_grad():
        still = trunk(grid)
    assert torch.equal(still, trunk(grid))
