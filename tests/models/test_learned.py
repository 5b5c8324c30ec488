"""What every learned model promises, whatever is inside."""

import pytest
import torch
from torch.nn import functional

from fieldcast import models
from tests.campaign import cases, size


def persistence_brute_force(history, channels_out, horizon):
    b, t, _, h, w = history.shape
    out = torch.zeros(b, channels_out, h, w)
    for s in range(b):
        for c in range(channels_out):
            for y in range(h):
                for x in range(w):
                    valid = [v for v in (history[s, k, c, y, x].item() for k in range(t)) if v == v]
                    out[s, c, y, x] = valid[-1] if valid else 0.0
    return out.unsqueeze(1).expand(-1, horizon, -1, -1, -1)


def test_untrained_is_persistence_bitwise(case, small, history_with_gaps):
    history = history_with_gaps(2, 5, 3, 17, 13)
    history[0, :, 0, 3, 4] = torch.nan  # never valid
    forecast = small(case)(history)
    assert forecast.dtype == torch.float32
    assert torch.equal(forecast, persistence_brute_force(history, 2, 7))


@pytest.mark.parametrize(
    ("size", "history", "horizon", "channels"),
    cases(
        [((33, 49), 2, 3, (1, 1)), ((59, 59), 12, 1, (2, 1)), ((5, 3), 1, 11, (3, 3)), ((13, 1), 7, 2, (3, 1))],
        [((5, 3), 1, 11, (3, 3)), ((13, 1), 7, 2, (3, 1))],
    ),
)
def test_any_size(case, size, history, horizon, channels, small, shaken, history_with_gaps):
    model = shaken(small(case, channels=channels, history=history, horizon=horizon))
    forecast = model(history_with_gaps(2, history, channels[0], *size))
    assert forecast.shape == (2, horizon, channels[1], *size)
    assert forecast.isfinite().all()


def test_every_parameter_learns_within_three_steps(case, small, history_with_gaps):
    model = small(case)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    history, target = history_with_gaps(2, 5, 3, 17, 13), torch.randn(2, 7, 2, 17, 13)
    seen = set()
    for _ in range(3):
        optimiser.zero_grad()
        functional.mse_loss(model(history), target).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        seen |= {name for name, p in model.named_parameters() if p.grad.abs().max() > 0}
        optimiser.step()
    assert seen == {name for name, _ in model.named_parameters()}


def test_dropout_is_active_in_training_only(case, small, shaken, history_with_gaps):
    model = shaken(small(case, dropout=0.5))
    history = history_with_gaps(2, 5, 3, 17, 13)
    assert not torch.equal(model(history), model(history))
    model.eval()
    assert torch.equal(model(history), model(history))


def test_missing_cells_carry_no_value_and_no_gradient(case, small, shaken, history_with_gaps):
    model = shaken(small(case)).eval()
    history = history_with_gaps(2, 5, 3, 17, 13)
    other = history.clone()
    other.view(torch.int32)[history.isnan()] = 0x7FC12345  # another bit pattern of NaN
    assert torch.equal(model(history), model(other))
    history.requires_grad_()
    model(history).square().sum().backward()
    assert (history.grad[history.isnan()] == 0).all()
    assert history.grad.isfinite().all()
    assert (history.grad != 0).any(dim=4).any(dim=3).any(dim=0).all()  # every frame and channel is read


def test_the_mask_is_read(case, small, shaken):
    model = shaken(small(case, channels=(1, 1))).eval()
    zeros = torch.zeros(1, 5, 1, 17, 13)
    gaps = zeros.clone()
    gaps[:, 2, :, 3, 4] = torch.nan  # filled with 0, and the last frame is valid: only the mask differs
    assert not torch.equal(model(zeros), model(gaps))


def test_samples_do_not_see_each_other(case, small, shaken, history_with_gaps):
    model = shaken(small(case)).eval()
    history = history_with_gaps(3, 5, 3, 17, 13)
    alone = torch.cat([model(sample[None]) for sample in history])
    torch.testing.assert_close(model(history), alone, rtol=1e-5, atol=1e-5)


def test_models_share_nothing_and_reload(case, small, shaken, history_with_gaps):
    one, two = shaken(small(case)).eval(), shaken(small(case, seed=5), seed=6).eval()
    assert not {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in two.parameters()}
    history = history_with_gaps(1, 5, 3, 17, 13)
    assert not torch.equal(one(history), two(history))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(history), two(history))


def test_bfloat16_autocast_keeps_the_base_exact(case, small, history_with_gaps):
    history = history_with_gaps(1, 5, 3, 17, 13)
    model = small(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        forecast = model(history)
    assert torch.equal(forecast, model(history))
    forecast.sum().backward()


@pytest.mark.parametrize("case", ["convlstm", "factorised", "simvp", "joint", "divided"][: size(3, 5)])
def test_one_batch_can_be_overfitted(case, small):
    transformer = {"dim": 32, "patch": 4}
    wider = {"convlstm": {"hidden": [16, 16]}, "simvp": {"hidden": 64}}.get(case, transformer)
    model = small(case, channels=(1, 1), history=3, horizon=2, **wider)
    history = torch.randn(2, 3, 1, 12, 20, generator=torch.Generator().manual_seed(0))
    target = history[:, :2].flip(1) * 0.5
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        optimiser.zero_grad()
        loss = functional.mse_loss(model(history), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_wrong_history_is_refused(small):
    with pytest.raises(ValueError, match=r"history must be \(b, 5, 3, h, w\), got \(1, 4, 3, 17, 13\)"):
        small("convlstm")(torch.zeros(1, 4, 3, 17, 13))


def test_build_refuses_what_cannot_be():
    sizes = {"channels_in": 1, "channels_out": 1, "history": 5, "horizon": 7, "step_minutes": 5}
    options = models.OPTIONS["recurrent"]()
    with pytest.raises(ValueError, match="'persistence' cannot be built: allowed are recurrent, video_transformer"):
        models.build("persistence", options, **sizes)
    with pytest.raises(ValueError, match="takes VideoTransformerOptions, got RecurrentOptions"):
        models.build("video_transformer", options, **sizes)
    for name, wrong in [("channels_out", 2), ("history", 0), ("step_minutes", 0)]:
        with pytest.raises(ValueError, match=f"{name} must be"):
            models.build("recurrent", options, **{**sizes, name: wrong})
