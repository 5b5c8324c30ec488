import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fieldcast.models.layers.motion_options import MotionOptions
from fieldcast.models.layers.outputs import OutputOptions
from fieldcast.models.layers.sizes import Frame
from fieldcast.pipeline.config.training import Rollout, ScheduledSampling, Train
from fieldcast.pipeline.datasets.signature import Channel
from fieldcast.pipeline.forecasting.base import Guide
from fieldcast.pipeline.forecasting.network import Network
from fieldcast.pipeline.forecasting.normaliser import Normaliser
from fieldcast.pipeline.training.lightning_module import Budget, ForecastModule
from fieldcast.pipeline.training.schedules import draw_truth, first_leads, leads_at, truth_probability

CPU = torch.device("cpu")
CHANNEL = Channel("t2m", "K")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "none"}, {0: 0.0, 1000: 0.0}),
        ({"schedule": "linear"}, {0: 1.0, 10_000: 0.8, 49_999: 2e-5, 50_000: 0.0, 90_000: 0.0}),
        ({"schedule": "linear", "start": 0.7, "decrease": 0.1}, {0: 0.7, 3: 0.4, 8: 0.0}),
        ({"schedule": "linear", "decrease": 0}, {0: 1.0, 10**9: 1.0}),
        ({"schedule": "exponential", "k": 0.9}, {0: 1.0, 1: 0.9, 20: 0.9**20}),
        (
            {"schedule": "inverse_sigmoid", "k": 50},
            {0: 50 / 51, 100: 50 / (50 + math.exp(2)), 196: 50 / (50 + math.exp(3.92)), 10**7: 0.0},
        ),
    ],
)
def test_schedules_are_their_formulas(options: dict[str, Any], expected: dict[int, float]) -> None:
    sampling = ScheduledSampling(**options)
    assert {step: truth_probability(step, sampling) for step in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0.9}, "k has no effect with schedule none"),
        ({"schedule": "linear", "k": 0.9}, "k has no effect with schedule linear"),
        ({"schedule": "exponential", "k": 0.9, "start": 0.5}, "start has no effect with schedule exponential"),
        ({"schedule": "exponential", "k": 1.5}, r"needs a k below 1, such as 0.9995, got 1.5"),
        ({"schedule": "exponential"}, "needs a k below 1"),
        ({"schedule": "inverse_sigmoid", "k": 0.5}, "needs a k of at least 1, such as 1000, got 0.5"),
        ({"schedule": "inverse_sigmoid"}, "needs a k of at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduledSampling(**options)


def test_truth_is_drawn_for_each_sample_and_lead() -> None:
    torch.manual_seed(1)
    for probability in (0.0, 0.25, 0.8, 1.0):
        drawn = draw_truth(probability, 211, 101, CPU)
        assert drawn.shape == (211, 101)
        assert drawn.float().mean().item() == pytest.approx(probability, abs=0.02)
        of_samples, of_leads = drawn.float().mean(dim=1), drawn.float().mean(dim=0)
        if 0 < probability < 1:  # a mask shared by all samples, or by all leads, would spread these to 0 and 1
            assert of_samples.std() == pytest.approx(math.sqrt(probability * (1 - probability) / 101), rel=0.2)
            assert of_leads.std() == pytest.approx(math.sqrt(probability * (1 - probability) / 211), rel=0.2)


def test_leads_grow_linearly_over_a_share_of_the_schedule() -> None:
    rollout = Rollout(start_leads=2, ramp_fraction=0.5)
    assert [leads_at(progress, 12, rollout) for progress in (0, 0.049, 0.05, 0.25, 0.49, 0.5, 1)] == [
        *(2, 2, 3, 7, 11, 12, 12)
    ]
    assert leads_at(0.0, 12, None) == 12
    assert leads_at(0.0, 3, Rollout(start_leads=5, ramp_fraction=0.5)) == 3


def test_later_leads_become_gaps() -> None:
    target = torch.arange(2 * 3 * 5.0).view(2, 3, 1, 1, 5)
    assert first_leads(target, 3) is target
    first = first_leads(target, 1)
    torch.testing.assert_close(first[:, :1], target[:, :1])
    assert first[:, 1:].isnan().all()
    assert target.isfinite().all()


class Stepper(nn.Module):
    """Each frame is the one before times a learned factor; `seen` keeps what it was called with."""

    supports_teacher_forcing = True

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.horizon, self.seen = horizon, []
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(
        self, history: Tensor, noise: Tensor | None = None, *, target: Tensor | None = None, truth: Tensor | None = None
    ) -> Tensor:
        self.seen.append(truth)
        frame, frames = history[:, -1, :1], []
        for lead in range(self.horizon):
            forecast = self.factor * frame
            frames.append(forecast)
            frame = forecast
            if target is not None and truth is not None:
                frame = torch.where(truth[:, lead, None, None, None], target[:, lead], forecast)
        return torch.stack(frames, dim=1)


class Direct(Stepper):
    """Takes no truth: being given one is an error."""

    supports_teacher_forcing = False

    def forward(self, history: Tensor, noise: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(history, noise)


def module_of(model: nn.Module, **options: Any) -> ForecastModule:
    normaliser = Normaliser(np.zeros((1, 1, 1, 1)), np.ones(1), [CHANNEL])
    frame = Frame(moving=False, based=False, variables=1, targets=1, planes=0, history=1, horizon=1)
    guide = Guide((), False, MotionOptions(), 1, 1, np.timedelta64(5, "m"), 1.0)
    network = Network(model, normaliser, 300, OutputOptions(), frame=frame, guide=guide)
    module = ForecastModule(network, Train(epochs=1, **options), Budget(None, steps=100))
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer
    return module


def batch_of(history: Tensor, target: Tensor) -> dict[str, Tensor]:
    count = len(history)
    where = {"init_time": torch.zeros(count, dtype=torch.long), "origin": torch.zeros(count, 2, dtype=torch.long)}
    return {"history": history, "target": target, **where}


def powers(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1, 1)


def test_teacher_forcing_and_free_rollout_by_hand() -> None:
    """One cell, history 16, targets 4, 2, 8: what the factor 1/2 makes of truths, and of its own forecasts."""
    batch = batch_of(powers([16.0]), powers([4.0, 2.0, 8.0]))
    forced, free = [8.0, 2.0, 1.0], [8.0, 4.0, 2.0]
    for probability, forecast in ((1.0, forced), (0.0, free)):
        loss = module_of(Stepper(3))._loss(batch, probability=probability)
        errors = [(f - t) ** 2 for f, t in zip(forecast, [4.0, 2.0, 8.0], strict=True)]
        assert loss.item() == pytest.approx(sum(errors) / 3)


class Deep(nn.Module):
    """Forecasts twice in training, as after two decoder layers: half the last frame, then a quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.ParameterList([torch.tensor(0.5), torch.tensor(0.25)])

    def forward(self, history: Tensor, noise: Tensor | None = None) -> Tensor:
        both = [factor * history[:, -1:, :1] for factor in self.factors]
        return torch.cat(both if self.training else both[1:])


def test_all_layers_of_deep_supervision_count_alike() -> None:
    """Targets 4 and NaN of a batch of two: (8 - 4)^2 and (4 - 4)^2 in training, the last layer's alone outside."""
    module = module_of(Deep())
    batch = batch_of(torch.tensor([16.0, 1.0]).view(2, 1, 1, 1, 1), torch.tensor([4.0, math.nan]).view(2, 1, 1, 1, 1))
    loss = module._loss(batch)
    assert loss.item() == pytest.approx((16 + 0) / 2)
    loss.backward()
    model = module.network.model
    assert isinstance(model, Deep)
    assert model.factors[0].grad.item() == pytest.approx(2 * 4 * 16 / 2)  # type: ignore[union-attr]
    module.eval()
    assert module._loss(batch).item() == 0


def test_the_gradient_of_a_free_rollout_goes_back_through_all_forecasts() -> None:
    module = module_of(Stepper(3), loss="mae")
    module._loss(batch_of(powers([16.0]), powers([math.nan, math.nan, 0.0]))).backward()
    gradient = module.network.model.factor.grad
    assert gradient.item() == pytest.approx(16 * 3 * 0.5**2)  # d(16 a^3)/da; detached forecasts would give a third


def test_the_rollout_grows_in_training_and_never_in_validation() -> None:
    module = module_of(Stepper(3), rollout={"start_leads": 1, "ramp_fraction": 0.5})
    batch = batch_of(powers([16.0]), powers([4.0, 2.0, 8.0]))
    losses = []
    for step in (0, 25, 50):
        module.budget.progress = lambda _, step=step: step / 100  # type: ignore[method-assign]
        losses.append(module.training_step(batch, 0).item())
    assert losses == pytest.approx([16.0, (16 + 4) / 2, (16 + 4 + 36) / 3])
    logged = []
    module.log = lambda name, value, **kwargs: logged.append(value.item())  # type: ignore[method-assign]
    module.budget.progress = lambda _: 0.0  # type: ignore[method-assign]
    module.validation_step(batch, 0)
    assert logged == pytest.approx([(16 + 4 + 36) / 3])


def test_truth_is_fed_in_training_alone_to_models_that_take_it() -> None:
    batch = batch_of(powers([16.0]), powers([4.0, 2.0, 8.0]))
    for model, fed in ((Stepper(3), True), (Direct(3), False)):
        module = module_of(model, scheduled_sampling={"schedule": "linear"})
        module.training_step(batch, 0)
        module.validation_step(batch, 0)
        training, validation = model.seen
        assert (training is not None) == fed
        assert validation is None
    never = module_of(Stepper(3))
    never.training_step(batch, 0)
    assert never.network.model.seen == [None]


def drawn_at(seed: int, step: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Where truth is fed at one step of a training."""
    monkeypatch.setattr(ForecastModule, "global_step", step)
    module = module_of(Stepper(13), seed=seed, scheduled_sampling={"schedule": "linear", "start": 0.5, "decrease": 0})
    batch = batch_of(torch.ones(11, 1, 1, 1, 1), torch.ones(11, 13, 1, 1, 1))
    module.on_train_batch_start(batch, 0)
    module.training_step(batch, 0)
    truth: Tensor = module.network.model.seen[0]
    return truth


def test_the_same_step_draws_the_same_truth_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a resumed training repeats: masks follow from seed and step, whatever was drawn before."""
    steps = [(1, 0), (1, 7), (2, 7)]
    undisturbed = [drawn_at(*step, monkeypatch) for step in steps]
    torch.rand(3)
    resumed = [drawn_at(*step, monkeypatch) for step in steps[1:]]
    assert torch.equal(undisturbed[1], resumed[0])
    assert torch.equal(undisturbed[2], resumed[1])
    assert not torch.equal(undisturbed[0], undisturbed[1])
    assert not torch.equal(undisturbed[1], undisturbed[2])


def last_lead_error(sampling: dict[str, Any], seed: int) -> float:
    """Squared error at the last lead of free rollout, of a decaying field that is observed with noise."""
    torch.manual_seed(seed)
    decay = 0.95 ** torch.arange(13.0)
    signal = torch.randn(1200, 1, 1, 1, 1) * decay[:, None, None, None]
    observed = signal + 0.5 * torch.randn(signal.shape)
    model = Stepper(12)
    module = module_of(model, scheduled_sampling=sampling)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    for step in range(150):
        optimiser.zero_grad()
        probability = truth_probability(step, module.options.scheduled_sampling)
        module._loss(batch_of(observed[:200, :1], observed[:200, 1:]), probability=probability).backward()
        optimiser.step()
    with torch.no_grad():
        forecast = model(observed[200:, :1])
    return (forecast[:, -1] - signal[200:, -1]).square().mean().item()


@pytest.mark.slow
def test_scheduled_sampling_beats_teacher_forcing_at_the_last_lead_of_free_rollout() -> None:
    """One step at a time, noise in its input makes a model damp too much, which free rollout repeats twelve times."""
    always, less = {"schedule": "linear", "decrease": 0}, {"schedule": "linear", "decrease": 0.01}
    errors = {name: [last_lead_error(of, seed) for seed in range(3)] for name, of in (("tf", always), ("ss", less))}
    assert np.mean(errors["ss"]) < 0.5 * np.mean(errors["tf"])
