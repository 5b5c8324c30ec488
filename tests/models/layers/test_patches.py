import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldcast.models.layers.patches import crop, pad_to_multiple, patchify, unpatchify


def test_patchify_by_hand():
    frame = torch.arange(16.0).reshape(1, 4, 4)
    patches = patchify(frame, 2)
    assert patches.shape == (4, 2, 2)
    assert patches[:, 0, 1].tolist() == [2, 3, 6, 7]


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_unpatchify_undoes_patchify(patch, channels, rows, columns):
    frames = torch.randn(2, 3, channels, rows * patch, columns * patch)
    assert torch.equal(unpatchify(patchify(frames, patch), patch), frames)


@pytest.mark.parametrize(("h", "w", "multiple"), [(7, 5, 4), (3, 11, 8), (1, 1, 8), (8, 16, 8), (13, 2, 3)])
def test_padding_is_cropped_away(h, w, multiple):
    frames = torch.randn(2, 3, 5, h, w)
    padded = pad_to_multiple(frames, multiple)
    assert padded.shape[-2] % multiple == padded.shape[-1] % multiple == 0
    assert padded.shape[-2] - h < multiple
    assert padded.shape[-1] - w < multiple
    assert torch.equal(crop(padded, h, w), frames)


def test_padding_mirrors_where_it_can_and_repeats_elsewhere():
    row = torch.tensor([1.0, 2, 3]).reshape(1, 1, 1, 1, 3)
    assert pad_to_multiple(row, 5).squeeze().tolist() == [[1, 2, 3, 2, 1]] * 5
    assert pad_to_multiple(row, 8).squeeze().tolist() == [[1, 2, 3, 3, 3, 3, 3, 3]] * 8
