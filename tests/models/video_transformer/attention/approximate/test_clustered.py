"""Clusters of queries: exact where queries repeat, close where they are alike, and what they save."""

import copy
from functools import partial

import pytest
import torch
from einops import rearrange, reduce, repeat
from torch import nn
from torch.nn import functional

import fieldcast.models.video_transformer.attention.approximate.clustered as module
from fieldcast import models
from fieldcast.models.layers.patches import patchify
from fieldcast.models.video_transformer.attention.approximate.clustered import (
    Clustered,
    attend_in_clusters,
    cluster_sums,
    hash_codes,
    number_clusters,
    typical_distance,
)
from fieldcast.models.video_transformer.attention.core import attend, score_macs
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes
from fieldcast.models.video_transformer.options import VideoTransformerOptions
from fieldcast.pipeline.forecasting.costs import count_macs


def make_heads(n, *, seed=0, dtype=torch.float64):
    return torch.randn(3, 2, 3, n, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_valid(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < 0.6


def layers(**options):
    torch.manual_seed(0)
    exact, clustered = AlongAxes(12, 3, "J"), Clustered(12, 3, **options)
    clustered.load_state_dict(exact.state_dict(), strict=False)
    return exact, clustered


def numbers_brute_force(codes, valid=None):
    index = torch.zeros(codes.shape[:3], dtype=torch.long)
    for s in range(codes.shape[0]):
        for head in range(codes.shape[1]):
            tuples = [tuple(code.tolist()) for code in codes[s, head]]
            if valid is not None:
                tuples = [code if there else () for code, there in zip(tuples, valid[s].tolist(), strict=True)]
            ranks = {code: rank for rank, code in enumerate(sorted(set(tuples)))}
            index[s, head] = torch.tensor([ranks[code] for code in tuples])
    return index


def test_codes_equal_the_formula():
    points, directions = torch.tensor([[1.0, 2.0], [-3.0, 0.5]])[None, None], torch.tensor([[1.0, 0.0], [1.0, -2.0]])
    codes = hash_codes(points, directions, torch.tensor([0.25, 0.5]), torch.tensor(0.5))
    assert codes[0, 0].tolist() == [[2, -6], [-6, -8]]  # floor(x / 0.5 + 0.25), floor((x - 2 y) / 0.5 + 0.5)


@pytest.mark.parametrize("largest", [3, 2**40])
@pytest.mark.parametrize("masked", [False, True])
def test_clusters_are_numbered_by_their_codes(largest, masked):
    codes = torch.randint(-2, 2, (2, 3, 53, 3), generator=torch.Generator().manual_seed(0)) * largest
    valid = make_valid(2, 53) if masked else None
    index, clusters = number_clusters(codes, valid)
    assert torch.equal(index, numbers_brute_force(codes, valid))
    assert clusters == index.max() + 1


def test_all_codes_distinct_is_exact_attention():
    exact, clustered = layers(width=1e-4)
    grid, valid = torch.randn(2, 3, 5, 7, 12), make_valid(2, 3, 5, 7)
    assert (clustered.count_clusters(grid) == 105).all()
    torch.testing.assert_close(clustered(grid), exact(grid), rtol=0, atol=1e-5)
    torch.testing.assert_close(clustered(grid, valid)[valid], exact(grid, valid)[valid], rtol=0, atol=1e-5)


def test_repeated_queries_are_one_cluster_each_and_exact():
    exact, clustered = layers(width=1e-3)
    grid = torch.randn(2, 1, 1, 13, 12).repeat(1, 2, 4, 1, 1)
    assert (clustered.count_clusters(grid) == 13).all()
    torch.testing.assert_close(clustered(grid), exact(grid), rtol=0, atol=1e-5)


def test_one_cluster_is_attention_of_the_mean_query():
    query, key, value = make_heads(13)
    mixed = attend_in_clusters(query, key, value, torch.zeros(2, 3, 13, dtype=torch.long), 1)
    expected = attend(query.mean(dim=2, keepdim=True), key, value).expand(-1, -1, 13, -1)
    torch.testing.assert_close(mixed, expected)
    _, wide = layers(width=1e6)
    assert (wide.count_clusters(torch.randn(2, 3, 5, 7, 12)) == 1).all()


def test_sums_are_those_of_each_sample_and_head():
    points, index = make_heads(11)[0], torch.randint(0, 5, (2, 3, 11), generator=torch.Generator().manual_seed(2))
    expected = torch.zeros(2, 3, 5, 4, dtype=torch.float64)
    for s, head, n in torch.cartesian_prod(*map(torch.arange, (2, 3, 11))).tolist():
        expected[s, head, index[s, head, n]] += points[s, head, n]
    torch.testing.assert_close(cluster_sums(points, index, 5), expected)


def test_gradients_with_fixed_clusters():
    index = torch.randint(0, 3, (2, 3, 7), generator=torch.Generator().manual_seed(2))
    mix = partial(attend_in_clusters, index=index, clusters=3, allowed=make_valid(2, 1, 1, 7))
    assert torch.autograd.gradcheck(mix, [x.requires_grad_() for x in make_heads(7).unbind()])


def test_typical_distance_is_the_median_of_those_that_differ():
    query = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0])[None, None, :, None]
    assert typical_distance(query).item() == 3.0  # 1 once, 3 five times, 4 five times
    with pytest.raises(ValueError, match="all queries are the same: no width can be found"):
        typical_distance(torch.ones(1, 2, 5, 3))


def test_a_calibrated_width_is_saved(monkeypatch):
    monkeypatch.setattr(module, "CALIBRATION_QUERIES", 53)
    _, clustered = layers()
    grid = torch.randn(2, 3, 5, 7, 12)
    clustered.calibrate(grid, ratio=0.5)
    queries = rearrange(clustered.attention.query(grid), "b t h w (heads d) -> (b heads) (t h w) d", heads=3)[:, ::2]
    distances = torch.cat([torch.pdist(head) for head in queries])
    assert clustered.width.item() == pytest.approx(0.5 * distances.median().item(), rel=1e-5)
    other = Clustered(12, 3, seed=7)
    other.load_state_dict(clustered.state_dict())
    assert torch.equal(other(grid), clustered(grid))


def test_macs_are_those_counted_for_the_clusters_found():
    _, clustered = layers(width=2.0, rounds=3)
    size = (3, 5, 7)
    clusters = int(clustered.count_clusters(torch.zeros(1, *size, 12)).max())
    assert clusters == 1
    assert count_macs(clustered, (*size, 12)) == clustered.macs(*size, 1)
    clustered.width.fill_(1e-5)
    grid = torch.randn(1, *size, 12)
    counted = count_macs(_Fixed(clustered, grid), (1,))
    assert counted == clustered.macs(*size)  # every token is a cluster
    clustered.width.fill_(2.0)
    found = int(clustered.count_clusters(grid).max())
    assert 1 < found < 105
    assert count_macs(_Fixed(clustered, grid), (1,)) == clustered.macs(*size, found)


class _Fixed(nn.Module):
    """A module on one grid, whatever its input."""

    def __init__(self, module, grid):
        super().__init__()
        self.module, self.grid = module, grid

    def forward(self, _):
        return self.module(self.grid)


def test_refuses_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="rounds must be at least 1 and width above 0, got 8 and 0"):
        Clustered(12, 3, width=0)


PATCH, FRAMES, SIDE = 2, 3, 12
TOKENS = FRAMES * SIDE**2


def make_rain(samples, seed):
    """Two storms that move, on a field that is dry in three cells of four: (samples, t, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(SIDE * PATCH), torch.arange(SIDE * PATCH), indexing="ij")
    start = torch.rand(samples, 2, 1, 2, generator=generator) * SIDE * PATCH
    speed = 1.5 * torch.randn(samples, 2, 1, 2, generator=generator)
    peak = 1 + 2 * torch.rand(samples, 2, 1, 1, 1, generator=generator)
    centre = (start + speed * torch.arange(FRAMES)[:, None])[..., None, None, :]
    distance = (rows - centre[..., 0]) ** 2 + (columns - centre[..., 1]) ** 2
    rain = (peak * torch.exp(-distance / 12)).sum(dim=1)
    return torch.where(rain > 0.3, rain, 0.0)


def heaviest_or_mean(rain):
    """What a token has to read from all others: where it rains the heaviest rain of the sample, else the mean."""
    patches = reduce(rain, "b t (h p) (w q) -> b t h w", "max", p=PATCH, q=PATCH)
    heaviest, mean = patches.amax(dim=(1, 2, 3), keepdim=True), patches.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(patches > 0, heaviest, mean)


class Reader(nn.Module):
    """One layer of attention between linear maps, with positions."""

    def __init__(self):
        super().__init__()
        self.embed, self.read = nn.Linear(PATCH**2, 16), nn.Linear(16, 1)
        self.positions = nn.Parameter(0.1 * torch.randn(FRAMES, SIDE, SIDE, 16))
        self.attention = AlongAxes(16, 2, "J")

    def grid(self, rain):
        patches = rearrange(patchify(rain[:, :, None], PATCH), "b t d h w -> b t h w d")
        return functional.layer_norm(self.embed(patches) + self.positions, (16,))

    def forward(self, rain):
        return self.read(self.attention(self.grid(rain)))[..., 0]


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, rain = Reader(), make_rain(64, seed=0)
    target = heaviest_or_mean(rain)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        batch = torch.randint(0, 64, (8,))
        optimiser.zero_grad()
        functional.mse_loss(model(rain[batch]), target[batch]).backward()
        optimiser.step()
    torch.set_num_threads(threads)
    return model


def attach(model, *, rounds, ratio, seed=0):
    """The model with clusters in place of exact attention, calibrated on training fields."""
    clustered = Clustered(16, 2, rounds=rounds, seed=seed)
    clustered.load_state_dict(model.attention.state_dict(), strict=False)
    clustered.calibrate(model.grid(make_rain(64, seed=0)[:16]), ratio)
    attached = copy.deepcopy(model)
    attached.attention = clustered
    return attached


def relative_error(model, attached, rain):
    grid = model.grid(rain)
    exact = model.attention(grid)
    return ((attached.attention(grid) - exact).norm() / exact.norm()).item()


@pytest.mark.slow
@torch.no_grad()
def test_a_dry_field_needs_few_clusters(trained):
    rain = make_rain(16, seed=1)
    dry = (reduce(rain, "b t (h p) (w q) -> b t h w", "max", p=PATCH, q=PATCH) == 0).float().mean()
    assert 0.7 < dry < 0.9
    attached = attach(trained, rounds=8, ratio=2.0)
    clusters = int(attached.attention.count_clusters(trained.grid(rain)).max())
    assert clusters <= 0.4 * TOKENS
    assert relative_error(trained, attached, rain) <= 0.05
    assert relative_error(trained, attach(trained, rounds=1, ratio=1e4), rain) > 0.3  # not what any query reads
    size = (FRAMES, SIDE, SIDE)
    projections = 4 * TOKENS * 16**2
    saved = 1 - (attached.attention.macs(*size, clusters) - projections) / (trained.attention.macs(*size) - projections)
    assert saved >= 0.4
    target = heaviest_or_mean(rain)
    rmse = [functional.mse_loss(model(rain), target).sqrt().item() for model in (trained, attached)]
    assert rmse[1] <= 1.03 * rmse[0]


@pytest.mark.slow
@torch.no_grad()
def test_more_rounds_are_closer(trained):
    rain = make_rain(16, seed=1)
    errors = [
        sum(relative_error(trained, attach(trained, rounds=rounds, ratio=4.0, seed=seed), rain) for seed in range(3))
        / 3
        for rounds in (2, 4, 8, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.4 * errors[0]


@pytest.mark.slow
def test_fine_tuning_on_exact_attention_reduces_the_change(trained):
    attached, fields, held_out = attach(trained, rounds=8, ratio=8.0), make_rain(64, seed=0), make_rain(16, seed=1)

    @torch.no_grad()
    def change():
        return functional.mse_loss(attached(held_out), trained(held_out)).item()

    before = change()
    optimiser = torch.optim.Adam(attached.parameters(), lr=1e-3)
    for first in list(range(0, 64, 8)) * 6:
        batch = fields[first : first + 8]
        optimiser.zero_grad()
        functional.mse_loss(attached(batch), trained(batch).detach()).backward()
        optimiser.step()
    assert change() < 0.5 * before


def forecaster(attention, **options):
    """A video transformer that reads each lead from a frame of the history."""
    torch.manual_seed(0)
    given = {"dim": 16, "heads": 2, "patch": PATCH, "mlp_ratio": 2, "positions": "learned", "future": "direct"}
    given |= {"stem": "patch"}  # nothing passes by attention
    return models.build(
        "video_transformer", VideoTransformerOptions(attention=attention, **given, **options), channels_in=1,
        channels_out=1, history=FRAMES, horizon=FRAMES, step_minutes=5,
    )  # fmt: skip


def films(samples, seed):
    """Rain on a part of the field (b, t, 1, h, w), and what becomes of it: the heaviest where it rains, or the mean."""
    rain = make_rain(samples, seed)[:, :, 4:20, 4:20]
    return rain[:, :, None], repeat(heaviest_or_mean(rain), "b t h w -> b t 1 (h p) (w q)", p=PATCH, q=PATCH)


@pytest.fixture(scope="module")
def dense():
    """A trained forecaster whose attention is joint."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = forecaster("joint")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=200, pct_start=0.2)
    for step in range(200):
        rain, target = films(8, seed=100 + step)
        optimiser.zero_grad()
        functional.mse_loss(model(rain), target).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    torch.set_num_threads(threads)
    return model.eval()


@torch.no_grad()
def with_clusters(dense, *, rounds, ratio):
    """The trained forecaster with clusters in each layer, calibrated on what that sees of training films."""
    model = forecaster("clustered", rounds=rounds)
    found = model.load_state_dict(dense.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert {name.rsplit(".", 1)[1] for name in found.missing_keys} == {"directions", "offsets", "width"}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, seen: layer.calibrate(*seen, ratio))
        for layer in model.modules()
        if isinstance(layer, Clustered)
    ]
    model(films(64, seed=0)[0])
    for hook in hooks:
        hook.remove()
    return model.eval()


def rms_difference(one, two):
    return functional.mse_loss(one, two).sqrt().item()


@pytest.mark.slow
@torch.no_grad()
def test_a_trained_forecaster_takes_clusters_as_it_is(dense):
    """Measured: the error changes by 0.04 % for 59 % less attention; with one cluster it is 7.6 times as large.

    Where each query asks for a place of its own, as in motion, none are alike: what is saved there is lost in error.
    """
    rain, target = films(32, seed=1)
    clustered, of_one = (with_clusters(dense, rounds=rounds, ratio=ratio) for rounds, ratio in ((8, 6.0), (1, 1e4)))
    exact, close, far = (rms_difference(model(rain), target) for model in (dense, clustered, of_one))
    assert abs(close / exact - 1) <= 0.03
    assert far > 3 * exact
    counts = [count_macs(_Fixed(model, rain), (1,)) for model in (dense, clustered)]
    tokens = FRAMES * 8 * 8
    assert counts[0] - counts[1] >= 0.4 * 32 * 4 * score_macs(tokens, tokens, 16)  # of four sub-layers


def tuned_change(dense, **clusters):
    """How far a forecaster with clusters is from the dense one after learning from it, over how far it was before."""
    model, (held_out, _) = with_clusters(dense, **clusters), films(32, seed=1)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=120)
    changes = [rms_difference(model(held_out), dense(held_out))]
    for step in range(120):
        rain, _ = films(8, seed=100 + step)
        optimiser.zero_grad()
        functional.mse_loss(model(rain), dense(rain).detach()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    changes.append(rms_difference(model(held_out), dense(held_out)))
    return changes[1] / changes[0]


@pytest.mark.slow
@pytest.mark.campaign
def test_fine_tuning_on_the_dense_forecaster_reduces_the_change(dense):
    """Measured 0.81 and 0.78. It is not much: each step that moves queries also moves some to other clusters."""
    changes = [tuned_change(dense, rounds=rounds, ratio=ratio) for rounds, ratio in ((8, 12.0), (4, 2.0))]
    assert sum(changes) / len(changes) < 0.95
