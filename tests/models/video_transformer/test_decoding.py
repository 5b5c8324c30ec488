import pytest
import torch
from torch import nn

from fieldcast import models
from fieldcast.models.layers.members import NOISE
from fieldcast.models.layers.missing import fill_and_mask
from fieldcast.models.video_transformer.attention.decoder import DecoderLayer
from fieldcast.models.video_transformer.options import VideoTransformerOptions
from tests.campaign import size


def build_with(*, channels=(3, 2), history=5, horizon=7, **options):
    torch.manual_seed(0)
    """A decoder whose forecasts come from its tokens alone, patch by patch."""
    given = {"dim": 8, "heads": 2, "decoder_layers": 2, "stem": "patch", "arch": "encoder_decoder", **options}
    return models.build(
        "video_transformer",
        VideoTransformerOptions.model_validate(given),
        channels_in=channels[0],
        channels_out=channels[1],
        history=history,
        horizon=horizon,
        step_minutes=10,
    )


@pytest.fixture(name="stepping")
def stepping_fixture(shaken):
    """An autoregressive model as if trained, in training mode without dropout."""
    return shaken(build_with(decode="autoregressive", horizon=12))


@pytest.fixture(name="history")
def history_fixture(history_with_gaps):
    return history_with_gaps(2, 5, 3, 17, 13)


@pytest.fixture(name="target")
def target_fixture(history_with_gaps):
    """With gaps, and a frame of nothing but gaps."""
    target = history_with_gaps(2, 12, 2, 17, 13, seed=3)
    target[0, 4] = torch.nan
    return target


def test_lone_queries_do_not_depend_on_one_another(shaken, history):
    model = shaken(build_with(query_attention="none")).eval()
    tokens, leads = model.stem(fill_and_mask(history))[0], model.minutes[model.slots :]
    everything = model.at_leads(tokens, leads)
    for chosen in ([3], [6, 0, 2], [5, 4, 3, 2, 1, 0]):
        torch.testing.assert_close(model.at_leads(tokens, leads[chosen]), everything[:, chosen], rtol=0, atol=1e-6)


def test_queries_that_see_one_another_do_depend(shaken, history):
    model = shaken(build_with()).eval()
    tokens, leads = model.stem(fill_and_mask(history))[0], model.minutes[model.slots :]
    alone = model.at_leads(tokens, leads[[3]])
    assert (alone - model.at_leads(tokens, leads)[:, [3]]).abs().max() > 1e-3


@pytest.mark.parametrize("output", ["point", "quantiles", "ensemble"])
def test_deep_supervision_forecasts_after_every_layer(shaken, history, output):
    """In training, where the last layer's forecast is that of the same network without, and that of a shorter one."""
    members = {} if output == "point" else {"members": 3}
    build = {"output": output, **members}
    deep = shaken(build_with(deep_supervision=True, decoder_layers=3, **build)).train()
    plain = build_with(decoder_layers=3, **build)
    plain.load_state_dict(deep.state_dict())
    noise = None if output != "ensemble" else torch.randn(2, 3, NOISE, generator=torch.Generator().manual_seed(5))
    after_one, after_two, after_three = deep(history, noise).split(2)
    torch.testing.assert_close(after_three, plain.train()(history, noise))
    for count, forecast in ((1, after_one), (2, after_two)):
        short = build_with(decoder_layers=count, **build)
        short.load_state_dict({k: v for k, v in deep.state_dict().items() if k in short.state_dict()})
        torch.testing.assert_close(forecast, short.train()(history, noise))
    torch.testing.assert_close(deep.eval()(history, noise), plain.eval()(history, noise))


def test_untrained_leads_lie_between_their_neighbours(shaken, history):
    model = shaken(build_with(query_attention="none")).eval()
    tokens = model.stem(fill_and_mask(history))[0]
    before, between, after = model.at_leads(tokens, torch.tensor([20.0, 20.5, 21.0])).unbind(dim=1)
    assert (after - before).abs().max() > 1e-3
    assert (between - (before + after) / 2).norm() < 0.5 * (after - before).norm()


def test_all_leads_at_once_equal_one_after_the_other(stepping, history, target):
    """With the truth as input everywhere, gaps included, at each of twelve steps."""
    at_once = stepping(history, target=target)
    in_turn = stepping(history, target=target, truth=torch.ones(2, 12, dtype=torch.bool))
    for lead in range(12):
        torch.testing.assert_close(in_turn[:, lead], at_once[:, lead], rtol=0, atol=1e-5)


def test_own_forecasts_are_fed_back(stepping, history):
    """Feeding the forecast as if it were the truth changes nothing; feeding another changes all later leads."""
    forecast = stepping(history)
    torch.testing.assert_close(stepping(history, target=forecast.detach()), forecast, rtol=0, atol=1e-5)
    other = forecast.detach().clone()
    other[:, 4] += 1
    changed = (stepping(history, target=other) - forecast).abs().amax(dim=(0, 2, 3, 4)) > 1e-4
    assert changed.tolist() == [False] * 5 + [True] * 7


def test_truth_is_fed_by_sample_and_lead(stepping, history, target):
    free = stepping(history)
    assert torch.equal(stepping(history, target=target, truth=torch.zeros(2, 12, dtype=torch.bool)), free)
    truth = torch.zeros(2, 12, dtype=torch.bool)
    truth[1, 6] = True
    changed = (stepping(history, target=target, truth=truth) != free).flatten(2).any(dim=2)
    assert changed.tolist() == [[False] * 12, [False] * 7 + [True] * 5]


def test_truth_is_never_read_outside_training(stepping, history, target):
    stepping.eval()
    free = stepping(history)
    assert torch.equal(stepping(history, target=target), free)
    assert torch.equal(stepping(history, target=target, truth=torch.ones(2, 12, dtype=torch.bool)), free)


def test_the_last_lead_teaches_the_first(stepping, history):
    """Fed-back forecasts keep their gradient: a change of the first lead's base changes the last forecast."""
    stepping.zero_grad()
    stepping(history)[:, -1].sum().backward()
    change = stepping.base.change.grad.abs().sum(dim=(1, 2))
    assert (change[:-1] > 0).all()


def test_only_autoregressive_models_take_the_truth(history, target):
    assert build_with(decode="autoregressive").supports_teacher_forcing
    for model in (build_with(), build_with(arch="fill_in", decoder_layers=2)):
        assert not model.supports_teacher_forcing
        with pytest.raises(ValueError, match="a target is fed to decode: autoregressive only"):
            model(history, target=target[:, :7])


def test_a_single_lead_is_one_step(shaken, history):
    model = shaken(build_with(decode="autoregressive", horizon=1))
    assert torch.equal(model(history), model(history, target=torch.randn(2, 1, 2, 17, 13)))


def count_decoder_calls(model, history):
    calls = []
    for layer in model.modules():
        if isinstance(layer, DecoderLayer):
            layer.register_forward_hook(lambda *_: calls.append(1))
    model(history)
    return len(calls) / model.options.decoder_layers


def test_queries_decode_once_and_steps_once_a_lead(history):
    assert count_decoder_calls(build_with(horizon=12), history) == 1
    assert count_decoder_calls(build_with(horizon=12, decode="autoregressive"), history) == 12


def test_all_leads_at_once_take_a_third_of_the_operations_of_one_after_the_other(count_operations, history):
    at_once, in_turn = (build_with(horizon=12, decode=decode) for decode in ("queries", "autoregressive"))
    assert count_operations(in_turn, history) >= 3 * count_operations(at_once, history)


def test_memory_is_encoded_once(stepping, history):
    calls = []
    stepping.trunk.register_forward_hook(lambda *_: calls.append(1))
    for layer in stepping.decoder.decoder.layers:
        layer.cross_attention.key.register_forward_hook(lambda *_: calls.append(1))
    stepping(history)
    assert len(calls) == 1 + 2


@pytest.mark.parametrize("decode", ["queries", "autoregressive"])
def test_the_memory_is_read(decode, shaken):
    model = shaken(build_with(decode=decode)).eval()
    history = torch.randn(2, 5, 3, 17, 13)
    other = history.clone()
    other[:, 0] += 1
    with torch.no_grad():
        model.base.change.zero_()  # the base is the last frame
        assert (model(history) - model(other)).abs().max() > 1e-4


def test_steps_read_the_memory_by_cross_attention_alone(shaken):
    model = shaken(build_with(decode="autoregressive")).eval()
    history = torch.randn(2, 5, 3, 17, 13)
    other = history.clone()
    other[:, 0] += 1
    with torch.no_grad():
        model.base.change.zero_()
        for layer in model.decoder.decoder.layers:
            nn.init.zeros_(layer.cross_attention.out.weight)
        assert torch.equal(model(history), model(other))


def test_direct_reads_each_lead_from_a_history_step(shaken, history_with_gaps):
    options = {"arch": "fill_in", "decoder_layers": 2, "future": "direct", "order": "SS"}
    model = shaken(build_with(history=5, horizon=5, **options)).eval()
    history = history_with_gaps(1, 5, 3, 17, 13)
    assert model.queries is None
    assert len(model.minutes) == 5
    other = history.clone()
    other[:, 1, 2] = 0.5  # a channel that the base does not read
    changed = (model(history) != model(other)).flatten(2).any(dim=2)[0]
    assert changed.tolist() == [False, True, False, False, False]


def test_direct_needs_as_many_leads_as_history():
    with pytest.raises(ValueError, match=r"as many history steps as leads \(7\), got 5"):
        build_with(arch="fill_in", decoder_layers=2, future="direct")


def moving_blobs(samples, times, generator):
    """A blob that moves evenly over a periodic field of 16 by 16 cells, at up to 1.5 cells a step."""
    start, speed = (
        16 * torch.rand(2, samples, generator=generator),
        3 * torch.rand(2, samples, generator=generator) - 1.5,
    )
    places = start[..., None] + speed[..., None] * times
    away = ((torch.arange(16) - places[..., None] + 8) % 16 - 8).square()
    return 3 * torch.exp(-(away[0][..., :, None] + away[1][..., None, :]) / 4.5)[:, :, None]


def trained(model, times, steps, generator):
    """The model after a short training on films of blobs at some times, the first three its history."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=6e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps)
    for _ in range(steps):
        history, target = moving_blobs(16, times, generator).split([3, len(times) - 3], dim=1)
        forecast = model(history, target=target) if model.supports_teacher_forcing else model(history)
        optimiser.zero_grad()
        (forecast - target).square().mean().backward()
        optimiser.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def errors_by_lead(decode, seed):
    """Mean squared errors after a short training, over those of persistence, and the first over the last."""
    sizes = {"channels": (1, 1), "history": 3, "horizon": 6}
    model = build_with(**sizes, decode=decode, dim=32, heads=4, patch=4, decoder_layers=1)
    times = torch.arange(9)
    with torch.enable_grad():
        trained(model, times, 150, torch.Generator().manual_seed(seed))
    history, target = moving_blobs(300, times, torch.Generator().manual_seed(99)).split([3, 6], dim=1)
    errors = (model(history) - target).square().mean(dim=(0, 2, 3, 4))
    return errors / (history[:, -1:] - target).square().mean(dim=(0, 2, 3, 4)), (errors[-1] / errors[0]).item()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(size(1, 2)))
def test_queries_beat_persistence_and_errors_grow_less_than_step_by_step(seed):
    relative, growth = errors_by_lead("queries", seed)
    _, growth_in_turn = errors_by_lead("autoregressive", seed)
    assert (relative < 0.7).all()
    assert growth < 0.8 * growth_in_turn


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(size(1, 2)))
def test_a_lead_between_two_trained_ones_is_forecast_as_well(seed):
    """Trained at 10, 20, 30 and 40 minutes, asked for 25: motion is even, so that its truth is known."""
    sizes = {"channels": (1, 1), "history": 3, "horizon": 4, "query_attention": "none"}
    model = build_with(**sizes, dim=32, heads=4, patch=4, decoder_layers=1)
    model.base.change.requires_grad_(False)  # the base is the last frame, whatever the lead
    past = torch.tensor([-2.0, -1.0, 0.0])
    trained(model, torch.arange(-2.0, 5.0), 200, torch.Generator().manual_seed(seed))
    leads = torch.tensor([2.0, 2.5, 3.0])
    films = moving_blobs(300, torch.cat([past, leads]), torch.Generator().manual_seed(99))
    history, target = films.split(3, dim=1)
    with torch.no_grad():
        tokens = model.at_leads(model.stem(fill_and_mask(history))[0], 10 * leads)
        forecast = history[:, -1:] + model.readout(tokens, [], 16, 16)
        errors = (forecast - target).square().mean(dim=(0, 2, 3, 4))
        persistence = (history[:, -1:] - target).square().mean(dim=(0, 2, 3, 4))
    before, between, after = errors.tolist()
    assert 0.8 * before < between < 1.2 * after
    assert (errors < 0.5 * persistence).all()
