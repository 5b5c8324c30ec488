"""What every approximation of attention over all tokens promises, whatever it does between the linear maps."""

import pytest
import torch

from fieldcast.models.video_transformer.attention.approximate.clustered import Clustered
from fieldcast.models.video_transformer.attention.approximate.linear import LinearAttention
from fieldcast.models.video_transformer.attention.approximate.linformer import Linformer
from fieldcast.models.video_transformer.attention.approximate.nystrom import Nystrom
from fieldcast.models.video_transformer.attention.approximate.performer import Performer
from fieldcast.models.video_transformer.attention.approximate.pooled import Pooled
from fieldcast.models.video_transformer.attention.approximate.reformer import Reformer
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes
from fieldcast.models.video_transformer.attention.exact.global_tokens import GlobalTokens
from fieldcast.pipeline.forecasting.costs import count_macs

DIM, HEADS = 12, 3
BUILD = {
    "clustered": lambda: Clustered(DIM, HEADS, rounds=2, width=0.5),
    "linear": lambda: LinearAttention(DIM, HEADS),
    "linformer": lambda: Linformer(DIM, HEADS, keys=11, tokens=105),
    "linformer_stretched": lambda: Linformer(DIM, HEADS, keys=11, tokens=53),
    "nystrom": lambda: Nystrom(DIM, HEADS, landmarks=13),
    "performer": lambda: Performer(DIM, HEADS, features=17),
    "pooled": lambda: Pooled(DIM, HEADS, stride=3),
    "reformer": lambda: Reformer(DIM, HEADS, chunk=19, rounds=3),
}
STATIC = [case for case in BUILD if not case.startswith("clustered")]
WRAPPED = {"global": lambda: GlobalTokens(DIM, HEADS, LinearAttention(DIM, HEADS), tokens=2)}


def build(case, seed=0):
    torch.manual_seed(seed)
    mixer = {**BUILD, **WRAPPED}[case]()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return mixer


def make_grid(*shape, seed=0):
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(seed))


def make_valid(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6


@pytest.fixture(params=[*BUILD, *WRAPPED])
def case(request):
    return request.param


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 5), (3, 5, 7), (1, 13, 11)])
def test_any_size(case, size):
    mixed = build(case)(make_grid(2, *size), make_valid(2, *size))
    assert mixed.shape == (2, *size, DIM)
    assert mixed.isfinite().all()


@pytest.mark.parametrize("case", BUILD)
def test_weights_of_exact_attention_load(case):
    mixer, exact = build(case), AlongAxes(DIM, HEADS, "J")
    report = mixer.load_state_dict(exact.state_dict(), strict=False)
    assert report.unexpected_keys == []
    assert all(not name.startswith("attention.") for name in report.missing_keys)
    assert torch.equal(mixer.attention.query.weight, exact.attention.query.weight)
    assert torch.equal(mixer.attention.out.bias, exact.attention.out.bias)


def test_saved_and_loaded_is_bitwise_the_same(case):
    one, two = build(case), build(case, seed=5)
    for buffer in two.buffers():
        buffer.mul_(0.5)  # as if drawn from another seed
    grid = make_grid(2, 3, 5, 7)
    first = one(grid)
    assert torch.equal(one(grid), first)
    assert not torch.equal(two(grid), first)
    two.load_state_dict(one.state_dict())
    assert torch.equal(two(grid), first)


def test_tokens_that_are_not_valid_are_seen_by_none(case):
    mixer, grid, valid = build(case), make_grid(2, 3, 5, 7), make_valid(2, 3, 5, 7)
    other = torch.where(valid[..., None], grid, 3 * make_grid(2, 3, 5, 7, seed=1))
    assert torch.equal(mixer(grid, valid)[valid], mixer(other, valid)[valid])
    assert not torch.equal(mixer(grid)[valid], mixer(other)[valid])


def test_a_mask_of_all_valid_changes_nothing(case):
    mixer, grid = build(case), make_grid(2, 3, 5, 7)
    everything = torch.ones(2, 3, 5, 7, dtype=torch.bool)
    torch.testing.assert_close(mixer(grid, everything), mixer(grid), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", BUILD)
def test_a_sample_without_valid_tokens_reads_nothing(case):
    mixer, valid = build(case), make_valid(2, 3, 5, 7)
    valid[1] = False
    grid = make_grid(2, 3, 5, 7).requires_grad_()
    mixed = mixer(grid, valid)
    torch.testing.assert_close(mixed[1], mixer.attention.out.bias.expand(3, 5, 7, -1))
    mixed.square().sum().backward()
    assert grid.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


def test_samples_do_not_see_each_other(case):
    mixer, grid, valid = build(case), make_grid(3, 2, 5, 7), make_valid(3, 2, 5, 7)
    for masks in (None, valid):
        alone = [mixer(grid[s : s + 1], None if masks is None else masks[s : s + 1]) for s in range(3)]
        torch.testing.assert_close(mixer(grid, masks), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient(case):
    mixer = build(case)
    mixer(make_grid(2, 3, 5, 7)).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in mixer.parameters())


@pytest.mark.parametrize("size", [(3, 5, 7), (2, 4, 6), (1, 2, 2)])
@pytest.mark.parametrize("case", [*STATIC, *WRAPPED])
def test_macs_are_those_counted(case, size):
    mixer = build(case)
    assert mixer.macs(*size) == count_macs(mixer, (*size, DIM))


@pytest.mark.parametrize("case", ["linear", "performer", "linformer_stretched", "nystrom", "clustered"])
def test_no_square_of_tokens_is_held(case):
    saved = []
    grid = make_grid(1, 3, 19, 23)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        build(case)(grid)
    assert max(saved) < (3 * 19 * 23) ** 2 / 8


@pytest.mark.parametrize("case", ["linear", "performer", "linformer_stretched", "nystrom", "reformer"])
def test_held_is_about_what_autograd_keeps(case, count_held):
    mixer = build(case)
    projected = 5 * 3 * 19 * 23 * DIM  # tokens, queries, keys, values, and what the output map reads
    assert mixer.held(3, 19, 23) == pytest.approx(count_held(mixer, 3, 19, 23) - projected, rel=0.2)


@pytest.mark.parametrize("case", BUILD)
def test_head_masks_silence_heads(case):
    mixer, grid = build(case), make_grid(2, 3, 5, 7)
    both = mixer(grid)
    mixer.attention.set_head_mask(torch.tensor([0.0, 1.0, 1.0]))
    rest = mixer(grid)
    mixer.attention.set_head_mask(torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(both + mixer.attention.out.bias, rest + mixer(grid), rtol=1e-5, atol=1e-6)
    assert not torch.equal(both, rest)


def test_bfloat16_autocast_is_close(case):
    mixer, grid = build(case), make_grid(2, 3, 5, 7)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = mixer(grid)
    exact = mixer(grid)
    assert (mixed - exact).norm() < 0.2 * exact.norm()
