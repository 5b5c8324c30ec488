import math

import pytest
import torch
from einops import rearrange
from torch import nn

from fieldcast.models.video_transformer.attention.approximate.deformable import (
    SLOW,
    Deformable,
    directions,
    mix_sampled,
    sampled,
)
from fieldcast.models.video_transformer.attention.core import join_heads
from tests.campaign import cases

SHAPES = [(5, 7), (3, 2), (4, 11)]  # three maps, none square
SIZES = (3, 5, 7)


def random_case(seed=0, dtype=torch.float64):
    """Maps of three sizes, and places in and around them, never so near a cell that differences would cross it."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, 3, 2, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    whole = torch.randint(-2, 9, (2, 5, 3, 3, 4, 2), generator=generator)
    at = whole + 0.1 + 0.8 * torch.rand(whole.shape, generator=generator, dtype=torch.float64)
    weights = torch.rand(2, 5, 3, 3, 4, generator=generator, dtype=torch.float64)
    return [level.to(dtype) for level in maps], at.to(dtype), weights.to(dtype)


def bilinear(values, column, row):
    """One sample by hand; cells beyond the edges are 0."""
    height, width = values.shape[-2:]
    total = torch.zeros(values.shape[0], dtype=values.dtype)
    for y in (math.floor(row), math.floor(row) + 1):
        for x in (math.floor(column), math.floor(column) + 1):
            share = (1 - abs(row - y)) * (1 - abs(column - x))
            if 0 <= y < height and 0 <= x < width:
                total += share * values[:, y, x]
    return total


def test_scalar_loops():
    maps, at, weights = random_case()
    mixed = mix_sampled(maps, at, weights)
    b, n, heads, levels, points, _ = at.shape
    expected = torch.zeros(b, heads, n, 2, dtype=torch.float64)
    for s, i, head, level, p in torch.cartesian_prod(*map(torch.arange, (b, n, heads, levels, points))).tolist():
        column, row = at[s, i, head, level, p].tolist()
        share = weights[s, i, head, level, p]
        expected[s, head, i] += share * bilinear(maps[level][s, head], column, row)
    torch.testing.assert_close(mixed, join_heads(expected), rtol=0, atol=1e-10)


def test_gradients_by_differences():
    maps, at, weights = random_case()
    inputs = [x.requires_grad_() for x in (at[:1, :2], weights[:1, :2], *(level[:1] for level in maps))]
    assert torch.autograd.gradcheck(lambda a, w, *m: mix_sampled(m, a, w), inputs)


def test_the_centre_of_a_cell_is_the_cell():
    values = torch.randn(1, 3, 4, 8)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(8.0), indexing="ij")
    at = torch.stack([columns, rows], dim=-1).reshape(1, -1, 1, 2)
    assert torch.equal(sampled(values, at).view_as(values), values)
    assert (sampled(values, at + torch.tensor([8.0, 0]))[..., 0] == 0).all()


def test_sampling_equals_deformable_detr():
    """On maps that are not square: width and height may not change places."""
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    maps, at, weights = random_case(dtype=torch.float32)
    sizes = torch.tensor([[w, h] for h, w in SHAPES])[:, None]
    expected = MultiScaleDeformableAttention()(
        torch.cat([rearrange(level, "b heads d h w -> b (h w) heads d") for level in maps], dim=1),
        torch.tensor(SHAPES),
        SHAPES,
        None,
        (at + 0.5) / sizes,  # shares of the map's width and height
        weights,
        64,
    )
    torch.testing.assert_close(mix_sampled(maps, at, weights), expected, rtol=0, atol=1e-5)


def test_starts_by_looking_around():
    towards = directions(4, 3)
    expected = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    torch.testing.assert_close(towards[:, 1], 2 * expected, rtol=0, atol=1e-6)
    assert directions(8, 2)[1].tolist() == [[1, 1], [2, 2]]
    pattern = Deformable(24, 4, points=3)
    assert (pattern.start.weight == 0).all()
    offsets, _ = pattern.look(torch.randn(1, 2, 3, 5, 24))
    torch.testing.assert_close(offsets, towards[:, None, None].expand_as(offsets))


def plain(mixer, grid, valid):
    """The pattern token by token at one scale, from its offsets and weights."""
    offsets, weights = mixer.look(grid)
    b, t, h, w, d = grid.shape
    values = mixer.value(grid) * valid[..., None]
    mixed = torch.zeros_like(grid)
    width = d // mixer.heads
    for s, q, y, x, head in torch.cartesian_prod(*map(torch.arange, (b, t, h, w, mixer.heads))).tolist():
        own = slice(head * width, (head + 1) * width)
        for k in range(weights.shape[4]):
            for p in range(mixer.points):
                column, row = (offsets[s, q, y * w + x, head, k, 0, p] + torch.tensor([x, y])).tolist()
                share = weights[s, q, y * w + x, head, k, 0, p]
                frame = values[s, k, :, :, own].permute(2, 0, 1)
                mixed[s, q, y, x, own] += share * bilinear(frame, column, row)
    return mixer.out(mixed)


@torch.no_grad()
def test_frames_are_levels(shaken):
    mixer = shaken(Deformable(4, 2, points=3, scales=1)).double()
    grid, valid = torch.randn(1, 3, 2, 5, 4, dtype=torch.float64), torch.rand(1, 3, 2, 5) < 0.7
    torch.testing.assert_close(mixer(grid, valid), plain(mixer, grid, valid), rtol=0, atol=1e-10)


def test_offsets_grow_with_the_lag(shaken):
    mixer = shaken(Deformable(6, 2, points=3))
    grid = torch.randn(2, 5, 3, 2, 6)
    offsets, weights = mixer.look(grid)
    assert offsets.shape == (2, 5, 6, 2, 5, 2, 3, 2)
    torch.testing.assert_close(weights.flatten(4).sum(dim=-1), torch.ones(2, 5, 6, 2))
    steps = offsets.diff(dim=4)  # one frame later is one step less back
    torch.testing.assert_close(steps, steps[:, :, :, :, :1].expand_as(steps))
    start = SLOW * mixer.start(grid).reshape(2, 5, 6, 2, 2, 3, 2)
    torch.testing.assert_close(offsets[:, 3, :, :, 3], start[:, 3])
    motion = SLOW * mixer.motion(grid).reshape(2, 5, 6, 2, 2, 3, 2)
    torch.testing.assert_close(offsets[:, 3, :, :, 1], start[:, 3] + 2 * motion[:, 3])


def test_a_query_can_prefer_frames_by_their_lag(shaken):
    mixer = shaken(Deformable(6, 2, points=3))
    _, weights = mixer.look(torch.randn(1, 5, 3, 2, 6))
    shares = weights.sum(dim=(5, 6))
    ratio = shares / shares[:, :, :, :, :1]
    assert ratio.std(dim=2).amin() < ratio.std(dim=2).amax()
    assert (ratio[:, :, :, :, 1:].std(dim=2) > 1e-4).all()  # not the same for every token


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 7, 1), (4, 1, 3), (2, 9, 5)])
def test_any_size(sizes, shaken):
    mixer = shaken(Deformable(6, 2, points=3, scales=3))
    grid = torch.randn(2, *sizes, 6)
    mixed = mixer(grid)
    assert mixed.shape == grid.shape
    assert mixed.isfinite().all()


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_invalid_tokens_lend_nothing(scales, shaken):
    mixer, grid = shaken(Deformable(6, 2, points=3, scales=scales)), torch.randn(1, *SIZES, 6, requires_grad=True)
    valid = torch.rand(1, *SIZES, generator=torch.Generator().manual_seed(4)) < 0.5
    valid[0, 1] = False
    mixed = mixer(grid, valid)
    (gradient,) = torch.autograd.grad(mixed[valid].sum(), grid)
    assert (gradient[~valid] == 0).all()
    assert torch.equal(mixer(torch.where(valid[..., None], grid, 1e3), valid)[valid], mixed[valid])
    assert not torch.equal(mixer(grid)[valid], mixed[valid])
    nothing = mixer(grid, torch.zeros_like(valid))
    torch.testing.assert_close(nothing, mixer.out.bias.expand_as(nothing))


def test_every_weight_learns_from_the_first_step():
    torch.manual_seed(0)
    mixer, head = Deformable(6, 2, points=3), nn.Linear(6, 1)
    head(mixer(torch.randn(2, *SIZES, 6))).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in mixer.parameters())


def test_places_stay_exact_under_autocast(shaken):
    mixer, grid = shaken(Deformable(6, 2, points=3)), torch.randn(1, *SIZES, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = mixer(grid)
        mixed.sum().backward()
        assert all(x.dtype == torch.float32 for x in mixer.look(grid))
    torch.testing.assert_close(mixed.float(), mixer(grid), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("options", [{"scales": 1}, {"scales": 3}])
def test_multiply_adds_are_those_counted(options, count_macs):
    mixer = Deformable(6, 2, points=3, **options)
    assert mixer.macs(*SIZES) == count_macs(mixer, *SIZES)
    assert mixer.macs(1, 8, 4) == count_macs(mixer, 1, 8, 4)


def test_four_times_the_tokens_cost_four_times_as_much(count_macs):
    mixer = Deformable(6, 2, points=3)
    assert count_macs(mixer, 3, 16, 8) == 4 * count_macs(mixer, 3, 8, 4)
    assert mixer.held(3, 16, 8) == 4 * mixer.held(3, 8, 4)


@pytest.mark.parametrize("options", [{"scales": 1}, {"scales": 3}])
def test_held_values_are_those_kept(options, count_held):
    """All that depends on the number of points is exact; beyond it there are a few vectors a token."""
    few, many = (Deformable(8, 2, points=points, **options) for points in (2, 5))
    kept = [count_held(mixer, *SIZES) for mixer in (few, many)]
    assert kept[1] - kept[0] == many.held(*SIZES) - few.held(*SIZES)
    tokens = math.prod(SIZES)
    assert 3 * tokens * 8 <= kept[0] - few.held(*SIZES) <= 7 * tokens * 8


def smooth_fields(count, size, generator):
    """Random periodic fields with structures of a few cells."""
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    spectrum = torch.fft.rfft2(torch.randn(count, size, size, generator=generator))
    fields = torch.fft.irfft2(spectrum * torch.exp(-30 * (rows**2 + columns**2)), s=(size, size))
    return fields / fields.std()


@pytest.mark.slow
@pytest.mark.parametrize("velocity", cases([((1, 2),), ((-2, 1),)], [((-2, 1),)]))
def test_learns_to_look_upwind(velocity):
    """Values are handed on as they are, so that all it can learn is where to look: in the last frame, v cells back."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    mixer = Deformable(4, 4, points=2, scales=1)
    for linear in (mixer.value, mixer.out):
        nn.init.eye_(linear.weight).requires_grad_(False)
    optimiser = torch.optim.Adam(mixer.parameters(), lr=0.1)
    for _ in range(200):
        fields = smooth_fields(4, 12, generator)
        now, target = (fields.roll((n * velocity[0], n * velocity[1]), (1, 2)) for n in (1, 2))
        grid = torch.stack([fields, now, torch.ones_like(fields)], dim=1)[..., None].expand(-1, -1, -1, -1, 4)
        valid = torch.tensor([True, True, False])[:, None, None].expand(4, 3, 12, 12)
        error = mixer(grid, valid)[:, 2].mean(dim=-1) - target
        loss = error[:, 3:-3, 3:-3].square().mean()  # beyond the edges there is nothing to see
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    offsets, weights = (x[:, 2, :, :, 1].detach() for x in mixer.look(grid))
    assert weights.sum(dim=(-1, -2)).mean(dim=(0, 1)).sum() > 0.9 * 4  # of four heads
    mean = (offsets * weights[..., None]).sum(dim=(0, 1, 2, 3, 4)) / weights.sum()
    behind = -torch.tensor([velocity[1], velocity[0]])
    assert (mean - behind).norm() < 0.15 * behind.float().norm()
    assert loss < 0.2 * (now - target)[:, 3:-3, 3:-3].square().mean()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"dim must be a multiple of heads \(5\), got 12"):
        Deformable(12, 5)
    with pytest.raises(ValueError, match="points and scales must be at least 1, got 0 and 2"):
        Deformable(12, 4, points=0)
