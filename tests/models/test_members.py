"""What learned models with members promise beside what all of them do."""

import pytest
import torch

from fieldcast import models
from fieldcast.models.layers.members import NOISE, noise_at
from fieldcast.pipeline.forecasting.losses import OF_MEMBERS

KINDS = ["convlstm", "factorised", "factorised_patches", "divided", "simvp", "encoder_decoder"]


def members_of(model, history, seconds=(600,)):
    """Forecasts with the noise of an init time, where there is noise."""
    noise = noise_at(torch.tensor(seconds).expand(len(history)), 4) if model.options.output == "ensemble" else None
    return model(history, noise)


@pytest.fixture(params=["quantiles", "ensemble"])
def output(request):
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_members_are_persistence_bitwise(kind, output, small, history_with_gaps):
    history = history_with_gaps(2, 5, 3, 17, 13)
    point = small(kind)(history)
    forecast = small(kind, output=output, members=4)(history)
    assert forecast.shape == (2, 4, 7, 2, 17, 13)
    for member in forecast.unbind(dim=1):
        assert torch.equal(member, point)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "channels"), [((33, 9), (2, 1)), ((5, 3), (3, 3)), ((13, 1), (1, 1))])
def test_any_size_and_again_the_same(kind, output, size, channels, small, shaken, history_with_gaps):
    model = shaken(small(kind, output=output, members=4, channels=channels)).eval()
    history = history_with_gaps(2, 5, channels[0], *size)
    forecast = members_of(model, history)
    assert forecast.shape == (2, 4, 7, channels[1], *size)
    assert forecast.isfinite().all()
    assert torch.equal(forecast, members_of(model, history))
    for one in range(4):
        for two in range(one):
            assert not torch.equal(forecast[:, one], forecast[:, two])


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_within_three_steps(kind, output, small, history_with_gaps):
    model = small(kind, output=output, members=4)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    history, target = history_with_gaps(2, 5, 3, 17, 13), torch.randn(2, 7, 2, 17, 13)
    seen = set()
    for _ in range(3):
        optimiser.zero_grad()
        OF_MEMBERS[output](model(history), target, target.isfinite()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        seen |= {name for name, p in model.named_parameters() if p.grad.abs().max() > 0}
        optimiser.step()
    assert seen == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", ["convlstm", "factorised"])
def test_noise_is_drawn_anew_where_none_is_given(kind, small, shaken, history_with_gaps):
    model = shaken(small(kind, output="ensemble", members=4)).eval()
    history = history_with_gaps(1, 5, 3, 17, 13)
    assert not torch.equal(model(history), model(history))
    torch.manual_seed(3)
    one = model(history)
    torch.manual_seed(3)
    assert torch.equal(one, model(history))


@pytest.mark.parametrize("kind", ["convlstm", "factorised"])
def test_members_follow_their_own_noise(kind, small, shaken, history_with_gaps):
    model = shaken(small(kind, output="ensemble", members=4)).eval()
    history = history_with_gaps(2, 5, 3, 17, 13)
    noise = torch.randn(2, 4, NOISE)
    forecast = model(history, noise)
    torch.testing.assert_close(model(history, noise.flip(1)), forecast.flip(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(history[1:], noise[1:]), forecast[1:], rtol=1e-5, atol=1e-5)
    other = noise.clone()
    other[0, 2] += 1
    changed = (model(history, other) != forecast).flatten(2).any(dim=2)
    assert changed.tolist() == [[False, False, True, False], [False] * 4]


def test_noise_depends_on_the_init_time_alone():
    alone, among = noise_at(torch.tensor([600]), 4), noise_at(torch.tensor([0, 300, 600]), 4)
    assert among.shape == (3, 4, NOISE)
    assert torch.equal(alone[0], among[2])
    assert not torch.equal(among[0], among[1])
    many = noise_at(300 * torch.arange(2000), 4)
    assert many.mean().item() == pytest.approx(0, abs=0.01)
    assert many.std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", ["convlstm", "factorised"])
def test_an_ensemble_learns_a_spread_that_is_there(kind, small):
    """The same history, two futures: a point forecast can only be their mean, members must be near both."""
    wider = {"hidden": [8]} if kind == "convlstm" else {"dim": 16, "patch": 4, "stem": "patch"}
    model = small(kind, output="ensemble", members=6, channels=(1, 1), history=2, horizon=1, **wider)
    history = torch.zeros(8, 2, 1, 8, 8)
    target = torch.ones(8, 1, 1, 8, 8) * torch.tensor([1.0, -1.0]).repeat(4)[:, None, None, None, None]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        OF_MEMBERS["ensemble"](model(history), target, target.isfinite()).backward()
        optimiser.step()
    forecast = model(history)
    assert forecast.mean().item() == pytest.approx(0, abs=0.4)
    assert forecast.std(dim=1).mean().item() > 0.5


def test_only_models_with_members_have_more_weights(small):
    assert "noisy.up.weight" in small("convlstm", output="ensemble").state_dict()
    assert not [name for name in small("convlstm", output="quantiles").state_dict() if name.startswith("noisy")]
    assert set(models.LEARNED) == {"recurrent", "video_transformer", "simvp", "unet"}
