import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from fieldcast.models.video_transformer.options import VideoTransformerOptions
from fieldcast.models.video_transformer.tokens import Queries, readout_of, stem_of, strides_of, whole_tubelets


def options(**given):
    return VideoTransformerOptions.model_validate({"dim": 8, "heads": 2, **given})


@pytest.mark.parametrize(("tubelet", "patch"), [(1, 3), (2, 3), (3, 5)])
def test_patches_equal_a_convolution_with_stride(tubelet, patch):
    c, d, t, h, w = 2, 8, 6, 15, 30
    stem = stem_of(c, options(stem="patch", patch=patch, dim=d), tubelet=tubelet)
    convolution = nn.Conv3d(c, d, (tubelet, patch, patch), stride=(tubelet, patch, patch))
    with torch.no_grad():
        weight = stem.linear.weight.view(d, tubelet, patch, patch, c)
        convolution.weight.copy_(weight.permute(0, 4, 1, 2, 3))
        convolution.bias.copy_(stem.linear.bias)
    frames = torch.randn(2, t, c, h, w)
    expected = convolution(frames.transpose(1, 2)).permute(0, 2, 3, 4, 1)
    tokens, seen = stem(frames)
    assert seen == []
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)


def test_history_is_extended_in_front():
    frames = torch.arange(5.0)[None, :, None, None, None]
    assert whole_tubelets(frames, 3).flatten().tolist() == [0, 0, 1, 2, 3, 4]
    assert whole_tubelets(frames, 4).flatten().tolist() == [0, 0, 0, 0, 1, 2, 3, 4]
    assert whole_tubelets(frames, 5).flatten().tolist() == [0, 1, 2, 3, 4]
    for stem in ("patch", "conv"):
        assert stem_of(1, options(stem=stem, patch=1), tubelet=3)(frames)[0].shape == (1, 2, 1, 1, 8)


def test_queries_are_one_vector_everywhere():
    queries = Queries(7)
    asked = queries(torch.zeros(2, 5, 3, 4, 7), 6)
    assert asked.shape == (2, 6, 3, 4, 7)
    assert torch.equal(asked, queries.vector.expand_as(asked))


def test_strides_are_the_prime_factors_of_a_patch():
    assert {patch: strides_of(patch) for patch in (1, 2, 7, 8, 12)} == {
        1: [],
        2: [2],
        7: [7],
        8: [2, 2, 2],
        12: [2, 2, 3],
    }


@pytest.mark.parametrize(("patch", "sides"), [(1, []), (4, [1, 2]), (6, [1, 2]), (5, [1])])
def test_overlapping_tokens_are_on_the_grid_of_patches(patch, sides):
    stem = stem_of(3, options(patch=patch, channels=5))
    tokens, seen = stem(torch.randn(2, 7, 3, 17, 31))
    rows, columns = math.ceil(17 / patch), math.ceil(31 / patch)
    assert tokens.shape == (2, 7, rows, columns, 8)
    padded = patch * rows, patch * columns
    assert [maps.shape for maps in seen] == [
        (2, 7, 5 * (level + 1), padded[0] // side, padded[1] // side) for level, side in enumerate(sides)
    ]
    readout = readout_of(2, 7, options(patch=patch, channels=5))
    increments = readout(tokens, seen, 17, 31)
    assert increments.shape == (2, 7, 2, 17, 31)
    assert not increments.any()


@pytest.mark.parametrize(("stem", "readers"), [("conv", [0, 1]), ("patch", [0])])
def test_cells_at_a_border_of_patches_are_read_on_both_sides(stem, readers):
    frames = torch.zeros(1, 1, 1, 4, 16, requires_grad=True)
    tokens, _ = stem_of(1, options(stem=stem, patch=4))(frames)
    reads = [torch.autograd.grad(tokens[0, 0, 0, i, 0], frames, retain_graph=True)[0] for i in range(4)]
    assert [i for i, read in enumerate(reads) if read[..., 3].any()] == readers


def test_members_know_what_their_own_sample_has_seen():
    torch.manual_seed(0)
    chosen = options(patch=2, channels=3)
    stem, readout = stem_of(1, chosen), readout_of(1, 4, chosen)
    nn.init.normal_(readout.leave.weight)
    tokens, seen = stem(torch.randn(2, 4, 1, 6, 10))
    alone = [readout(tokens[i : i + 1, -3:], [maps[i : i + 1] for maps in seen], 6, 10) for i in (0, 0, 1, 1)]
    together = readout(tokens[:, -3:].repeat_interleave(2, dim=0), seen, 6, 10)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


def steps_across(fields, patch):
    """Return the mean absolute step between neighbours in different patches by that inside patches, of (..., y, x)."""
    across, within = [], []
    for axis in (-2, -1):
        steps = np.moveaxis(np.abs(np.diff(fields, axis=axis)), axis, 0)
        border = (np.arange(len(steps)) + 1) % patch == 0
        across.append(steps[border].ravel())
        within.append(steps[~border].ravel())
    return np.concatenate(across).mean() / np.concatenate(within).mean()


def wave(time):
    y, x = torch.meshgrid(torch.arange(50.0), torch.arange(50.0), indexing="ij")
    return torch.sin(2 * math.pi * (x + 2 * time) / 34) * torch.cos(2 * math.pi * (y - time) / 42)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_learned_of_smooth_fields_has_no_seams(seed, small):
    """By convolutions the increments step at borders of patches as the wave does; patch by patch a third more."""
    history = torch.stack([wave(time) for time in range(3)])[None, :, None]
    target = torch.stack([wave(3), wave(4)])[None, :, None]
    ratios = {}
    for stem in ("conv", "patch"):
        sizes = {"channels": (1, 1), "history": 3, "horizon": 2, "seed": seed}
        model = small("factorised", **sizes, dim=16, stem=stem)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(40):
            optimiser.zero_grad()
            loss = functional.mse_loss(model(history), target)
            loss.backward()
            optimiser.step()
        assert loss < 0.05 * functional.mse_loss(history[:, -1:].expand_as(target), target)
        with torch.no_grad():
            learned, true = ((fields - history[:, -1:]).numpy()[..., :48, :48] for fields in (model(history), target))
        ratios[stem] = steps_across(learned, 8) / steps_across(true, 8)
    assert ratios["conv"] == pytest.approx(1, abs=0.1)
    assert ratios["patch"] > 1.2


def test_channels_belong_to_convolutions():
    with pytest.raises(ValidationError, match="channels applies to stem: conv only, got 9 with patch"):
        options(stem="patch", channels=9)
