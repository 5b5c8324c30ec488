import math

import pytest
import torch
from torch import nn

from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes
from fieldcast.models.video_transformer.attention.positions import (
    angles_3d,
    nearest,
    nearest_time,
    read,
    resize,
    rotate,
    sines,
    sines_2d,
    sines_3d,
)


def test_sines_2d_by_brute_force():
    positions = sines_2d(torch.arange(3.0), torch.arange(5.0), 16)
    for y in range(3):
        for x in range(5):
            expected = []
            for value in (y, x):
                angles = [value / 10_000 ** (2 * k / 8) for k in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(positions[y, x], torch.tensor(expected), rtol=0, atol=1e-6)


def test_sines_equal_the_table_of_videomae():
    """Theirs alternate sines and cosines; a row of one frame is the table over the flattened index."""
    from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

    table = get_sinusoid_encoding_table(11, 6)[0]
    expected = torch.cat([table[:, 0::2], table[:, 1::2]], dim=1)
    torch.testing.assert_close(sines(torch.arange(11.0), 6), expected.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalise", [False, True])
def test_sines_equal_those_of_detr(normalise):
    """Theirs count valid cells from 1, up to 2 pi where normalised, and alternate sines and cosines."""
    from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding

    theirs = DetrSinePositionEmbedding(6, normalize=normalise)
    valid = torch.ones(1, 7, 5, dtype=torch.bool)
    valid[:, 5:], valid[:, :, 3:] = False, False
    expected = theirs(torch.Size([1, 12, 7, 5]), "cpu", torch.float32, valid)[0].permute(1, 2, 0)
    rows, columns = (valid[0].float().cumsum(axis) for axis in (0, 1))
    if normalise:
        rows = rows / (rows[-1:] + 1e-6) * 2 * math.pi
        columns = columns / (columns[:, -1:] + 1e-6) * 2 * math.pi
    both = [sines(values.flatten(), 6).unflatten(0, (7, 5)) for values in (rows, columns)]
    ours = torch.cat([part.unflatten(-1, (2, 3)).transpose(-1, -2).flatten(-2) for part in both], dim=-1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_sines_3d_by_brute_force():
    times, rows, columns = torch.tensor([-2.0, 0.0, 1.0]), torch.arange(2.0), torch.arange(5.0)
    positions = sines_3d(times, rows, columns, 20)
    for k, time in enumerate(times.tolist()):
        for y in range(2):
            for x in range(5):
                expected = []
                for value in (x, y, time):
                    angles = [value / 10_000 ** (k / 2) for k in range(3)]
                    expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
                expected += [0, 0]
                torch.testing.assert_close(positions[k, y, x], torch.tensor(expected), rtol=0, atol=1e-6)


def test_one_hot_times_a_table_is_an_embedding():
    table = nn.Embedding(7, 5)
    indices = torch.tensor([3, 0, 6, 6, 2])
    hot = nearest_time(torch.arange(7.0), indices.float())
    assert torch.equal(hot @ table.weight, table(indices))


def test_a_one_hot_beside_the_features_is_a_learned_table():
    """A linear map of [features, one-hot] is the map of the features plus a row of the other part's weights."""
    both = nn.Linear(11 + 7, 5)
    features, indices = torch.randn(13, 11), torch.randint(7, (13,))
    hot = nearest_time(torch.arange(7.0), indices.float())
    embedding, table = nn.Linear(11, 5), nn.Embedding(7, 5)
    with torch.no_grad():
        embedding.weight.copy_(both.weight[:, :11])
        embedding.bias.copy_(both.bias)
        table.weight.copy_(both.weight[:, 11:].T)
    result = both(torch.cat([features, hot], dim=1))
    torch.testing.assert_close(result, embedding(features) + table(indices), rtol=0, atol=1e-6)


def test_nearest_part_of_an_axis():
    assert nearest(3, 3, torch.device("cpu")).equal(torch.eye(3))
    assert nearest(2, 5, torch.device("cpu")).argmax(dim=1).tolist() == [0, 0, 1, 1, 1]
    assert nearest(5, 2, torch.device("cpu")).argmax(dim=1).tolist() == [1, 3]
    assert nearest_time(torch.tensor([-5.0, 0.0, 20.0]), torch.tensor([-90.0, 9.0, 11.0, 90.0])).argmax(1).tolist() == [
        0,
        1,
        2,
        2,
    ]


def test_resizing_a_smooth_table_there_and_back():
    y, x = torch.meshgrid(torch.linspace(0, 1, 8), torch.linspace(0, 1, 8), indexing="ij")
    table = torch.stack([torch.sin(2 * y + x), torch.cos(y - 2 * x), y * x], dim=-1)
    wider = resize(table, 12, 16)
    assert wider.shape == (12, 16, 3)
    torch.testing.assert_close(resize(wider, 8, 8), table, rtol=0, atol=1e-2)
    assert resize(table, 8, 8) is table


def test_resizing_keeps_rows_apart_from_columns():
    table = torch.arange(3.0)[:, None, None].expand(3, 5, 1)  # a row's number
    taller = resize(table, 7, 11)[..., 0]
    assert (taller.diff(dim=0) >= -0.1).all()  # bicubic overshoots a little
    torch.testing.assert_close(taller, taller[:, :1].expand(7, 11), rtol=0, atol=1e-5)


def test_reading_a_table_between_its_times():
    table, at = torch.tensor([[0.0, 1.0], [2.0, 3.0], [12.0, -7.0]]), torch.tensor([-10.0, 0.0, 5.0])
    times = torch.tensor([-20.0, -10.0, -5.0, 0.0, 4.0, 5.0, 99.0])
    expected = torch.tensor([[0.0, 1.0], [0, 1], [1, 2], [2, 3], [10, -5], [12, -7], [12, -7]])
    torch.testing.assert_close(read(table, at, times), expected)
    assert torch.equal(read(table, at, at), table)
    assert torch.equal(read(table[:1], at[:1], times), table[:1].expand(7, 2))


def test_rotation_keeps_lengths_and_depends_on_differences():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 14)
    place, other = torch.tensor([[3.0, 5.0, 2.0]]), torch.tensor([[1.0, 7.0, 2.0]])
    shift = torch.tensor([[11.0, -4.0, 3.0]])

    def product(one, two):
        return (rotate(query, angles_3d(one, 14)) * rotate(key, angles_3d(two, 14))).sum()

    torch.testing.assert_close(product(place, other), product(place + shift, other + shift), rtol=0, atol=1e-5)
    assert (product(place, other) - product(other, place)).abs() > 1e-3
    for axis in range(3):
        moved = torch.zeros(1, 3)
        moved[0, axis] = 1
        assert (product(place, other) - product(place + moved, other)).abs() > 1e-3
    turned = rotate(query, angles_3d(place, 14))
    torch.testing.assert_close(turned.norm(), query.norm())
    assert torch.equal(turned[..., [6, 13]], query[..., [6, 13]])  # a pair that is left over
    assert torch.equal(rotate(query, angles_3d(torch.zeros(1, 3), 14)), query)


def test_rotation_by_complex_numbers():
    heads, places = torch.randn(2, 3, 5, 12), torch.randn(5, 3)
    angles = torch.stack([place[axis] / 10_000 ** (k / 2) for place in places for axis in range(3) for k in range(2)])
    phase = torch.polar(torch.ones(5, 6), angles.view(5, 6))
    expected = torch.complex(heads[..., :6], heads[..., 6:]) * phase
    expected = torch.cat([expected.real, expected.imag], dim=-1)
    torch.testing.assert_close(rotate(heads, angles_3d(places, 12)), expected, rtol=0, atol=1e-5)


def test_rotated_attention_sees_order_and_plain_attention_does_not():
    torch.manual_seed(0)
    mixer = AlongAxes(12, 1, "T")
    grid, order = torch.randn(1, 5, 2, 3, 12), torch.tensor([2, 0, 4, 1, 3])
    places = torch.stack([torch.arange(5.0), torch.zeros(5), torch.zeros(5)], dim=1)
    angles = angles_3d(places, 12)
    torch.testing.assert_close(mixer(grid[:, order]), mixer(grid)[:, order], rtol=0, atol=1e-6)
    turned = mixer(grid, rotate=lambda heads: rotate(heads, angles))
    moved = mixer(grid[:, order], rotate=lambda heads: rotate(heads, angles))
    assert (moved - turned[:, order]).abs().max() > 1e-3
