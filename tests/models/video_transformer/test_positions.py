import pytest
import torch
from torch.nn import functional

from fieldcast import models
from fieldcast.models.video_transformer.horizon import for_horizon
from fieldcast.models.video_transformer.options import VideoTransformerOptions
from fieldcast.models.video_transformer.positions import POSITIONS, minutes_from_init, turns
from tests.campaign import size

KINDS = ["sines", "sincos3d", "learned", "onehot", "rotary3d"]
SIZES = {"channels_in": 1, "channels_out": 1, "history": 3, "horizon": 2, "step_minutes": 10}


def build_with(positions, *, history=3, horizon=2, step_minutes=10, **options):
    torch.manual_seed(0)
    given = {"dim": 12, "heads": 2, "patch": 2, "stem": "patch", "positions": positions, **options}  # tokens alone know
    sizes = {**SIZES, "history": history, "horizon": horizon, "step_minutes": step_minutes}
    return models.build("video_transformer", VideoTransformerOptions.model_validate(given), **sizes)


def increments(model, history):
    """What a model adds to its base, from which nothing of the history's order can be told."""
    b, _, _, h, w = history.shape
    return model(history) - model.base(torch.zeros(b, model.sizes.horizon, 1, h, w), history)


def rolled(frames):
    """The frames, two patches lower and one to the right, what leaves coming in at the other side."""
    return torch.roll(frames, (4, 2), (-2, -1))


@pytest.mark.parametrize("arch", ["fill_in", "encoder_decoder"])
def test_without_positions_the_order_of_tokens_is_unknown(arch, shaken):
    model = shaken(build_with("none", attention="joint", arch=arch)).eval().double()
    history = torch.randn(2, 3, 1, 6, 10, dtype=torch.float64)
    torch.testing.assert_close(
        increments(model, rolled(history)), rolled(increments(model, history)), rtol=0, atol=1e-6
    )
    other = history[:, [1, 0, 2] if arch == "encoder_decoder" else [1, 2, 0]]  # its queries know the last frame
    torch.testing.assert_close(increments(model, other), increments(model, history), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_with_positions_the_order_of_tokens_is_known(kind, shaken):
    model = shaken(build_with(kind, attention="joint")).eval()
    history = torch.randn(2, 3, 1, 6, 10)
    assert (increments(model, rolled(history)) - rolled(increments(model, history))).abs().max() > 1e-3
    assert (increments(model, history[:, [1, 2, 0]]) - increments(model, history)).abs().max() > 1e-3


def test_minutes_count_from_init():
    assert minutes_from_init(3, 2, 10).tolist() == [-20, -10, 0, 10, 20]
    assert minutes_from_init(5, 2, 10, tubelet=3).tolist() == [-30, 0, 10, 20]
    assert minutes_from_init(5, 2, 10, tubelet=5).tolist() == [0, 10, 20]


@pytest.mark.parametrize("kind", list(POSITIONS))
def test_positions_have_a_place_for_every_token_and_untrained_lead(kind, shaken):
    options = VideoTransformerOptions.model_validate({"dim": 12, "heads": 2, "positions": kind})
    minutes = torch.tensor([-10.0, 0.0, 10.0])
    positions = shaken(POSITIONS[kind](options, minutes, 10.0))
    trained = positions(minutes, 5, 7)
    assert trained.shape == (3, 5, 7, 12)
    assert len({tuple(token.tolist()) for token in trained.detach().reshape(-1, 12)}) == 3 * 5 * 7
    others = positions(torch.tensor([5.0, 10.0, 70.0]), 5, 7)
    torch.testing.assert_close(others[1], trained[2])
    expected = {"learned": (trained[1] + trained[2]) / 2, "onehot": trained[1]}  # the first of two that are as near
    if kind in expected:
        torch.testing.assert_close(others[0], expected[kind])
        torch.testing.assert_close(others[2], trained[2])
    else:
        assert (others[2] - trained[2]).abs().max() > 1e-3


def test_tables_stretch_over_any_grid(shaken):
    for kind in ("learned", "onehot"):
        options = VideoTransformerOptions.model_validate(
            {"dim": 12, "heads": 2, "positions": kind, "positions_grid": (2, 3)}
        )
        positions, minutes = shaken(POSITIONS[kind](options, torch.zeros(1), 10.0)), torch.zeros(1)
        small, large = positions(minutes, 2, 3)[0], positions(minutes, 6, 9)[0]
        corners = large[[[1], [4]], [1, 4, 7]]  # the middles of nine cells each
        torch.testing.assert_close(corners, small, rtol=0, atol=0 if kind == "onehot" else 0.2)


def test_rotation_depends_on_differences_of_steps():
    heads = torch.randn(2, 1, 2, 3 * 2 * 5, 6)
    now, later = (turns(torch.arange(3.0) + start, 2, 5, 6)["J"] for start in (0.0, 4.0))
    scores = [turn(heads[0]) @ turn(heads[1]).transpose(-2, -1) for turn in (now, later)]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-5)
    assert (scores[0] - heads[0] @ heads[1].transpose(-2, -1)).abs().max() > 0.1


def test_step_length_is_used(shaken):
    five, sixty = (shaken(build_with("sines", step_minutes=minutes)) for minutes in (5, 60))
    sixty.load_state_dict(five.state_dict())
    history = torch.randn(1, 3, 1, 17, 13)
    assert not torch.equal(five(history), sixty(history))


@pytest.mark.parametrize("kind", ["sines", "sincos3d", "learned", "onehot", "none"])
def test_weights_serve_a_longer_horizon(kind, shaken):
    """Queries that do not see one another: the leads that were trained keep their forecasts."""
    options = {"arch": "encoder_decoder", "query_attention": "none"}
    model, longer = shaken(build_with(kind, **options)).eval(), build_with(kind, horizon=5, **options).eval()
    longer.load_state_dict(for_horizon(model.state_dict(), 5))
    history = torch.randn(2, 3, 1, 6, 10)
    forecast = longer(history)
    torch.testing.assert_close(forecast[:, :2], model(history), rtol=0, atol=1e-5)
    assert forecast.shape[1] == 5
    if kind in ("sines", "sincos3d"):
        assert (forecast[:, 4] - forecast[:, 1]).abs().max() > 1e-3
    else:  # nothing tells later leads from the last that was trained
        torch.testing.assert_close(forecast[:, 4], forecast[:, 1], rtol=0, atol=1e-5)


def test_weights_of_rotation_serve_a_longer_horizon(shaken):
    model, longer = shaken(build_with("rotary3d")), build_with("rotary3d", horizon=5)
    longer.load_state_dict(for_horizon(model.state_dict(), 5))
    assert longer(torch.randn(2, 3, 1, 6, 10)).isfinite().all()


def test_a_shorter_horizon_is_refused():
    with pytest.raises(ValueError, match=r"horizon must be at least the trained one \(2\), got 1"):
        for_horizon(build_with("sines").state_dict(), 1)


def pairs(samples, generator):
    """A field that warms by 1 between two frames, shown in either order; 1 where shown backwards."""
    first = torch.randn(samples, 1, 1, 4, 4, generator=generator)
    frames = torch.cat([first, first + 1], dim=1)
    backwards = torch.rand(samples, generator=generator) < 0.5
    frames[backwards] = frames[backwards].flip(1)
    return frames, backwards.float()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "sines", "learned", "sincos3d"][: size(2, 4)])
def test_which_frame_came_first(kind):
    generator = torch.Generator().manual_seed(0)
    model = build_with(kind, history=2, horizon=1, dim=16, attention="joint", mlp_ratio=2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30 if kind == "none" else 300):  # nothing can be learned without positions
        history, backwards = pairs(32, generator)
        log_odds = increments(model, history).sum(dim=(1, 2, 3, 4))
        optimiser.zero_grad()
        functional.binary_cross_entropy_with_logits(log_odds, backwards).backward()
        optimiser.step()
    history, backwards = pairs(1000, generator)
    with torch.no_grad():
        found = increments(model, history).sum(dim=(1, 2, 3, 4)) > 0
    right = (found == backwards.bool()).float().mean().item()
    assert right == pytest.approx(0.5, abs=0.05) if kind == "none" else right >= 0.95
