"""Recurrent encoder-forecaster with each of its cells."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from fieldcast import models
from fieldcast.models.recurrent.model import CELLS
from fieldcast.models.recurrent.options import RecurrentOptions

VARIANTS = {
    "no_peephole": {"peephole": "none", "forget_bias": 0.0, "kernel": 3, "state_kernel": 1},
    "group": {"norm": "group"},
    "layer": {"norm": "layer", "strides": (2, 3)},
    "convgru": {"cell": "convgru", "norm": "group", "activation": "leaky"},
    "trajgru": {"cell": "trajgru", "flows": 2, "strides": (2, 1), "stem": 5},
    "attention": {"cell": "attention", "heads": 2, "memory": 3, "norm": "layer"},
    "attention_strides": {"cell": "attention", "heads": 1, "strides": (1, 2)},
}


def build(channels=1, history=10, horizon=10, **options):
    torch.manual_seed(0)
    return models.build(
        "recurrent",
        RecurrentOptions(**options),
        channels_in=channels,
        channels_out=1,
        history=history,
        horizon=horizon,
        step_minutes=5,
    )


def weights(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("kernel", "state_kernel", "hidden", "published"),
    [
        (5, 5, (256,), 13_524_496),
        (5, 5, (128, 128), 10_042_896),
        (5, 5, (128, 64, 64), 7_585_296),
        (9, 1, (128, 128), 11_550_224),
        (9, 1, (128, 64, 64), 8_830_480),
    ],
)
def test_published_parameter_counts(kernel, state_kernel, hidden, published):
    """Shi et al. 2015, table 1."""
    model = build(kernel=kernel, state_kernel=state_kernel, hidden=hidden, patch=4)
    mask = kernel**2 * 16 * 4 * hidden[0]  # the published model has no mask channel
    base = 10 * 10  # nor a base that mixes the history
    assert weights(model) == published + mask + base


@pytest.mark.parametrize(
    ("kind", "gates", "changes", "published"),
    [("convlstm", 4, {"peephole": "none"}, 9_032_225), ("convgru", 3, {}, 6_880_289)],
)
def test_known_parameter_counts_with_strides(kind, gates, changes, published):
    """The widely used encoder-forecaster of Shi et al. 2017 for moving digits on 64 x 64 cells."""
    model = build(
        cell=kind,
        hidden=(64, 96, 96),
        kernel=5,
        strides=(1, 2, 2),
        stem=16,
        norm="group",
        patch=1,
        **changes,
    )
    mask, base = 3 * 3 * 16, 10 * 10
    never_used = 5 * 5 * 96 * gates * 96  # theirs convolves zeros as the input of the deepest forecaster cell
    state_bias = 2 * (64 + 96 + 96) if kind == "convgru" else 0  # theirs resets before the convolution
    assert weights(model) == published - never_used + mask + base + state_bias


@pytest.mark.parametrize(("hidden", "kernel"), [((48, 48), 3), ((16,), 3), ((128, 64, 64), 5), ((64, 64), 1)])
def test_attention_has_as_many_weights_as_a_convlstm(hidden, kernel):
    lstm, attention = (build(cell=kind, hidden=hidden, kernel=kernel) for kind in ("convlstm", "attention"))
    assert weights(attention) == pytest.approx(weights(lstm), rel=0.005)


@pytest.mark.parametrize("kind", CELLS)
def test_every_frame_is_read_on_other_grids_and_lengths(kind, shaken):
    model = shaken(build(history=5, horizon=20, cell=kind, hidden=(8, 4)))
    assert {type(cell) for cell in [*model.encoder, *model.forecaster]} == {CELLS[kind]}
    history = torch.randn(1, 5, 1, 48, 80, requires_grad=True)
    forecast = model(history)
    assert forecast.shape == (1, 20, 1, 48, 80)
    (gradient,) = torch.autograd.grad(forecast[:, -1].square().sum(), history)
    assert (gradient.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_size_persistence_and_every_weight_learns(variant, history_with_gaps):
    model = build(channels=2, history=4, horizon=3, hidden=(6, 4), **VARIANTS[variant])
    history = history_with_gaps(2, 4, 2, 17, 13)
    last, forecast = history[:, -1:, :1].expand(-1, 3, -1, -1, -1), model(history)
    assert torch.equal(forecast[~last.isnan()], last[~last.isnan()])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    target, seen = torch.randn(2, 3, 1, 17, 13), set()
    for _ in range(3):
        optimiser.zero_grad()
        functional.mse_loss(model(history), target).backward()
        seen |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        optimiser.step()
    assert seen == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", CELLS)
def test_two_models_share_nothing(kind):
    one, two = build(cell=kind, hidden=(8,)), build(cell=kind, hidden=(8,))
    assert not {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in two.parameters()}


def test_strides_work_on_coarser_grids():
    model = build(hidden=(6, 4, 3), strides=(3, 2, 5), patch=1, stem=7)
    steps = torch.zeros(2, 1, 2, 30, 60)
    sizes = []
    for down, channels in zip(model.downs, (6, 4, 3), strict=True):
        steps = down(steps)
        sizes.append(tuple(steps.shape[-2:]))
        steps = steps.new_zeros(2, 1, channels, *sizes[-1])
    assert sizes == [(10, 20), (5, 10), (1, 2)]
    for up, size in zip(model.ups, [(5, 10), (10, 20), (30, 60)], strict=True):
        steps = up(steps.new_zeros(2, 1, up.in_channels, *steps.shape[-2:]))
        assert steps.shape[-2:] == size


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cell": "rnn"}, "'convlstm', 'convgru', 'trajgru' or 'attention'"),
        ({"state_kernel": 2}, "kernel must be odd, got 2"),
        ({"flows": 3}, "flows applies to cell: trajgru, got 3 with convlstm"),
        (
            {"cell": "trajgru", "peephole": "none"},
            "peephole applies to cell: convlstm, got none with",
        ),
        (
            {"cell": "attention", "activation": "leaky"},
            "applies to cell: convgru or trajgru, got leaky",
        ),
        ({"cell": "convgru", "forget_bias": 0.0}, "forget_bias applies to cell: convlstm, got 0.0"),
        ({"memory": 5}, "memory applies to cell: attention, got 5 with convlstm"),
        ({"cell": "attention", "heads": 5}, r"hidden must be multiples of heads \(5\), got \(48, 48\)"),
        ({"strides": (2,)}, r"strides must be one for each level of hidden \(48, 48\), got \(2,\)"),
        ({"strides": (2, 0)}, "greater than 0"),
        ({"stem": 8}, "stem applies to models with strides, got 8 without"),
        ({"norm": "layer", "hidden": (3, 1)}, r"hidden must be at least 2 with norm: layer, got \(3, 1\)"),
        ({"peephole": "pixel"}, "'none' or 'channel'"),
    ],
)
def test_options_that_do_not_fit_are_named(wrong, message):
    with pytest.raises(ValidationError, match=message):
        RecurrentOptions(**wrong)


@pytest.mark.parametrize("variant", VARIANTS)
def test_options_survive_a_file(variant):
    options = RecurrentOptions(hidden=(6, 4), **VARIANTS[variant])
    assert RecurrentOptions.model_validate(options.model_dump(mode="json")) == options
