"""The moving frame and the base of a network, as forecasts see them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fieldcast import models
from fieldcast.models.advection.forecast import forecast as advection
from fieldcast.models.layers.frame import brought_along, dealt
from fieldcast.models.layers.motion import departures
from fieldcast.pipeline.datasets.signature import Channel
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig
from fieldcast.pipeline.forecasting.forecaster import Forecaster, build_network, forecast_members
from tests.forecasting.test_checkpoint import TIMES, description
from tests.models.references.test_references import blobs

SMALL: dict[str, dict[str, Any]] = {
    "recurrent": {"hidden": [6], "patch": 2},
    "video_transformer": {"dim": 8, "heads": 2, "patch": 4},
    "simvp": {"channels": 4, "levels": 1, "hidden": 8, "blocks": 1},
    "unet": {"channels": 5, "levels": 1},
}
ARRAYS = {
    "lagrangian_regression": {"weights": np.array([0.5, 0.2, 0.1, 0, 0, 0.3], np.float32) + np.zeros((4, 1, 1), "f4")},
    "damped_persistence": {"climatology": np.full((24, 1, 33, 41), 0.4, "f4"), "damping": np.full((4, 1), 0.7, "f4")},
    "climatology": {"climatology": np.full((24, 1, 33, 41), 0.4, "f4")},
}
RAIN = Channel("rain_rate", "mm h-1", "log", 2.0, valid_min=0.0, mean=0.2, scale=0.5)


def described(kind: str, **options: Any) -> CheckpointConfig:
    chosen = models.OPTIONS[kind].model_validate({**SMALL.get(kind, {}), **options}).model_dump(mode="json")
    return replace(description(kind), kind=kind, options=chosen, channels=(RAIN,))


def forecaster(kind: str, shaken: float = 0.0, **options: Any) -> Forecaster:
    config = described(kind, **options)
    torch.manual_seed(2)
    arrays = {f"{base}.{name}": array for base in config.bases[:1] for name, array in ARRAYS.get(base, {}).items()}
    network = build_network(config, np.full((1, 1, 1, 1), 0.2), np.array([0.5]), arrays).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += shaken * torch.randn(parameter.shape)
    return Forecaster(config, {}, network)


def rain(velocity: tuple[float, float] = (2, -1)) -> np.ndarray:
    fields = np.concatenate([blobs(33, 41, 3, velocity=velocity), blobs(33, 41, 3, velocity=(-1.5, 0.5))])
    fields[fields < 0.05] = 0
    return fields


BASES = ["persistence", "climatology", "damped_persistence", "advection", "lagrangian_regression"]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("frame", ["fixed", "moving"])
@pytest.mark.parametrize("kind", SMALL)
def test_untrained_it_is_its_base_bit_for_bit(kind: str, frame: str, base: str) -> None:
    history = rain()
    history[0, -1, 0, 4:7, 8:11] = np.nan
    history[1, :, 0, 20:22, 3] = np.nan
    reference = Forecaster(described(base), ARRAYS.get(base, {}))
    np.testing.assert_array_equal(forecaster(kind, frame=frame, base=base)(history, TIMES), reference(history, TIMES))


@pytest.mark.parametrize("kind", SMALL)
def test_untrained_in_the_moving_frame_it_is_advection(kind: str) -> None:
    history = rain(velocity=(1, 0))
    forecast = forecaster(kind, frame="moving")(history, TIMES)
    moved = advection(history, 4, frames=4)
    inner = (..., slice(8, -8), slice(8, -8))
    np.testing.assert_allclose(forecast[inner], moved[inner], atol=0.15)  # it moves transformed values


@pytest.mark.parametrize("output", ["quantiles", "ensemble"])
@pytest.mark.parametrize("kind", SMALL)
def test_members_move_and_start_from_the_base_too(kind: str, output: str) -> None:
    made = forecaster(kind, 0.05, frame="moving", base="lagrangian_regression", output=output, members=3)
    members = made.members(rain(), TIMES)
    assert members.shape == (2, 3, 4, 1, 33, 41)
    assert np.isfinite(members).all()
    assert members.std(axis=1).max() > 0


@pytest.mark.parametrize("kind", ["recurrent", "unet"])
def test_weather_that_only_moves_looks_the_same_wherever_it_goes(kind: str) -> None:
    made = forecaster(kind, 0.05, frame="moving", base="advection")
    one, other = (made(rain(velocity=v)[:1], TIMES[:1])[0, 0, 0] for v in ((2, 0), (0, 2)))
    still = rain(velocity=(0, 0))[0, -1, 0]
    y, x = np.unravel_index(still.argmax(), still.shape)
    changes = [forecast[y + 4 + dy, x + 4 + dx] for forecast, dy, dx in ((one, -4, 2), (other, 2, -4))]
    assert changes[0] == pytest.approx(changes[1], rel=0.1)


def test_tiles_join_in_the_frame_of_the_init_time() -> None:
    made = forecaster("unet", 0.05, levels=0, channels=3, frame="moving", base="advection")
    tiled, whole = (forecast_members(made, rain(), TIMES, tile, 12) for tile in (24, None))
    np.testing.assert_allclose(tiled, whole, rtol=1e-3, atol=0.05)  # but for the tiles' own borders


def test_a_share_of_zero_leaves_the_base_at_that_lead() -> None:
    made = forecaster("unet", 0.1, frame="moving", base="advection")
    assert made.network is not None
    full = made(rain(), TIMES)
    made.network.share[1] = 0
    part = made(rain(), TIMES)
    base = Forecaster(described("advection"), {})(rain(), TIMES)
    np.testing.assert_array_equal(part[:, 1], base[:, 1])
    np.testing.assert_array_equal(part[:, [0, 2, 3]], full[:, [0, 2, 3]])
    assert not np.array_equal(full[:, 1], base[:, 1])


def test_frames_are_brought_to_the_time_of_the_last() -> None:
    fields = torch.from_numpy(blobs(33, 41, 4, velocity=(3, 0)))
    flow = torch.tensor([3.0, 0.0])[None, :, None, None].expand(1, 2, 33, 41)
    along = brought_along(fields, departures(flow, 4))
    for step in range(3):
        seen = along[0, step].isfinite()
        assert (~seen[0, :, : 3 * (3 - step)]).all()
        torch.testing.assert_close(along[0, step][seen], along[0, 3][seen], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("leads", "frames", "each"), [(12, 6, 2), (7, 3, 3), (2, 5, 1)])
def test_leads_are_dealt_out_over_the_frames(leads: int, frames: int, each: int) -> None:
    base = torch.arange(leads, dtype=torch.float32).view(1, leads, 1, 1, 1)
    shown = dealt(base, frames)
    assert shown.shape == (1, frames, each, 1, 1)
    assert shown.flatten().tolist() == [min(i, leads - 1) for i in range(frames * each)]


@pytest.mark.parametrize("option", [{"decode": "autoregressive"}, {"deep_supervision": True}])
def test_what_feeds_on_its_own_frames_keeps_the_fixed_one(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="apply to frame: fixed with base: history only"):
        models.OPTIONS["video_transformer"].model_validate({"arch": "encoder_decoder", "frame": "moving", **option})


def test_the_bases_that_can_be_named_are_the_references_of_one_forecast(tmp_path: Path) -> None:
    assert set(BASES) <= set(models.REFERENCES)


def gusts(count: int, steps: int, generator: torch.Generator) -> torch.Tensor:
    """Blobs (b, steps, 32, 32) on a ring that move by up to 1.5 cells a step along x, twice as fast after step 2."""
    speed = 3 * torch.rand(count, 1, generator=generator) - 1.5
    time = torch.arange(float(steps))
    gone = speed * torch.where(time > 2, 2 * time - 2, time)
    start = 32 * torch.rand(count, 1, 4, generator=generator)
    x = (torch.arange(32) - (start + gone[:, :, None])[..., None] + 16) % 32 - 16  # (b, steps, 4, 32)
    y = torch.arange(32)[:, None] - torch.tensor([4.0, 12, 20, 28])[:, None, None]
    return torch.exp(-(x[..., None, :] ** 2 + y**2) / 18).sum(dim=2)


def test_a_correction_of_the_flow_learns_that_weather_speeds_up() -> None:
    """The flow of the past is half of what follows; the network itself could hardly mend that in these steps."""
    options = {"channels": 2, "levels": 0, "frame": "moving", "base": "advection", "motion": {"transform": "identity"}}
    torch.manual_seed(1)
    config = replace(described("unet", correct_flow=True, **options), history=3, horizon=2)
    network = build_network(config, np.zeros((1, 1, 1, 1)), np.array([1.0]))
    optimiser, generator = torch.optim.Adam(network.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    times, origin = torch.zeros(8, dtype=torch.int64), torch.zeros(8, 2, dtype=torch.int64)

    def error() -> torch.Tensor:
        frames = gusts(8, 5, generator)[:, :, None]
        forecast = network(frames[:, :3], times, origin)
        return (forecast - network.normalise_target(frames[:, 3:], times, origin)).square().mean()

    with torch.inference_mode():
        before = network.eval()(gusts(8, 5, generator)[:, :3, None], times, origin)
        errors = [float(error()) for _ in range(4)]
    assert before.isfinite().all()
    network.train()
    for _ in range(60):
        optimiser.zero_grad()
        error().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.inference_mode():
        network.eval()
        trained = [float(error()) for _ in range(4)]
    assert np.mean(trained) < 0.3 * np.mean(errors)
    network.share[:] = 0
    kept = network(gusts(8, 5, torch.Generator().manual_seed(3))[:, :3, None], times, origin)
    base = network.guide.base(gusts(8, 5, torch.Generator().manual_seed(3))[:, :3, None].numpy(), times.numpy())
    assert base is not None
    torch.testing.assert_close(kept, network.normalise_target(base, times, origin))
