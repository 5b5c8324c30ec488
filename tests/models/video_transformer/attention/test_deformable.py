import math

import pytest
import torch
from torch import nn

from fieldcast.models.video_transformer.attention.core import join_heads
from fieldcast.models.video_transformer.attention.deformable import (
    SLOW,
    Deformable,
    DeformableAttention,
    directions,
    mix_sampled,
    sampled,
)

SHAPES = [(5, 7), (3, 2), (4, 11)]  # three maps, none square
SIZES = (3, 5, 7)


def random_case(seed=0, dtype=torch.float64, periodic=False):
    """Maps of three sizes, and places in and around them, never so near a cell that differences would cross it."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, 3, 2, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    whole = torch.randint(-2, 9, (2, 5, 3, 3, 4, 2), generator=generator)
    at = whole + 0.1 + 0.8 * torch.rand(whole.shape, generator=generator, dtype=torch.float64)
    weights = torch.rand(2, 5, 3, 3, 4, generator=generator, dtype=torch.float64)
    return [level.to(dtype) for level in maps], at.to(dtype), weights.to(dtype)


def bilinear(values, column, row, *, periodic):
    """One sample by hand; cells beyond the edges are 0."""
    height, width = values.shape[-2:]
    total = torch.zeros(values.shape[0], dtype=values.dtype)
    for y in (math.floor(row), math.floor(row) + 1):
        for x in (math.floor(column), math.floor(column) + 1):
            share = (1 - abs(row - y)) * (1 - abs(column - x))
            if 0 <= y < height and (periodic or 0 <= x < width):
                total += share * values[:, y, x % width]
    return total


@pytest.mark.parametrize("periodic", [False, True])
def test_scalar_loops(periodic):
    maps, at, weights = random_case()
    mixed = mix_sampled(maps, at, weights, periodic=periodic)
    b, n, heads, levels, points, _ = at.shape
    expected = torch.zeros(b, heads, n, 2, dtype=torch.float64)
    for s, i, head, level, p in torch.cartesian_prod(*map(torch.arange, (b, n, heads, levels, points))).tolist():
        column, row = at[s, i, head, level, p].tolist()
        share = weights[s, i, head, level, p]
        expected[s, head, i] += share * bilinear(maps[level][s, head], column, row, periodic=periodic)
    torch.testing.assert_close(mixed, join_heads(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("periodic", [False, True])
def test_gradients_by_differences(periodic):
    maps, at, weights = random_case()
    inputs = [x.requires_grad_() for x in (at[:1, :2], weights[:1, :2], *(level[:1] for level in maps))]
    assert torch.autograd.gradcheck(lambda a, w, *m: mix_sampled(m, a, w, periodic=periodic), inputs)


def test_the_centre_of_a_cell_is_the_cell():
    values = torch.randn(1, 3, 4, 8)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(8.0), indexing="ij")
    at = torch.stack([columns, rows], dim=-1).reshape(1, -1, 1, 2)
    for periodic in (False, True):
        torch.testing.assert_close(sampled(values, at, periodic=periodic).view_as(values), values, rtol=0, atol=1e-6)
    assert torch.equal(sampled(values, at).view_as(values), values)
    assert (sampled(values, at + torch.tensor([8.0, 0]))[..., 0] == 0).all()
    around = sampled(values, at - torch.tensor([24.0, 0]), periodic=True).view_as(values)
    torch.testing.assert_close(around, values, rtol=0, atol=1e-5)


def hugging_face(dim, heads, levels, points, shaken):
    from transformers import DeformableDetrConfig, ResNetConfig
    from transformers.models.deformable_detr.modeling_deformable_detr import (
        DeformableDetrMultiscaleDeformableAttention,
    )

    backbone = ResNetConfig(out_features=["stage4"])
    config = DeformableDetrConfig(d_model=dim, num_feature_levels=levels, backbone_config=backbone)
    return shaken(DeformableDetrMultiscaleDeformableAttention(config, heads, points)).eval()


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_deformable_detr(coordinates, masked, shaken):
    """On maps that are not square: width and height may not change places."""
    theirs, ours = hugging_face(24, 3, 3, 4, shaken), DeformableAttention(24, 3, levels=3, points=4)
    names = {"sampling_offsets": "offsets", "attention_weights": "weights", "value_proj": "value", "output_proj": "out"}
    for name, own in names.items():
        getattr(ours, own).load_state_dict(getattr(theirs, name).state_dict())
    queries, maps = torch.randn(2, 6, 24), [torch.randn(2, *shape, 24) for shape in SHAPES]
    valid = [torch.rand(2, *shape) < 0.7 for shape in SHAPES] if masked else None
    reference = torch.rand(2, 6, 3, coordinates)
    start = torch.tensor([0, *(h * w for h, w in SHAPES)]).cumsum(0)[:3]
    expected, weights = theirs(
        hidden_states=queries,
        attention_mask=torch.cat([mask.flatten(1) for mask in valid], dim=1) if masked else None,
        encoder_hidden_states=torch.cat([level.flatten(1, 2) for level in maps], dim=1),
        reference_points=reference,
        spatial_shapes=torch.tensor(SHAPES),
        spatial_shapes_list=SHAPES,
        level_start_index=start,
    )
    assert weights.std() > 0.01
    torch.testing.assert_close(ours(queries, reference, maps, valid), expected, rtol=0, atol=1e-6)


def test_starts_by_looking_around():
    towards = directions(4, 3)
    expected = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    torch.testing.assert_close(towards[:, 1], 2 * expected, rtol=0, atol=1e-6)
    assert directions(8, 2)[1].tolist() == [[1, 1], [2, 2]]
    module = DeformableAttention(24, 4, levels=2, points=3)
    assert (module.offsets.weight == 0).all()
    torch.testing.assert_close(module.offsets.bias.view(4, 2, 3, 2), towards[:, None].expand(-1, 2, -1, -1))


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
            source = k if mixer.frames is None else q - k
            for p in range(mixer.points):
                column, row = (offsets[s, q, y * w + x, head, k, 0, p] + torch.tensor([x, y])).tolist()
                share = weights[s, q, y * w + x, head, k, 0, p]
                if source < 0:
                    assert share == 0
                    continue
                frame = values[s, source, :, :, own].permute(2, 0, 1)
                mixed[s, q, y, x, own] += share * bilinear(frame, column, row, periodic=mixer.periodic)
    return mixer.out(mixed)


@torch.no_grad()
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("frames", [None, 2])
def test_frames_are_levels(frames, periodic, shaken):
    mixer = shaken(Deformable(4, 2, points=3, scales=1, frames=frames, periodic=periodic)).double()
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


@pytest.mark.parametrize("frames", [None, 1, 2, 9])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 7, 1), (4, 1, 3), (2, 9, 5)])
def test_any_size(sizes, frames, shaken):
    mixer = shaken(Deformable(6, 2, points=3, scales=3, frames=frames, periodic=True))
    grid = torch.randn(2, *sizes, 6)
    mixed = mixer(grid)
    assert mixed.shape == grid.shape
    assert mixed.isfinite().all()


def test_reach_in_time_is_that_of_frames(shaken):
    mixer = shaken(Deformable(6, 2, points=3, frames=2))
    grid = torch.randn(1, 5, 3, 4, 6, requires_grad=True)
    reach = [
        [torch.autograd.grad(frame.sum(), grid, retain_graph=True)[0][0, s].abs().sum() > 0 for s in range(5)]
        for frame in mixer(grid)[0]
    ]
    expected = torch.eye(5) + torch.eye(5).roll(-1, 1).tril()
    assert torch.equal(torch.tensor(reach), expected.bool())


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


@pytest.mark.parametrize(("scales", "by"), [(1, 1), (1, 3), (2, 2), (3, 4)])
def test_rolling_a_periodic_grid_rolls_the_result(scales, by, shaken):
    """By any number of columns at one scale, else by whole cells of the coarsest."""
    mixer, grid = shaken(Deformable(6, 2, points=3, scales=scales, periodic=True)), torch.randn(1, 3, 5, 8, 6)
    with torch.no_grad():
        mixer.start.bias.mul_(3)  # some offsets go far round
    rolled = mixer(grid.roll(by, 3))
    torch.testing.assert_close(rolled, mixer(grid).roll(by, 3), rtol=0, atol=1e-5)
    mixer.periodic = False
    assert (mixer(grid.roll(by, 3)) - mixer(grid).roll(by, 3)).abs().max() > 1e-2


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


@pytest.mark.parametrize("options", [{"scales": 1}, {"scales": 3}, {"frames": 2}, {"periodic": True}])
def test_multiply_adds_are_those_counted(options, count_macs):
    mixer = Deformable(6, 2, points=3, **options)
    assert mixer.macs(*SIZES) == count_macs(mixer, *SIZES)
    assert mixer.macs(1, 8, 4) == count_macs(mixer, 1, 8, 4)


def test_four_times_the_tokens_cost_four_times_as_much(count_macs):
    mixer = Deformable(6, 2, points=3)
    assert count_macs(mixer, 3, 16, 8) == 4 * count_macs(mixer, 3, 8, 4)
    assert mixer.held(3, 16, 8) == 4 * mixer.held(3, 8, 4)


@pytest.mark.parametrize("options", [{"scales": 1}, {"scales": 3}, {"frames": 2}, {"periodic": True}])
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
@pytest.mark.parametrize("velocity", [(1, 2), (-2, 1)])
def test_learns_to_look_upwind(velocity):
    """Values are handed on as they are, so that all it can learn is where to look: in the last frame, v cells back."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    mixer = Deformable(4, 4, points=2, scales=1, periodic=True)
    for linear in (mixer.value, mixer.out):
        nn.init.eye_(linear.weight).requires_grad_(False)
    optimiser = torch.optim.Adam(mixer.parameters(), lr=0.1)
    for _ in range(200):
        fields = smooth_fields(4, 12, generator)
        now, target = (fields.roll((n * velocity[0], n * velocity[1]), (1, 2)) for n in (1, 2))
        grid = torch.stack([fields, now, torch.ones_like(fields)], dim=1)[..., None].expand(-1, -1, -1, -1, 4)
        valid = torch.tensor([True, True, False])[:, None, None].expand(4, 3, 12, 12)
        loss = (mixer(grid, valid)[:, 2].mean(dim=-1) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    offsets, weights = (x[:, 2, :, :, 1].detach() for x in mixer.look(grid))
    assert weights.sum(dim=(-1, -2)).mean(dim=(0, 1)).sum() > 0.9 * 4  # of four heads
    mean = (offsets * weights[..., None]).sum(dim=(0, 1, 2, 3, 4)) / weights.sum()
    behind = -torch.tensor([velocity[1], velocity[0]])
    assert (mean - behind).norm() < 0.15 * behind.float().norm()
    assert loss < 0.2 * (now - target).square().mean()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"dim must be a multiple of heads \(5\), got 12"):
        Deformable(12, 5)
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        DeformableAttention(12, 4, points=0)
    with pytest.raises(ValueError, match="scales and frames must be at least 1, got 2 and 0"):
        Deformable(12, 4, frames=0)
