"""Vision transformers: whole models equal those of `transformers` with copied weights, and pretrained ones inflate."""

import random

import pytest
import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional

from fieldcast.models.layers.patches import patchify, unpatchify
from fieldcast.models.video_transformer.attention.core import Attention
from fieldcast.models.video_transformer.inflate import encoder_of, for_channels, for_frames
from fieldcast.models.video_transformer.options import VideoTransformerOptions
from fieldcast.models.video_transformer.tokens import stem_of

VIT = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 56, "image_size": 32}


@pytest.fixture
def vit(shaken):
    """A random ViT of `transformers` for one channel or three."""
    from transformers import ViTConfig, ViTModel

    def build(channels):
        config = ViTConfig(**VIT, patch_size=8, num_channels=channels)
        return config, shaken(ViTModel(config, add_pooling_layer=False)).eval()

    return build


def features(model, pictures):
    with torch.no_grad():
        return model(pictures).last_hidden_state


@torch.no_grad()
def test_encoder_equals_vit(vit):
    config, theirs = vit(1)
    ours = encoder_of(config.to_dict(), theirs.state_dict(), channels=1)
    pictures = torch.randn(2, 1, 32, 32)
    assert features(theirs, pictures).shape == (2, 17, 32)
    torch.testing.assert_close(ours(pictures[:, None])[:, 0], features(theirs, pictures), rtol=0, atol=1e-5)
    wider = torch.randn(2, 1, 40, 48)
    torch.testing.assert_close(  # another grid: both resize the positions
        ours(wider[:, None])[:, 0],
        theirs(wider, interpolate_pos_encoding=True).last_hidden_state,
        rtol=0,
        atol=1e-5,
    )


@torch.no_grad()
def test_encoder_equals_vivit(shaken):
    from transformers import VivitConfig, VivitModel

    config = VivitConfig(**VIT, tubelet_size=[2, 8, 8], num_channels=1, num_frames=4)
    theirs = shaken(VivitModel(config, add_pooling_layer=False)).eval()
    ours = encoder_of(config.to_dict(), theirs.state_dict(), channels=1)
    video = torch.randn(2, 4, 1, 32, 32)
    assert config.hidden_act == "gelu_fast"
    assert ours(video).shape == (2, 1, 1 + 2 * 16, 32)
    torch.testing.assert_close(ours(video)[:, 0], features(theirs, video), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="video must make 2 slots of 2 frames, got 1"):
        ours(video[:, :2])


def attention_of(theirs, heads):
    ours = Attention(theirs.attention.qkv.in_features, heads)
    weights, biases = theirs.attention.qkv.weight.chunk(3), theirs.attention.qkv.bias.chunk(3)
    with torch.no_grad():
        for linear, weight in zip((ours.query, ours.key, ours.value), weights, strict=True):
            linear.weight.copy_(weight)
        ours.query.bias.copy_(biases[0])  # softmax cancels the key's
        ours.value.bias.copy_(biases[2])
        ours.out.load_state_dict(theirs.output.dense.state_dict())
    return ours


def divided_block(layer, heads, cls, grid):
    """A block of Bertasius et al. 2021: the class token takes no part in time, and one for all frames in space."""
    of_time, of_space = attention_of(layer.temporal_attention, heads), attention_of(layer.attention, heads)
    t, h, w = grid.shape[1:4]
    lines = rearrange(layer.temporal_layernorm(grid), "b t h w d -> (b h w) t d")
    mixed = rearrange(of_time(lines), "(b h w) t d -> b t h w d", h=h, w=w)
    moved = grid + layer.temporal_dense(mixed)
    frames = torch.cat([repeat(cls, "b d -> (b t) 1 d", t=t), rearrange(moved, "b t h w d -> (b t) (h w) d")], dim=1)
    mixed = rearrange(of_space(layer.layernorm_before(frames)), "(b t) n d -> b t n d", t=t)
    cls = cls + mixed[:, :, 0].mean(dim=1)
    grid = moved + rearrange(mixed[:, :, 1:], "b t (h w) d -> b t h w d", h=h)
    mlp = nn.Sequential(layer.layernorm_after, layer.intermediate, layer.output)
    return cls + mlp(cls), grid + mlp(grid)


@torch.no_grad()
def test_attention_makes_a_timesformer(shaken):
    from transformers import TimesformerConfig, TimesformerModel

    config = TimesformerConfig(**VIT, patch_size=8, num_channels=1, num_frames=4)
    theirs = shaken(TimesformerModel(config)).eval()
    video = torch.randn(2, 4, 1, 32, 32)
    table = theirs.embeddings.position_embeddings[0]
    kernel = theirs.embeddings.patch_embeddings.projection
    patches = rearrange(patchify(video, 8), "b t c h w -> b t h w c")
    weight = rearrange(kernel.weight, "d c ph pw -> d (ph pw c)")
    grid = functional.linear(patches, weight, kernel.bias) + rearrange(table[1:], "(h w) d -> h w d", h=4)
    grid = grid + rearrange(theirs.embeddings.time_embeddings[0], "t d -> t 1 1 d")
    cls = (theirs.embeddings.cls_token[0, 0] + table[0]).expand(2, -1)
    for layer in theirs.encoder.layer:
        cls, grid = divided_block(layer, config.num_attention_heads, cls, grid)
    ours = torch.cat([cls[:, None], rearrange(grid, "b t h w d -> b (h w t) d")], dim=1)
    torch.testing.assert_close(theirs.layernorm(ours), features(theirs, video), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("how", ["central", "mean"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_still_video_in_other_channels_gives_the_features_of_the_picture(how, channels, vit):
    config, theirs = vit(3)
    ours = encoder_of(config.to_dict(), theirs.state_dict(), channels=channels, frames=3, how=how)
    grey = torch.randn(2, 1, 32, 32)
    expected = features(theirs, grey.expand(-1, 3, -1, -1))
    still = repeat(grey, "b 1 h w -> b t c h w", t=6, c=channels)
    given = ours(still)
    assert given.shape == (2, 2, 17, 32)  # two slots of three frames, each by itself
    torch.testing.assert_close(given, expected[:, None].expand_as(given), rtol=0, atol=1e-4)


def test_kernels_by_hand():
    kernel = torch.tensor([[[[1.0]], [[4.0]], [[7.0]]]])  # d 1, c 3, 1 x 1
    assert for_channels(kernel, 2).flatten().tolist() == [6.0, 6.0]
    assert for_channels(kernel, 1).flatten().tolist() == [12.0]
    assert for_channels(kernel, 3) is kernel
    assert for_frames(kernel[:, :1], 4, "mean").flatten().tolist() == [0.25] * 4
    assert for_frames(kernel[:, :1], 4, "central").flatten().tolist() == [0, 0, 1, 0]


def test_other_activations_are_refused(vit):
    config, theirs = vit(1)
    with pytest.raises(ValueError, match=r"hidden_act must be one of gelu, .*, got 'relu'"):
        encoder_of({**config.to_dict(), "hidden_act": "relu"}, theirs.state_dict(), channels=1)


def test_patches_are_put_back_bitwise():
    draw = random.Random(0)
    for _ in range(20):
        b, t, c, rows, columns, patch = (draw.choice([1, 2, 3, 5, 7]) for _ in range(6))
        frames = torch.randn(b, t, c, rows * patch, columns * patch)
        patches = patchify(frames, patch)
        assert patches.shape == (b, t, patch**2 * c, rows, columns)
        assert torch.equal(unpatchify(patches, patch), frames)


@torch.no_grad()
def test_tubelets_hold_every_value_of_their_frames_bitwise():
    tubelet, channels, patch = 3, 2, 4
    values = tubelet * channels * patch**2
    options = VideoTransformerOptions(stem="patch", dim=values, patch=patch)
    stem = stem_of(channels, options, tubelet=tubelet)
    stem.linear.weight.copy_(torch.eye(values))
    stem.linear.bias.zero_()
    frames = torch.randn(2, 6, channels, 7 * patch, 11 * patch)
    tokens = rearrange(stem(frames)[0], "b t h w (pt c) -> b (t pt) c h w", pt=tubelet)
    assert torch.equal(unpatchify(tokens, patch), frames)
