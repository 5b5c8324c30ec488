"""Networks that learn on while they forecast: what they gain after a change, and what they may not see or touch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from fieldcast.pipeline import config
from fieldcast.pipeline import forecast as stage
from fieldcast.pipeline.config import Compare, Forecast, Online, Promotion, Verify
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.frames import FrameReader
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.evaluation.comparison import Entry, compare
from fieldcast.pipeline.evaluation.promotion import decide
from fieldcast.pipeline.forecasting import checkpoint
from fieldcast.pipeline.forecasting.forecaster import build_network, forecaster_of, load
from fieldcast.pipeline.forecasting.losses import Loss, almost_fair_crps, mse, pinball
from fieldcast.pipeline.forecasting.network import Network, forecast_batch
from fieldcast.pipeline.forecasting.online import Learning
from fieldcast.pipeline.verification.blocks import verify
from fieldcast.pipeline.verification.sums_file import read_sums, write_sums
from tests.conftest import merged
from tests.forecasting.test_checkpoint import RAIN, description, trained
from tests.made_sums import made_sums

H, W, HISTORY, HORIZON, EVENT = 11, 13, 3, 2, 19
STEP = np.timedelta64(5, "m")
BEFORE, AFTER = 8, 17  # events before the wind turns, and after
START = np.datetime64("2024-06-01T00:00", "ns")
ABSENT = 7  # frame of each event after the change that is missing, beside the one between two events
DESCRIPTION = description("recurrent", options={"hidden": [7], "patch": 1}, horizon=HORIZON)


def drifting(rng: np.random.Generator, speed: int) -> np.ndarray:
    """Return an event of rain (t, y, x) that moves `speed` columns a step, around the edge."""
    spectrum = np.fft.fft2(rng.normal(size=(H, W)))
    spectrum[3:-2] = 0
    spectrum[:, 3:-2] = 0
    first = np.maximum(np.fft.ifft2(spectrum).real * 9, 0)
    return np.stack([np.roll(first, speed * i, axis=1) for i in range(EVENT)]).astype(np.float32)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of events with one missing frame after each; rain moves to the right, later to the left."""
    rng = np.random.default_rng(5)
    gap = np.full((1, H, W), np.nan, np.float32)
    events = [drifting(rng, 1 if i < BEFORE else -1) for i in range(BEFORE + AFTER)]
    for event in events[BEFORE:]:
        event[ABSENT] = np.nan
    rain = np.concatenate([part for event in events for part in (event, gap)])
    present = np.isfinite(rain).all(axis=(1, 2))
    axes = {"y": ("y", np.arange(H) + 0.5, {"units": "km"}), "x": ("x", np.arange(W) + 0.5, {"units": "km"})}
    empty = (("time", "y", "x"), rain[:0], {"units": "mm h-1"})
    path = tmp_path_factory.mktemp("online") / "observations.zarr"
    times = START + np.arange(len(rain)) * STEP
    store.create_observations(path, xr.Dataset({"rain_rate": empty}, axes), times, present, len(rain))
    store.write_block(path, 0, xr.Dataset({"rain_rate": (("time", "y", "x"), rain)}))
    store.finish(path)
    return path


@pytest.fixture(scope="module")
def folder(archive: Path) -> Path:
    """Return the checkpoint of a network that learnt from the events before the change."""
    torch.manual_seed(1)
    network = build_network(DESCRIPTION, np.full((1, 1, 1, 1), 0.5), np.array([1.0]))
    reader = FrameReader(archive, ["rain_rate"], "ram")
    rng = np.random.default_rng(2)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(150):
        event, first = rng.integers(BEFORE, size=8), rng.integers(EVENT - HISTORY - HORIZON + 1, size=8)
        starts = event * (EVENT + 1) + first
        frames = torch.from_numpy(np.stack([reader.read(i, i + HISTORY + HORIZON) for i in starts]))
        where = torch.zeros(8, dtype=torch.int64), torch.zeros(8, 2, dtype=torch.int64)
        target = network.normalise_target(frames[:, HISTORY:], *where)
        optimiser.zero_grad()
        mse(network(frames[:, :HISTORY], *where), target, torch.ones(())).backward()
        optimiser.step()
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    path = archive.parent / "recurrent"
    checkpoint.save_checkpoint(path, DESCRIPTION, arrays, "# card\n")
    return path


def init_times() -> np.ndarray:
    """Return the init times after the change whose history and horizon are complete."""
    inside = [*range(HISTORY - 1, ABSENT - HORIZON), *range(ABSENT + HISTORY, EVENT - HORIZON)]
    positions = [event * (EVENT + 1) + i for event in range(BEFORE, BEFORE + AFTER) for i in inside]
    return START + np.array(positions) * STEP


def run(folder: Path, archive: Path, out: Path, online: Online | None, times: np.ndarray, **options: Any) -> np.ndarray:
    stage.forecast(folder, archive, times, out, Forecast(online=online, batch_size=6, **options))
    values: np.ndarray = store.open_forecasts(out)["rain_rate"].values
    return values


def errors(archive: Path, times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean squared error of each init time."""
    observed = store.open_observations(archive)["rain_rate"]
    truth = np.stack([observed.sel(time=times + lead * STEP).values for lead in range(1, HORIZON + 1)], axis=1)
    squares: np.ndarray = ((values - truth) ** 2).mean(axis=(1, 2, 3))
    return squares


@pytest.mark.slow
def test_after_a_change_of_regime_learning_on_has_less_error(folder: Path, archive: Path, tmp_path: Path) -> None:
    times = init_times()
    digest = store.directory_digest(folder)
    fixed = errors(archive, times, run(folder, archive, tmp_path / "fixed", None, times))
    online = Online(learning_rate=0.01)
    first = run(folder, archive, tmp_path / "first", online, times)
    learnt = errors(archive, times, first)
    half = len(times) // 2
    assert learnt.mean() < 0.8 * fixed.mean()
    assert learnt[half:].mean() < 0.6 * fixed[half:].mean()
    assert store.directory_digest(folder) == digest
    assert store.open_forecasts(tmp_path / "first").attrs["checkpoint_digest"] == digest


@pytest.fixture
def few(archive: Path) -> np.ndarray:
    """Return the init times of the first event after the change and some of the next."""
    return init_times()[:15]


def test_twice_gives_the_same_bits_and_leaves_the_checkpoint(
    folder: Path, archive: Path, tmp_path: Path, few: np.ndarray
) -> None:
    digest = store.directory_digest(folder)
    fixed = run(folder, archive, tmp_path / "fixed", None, few)
    for name in ("one", "two"):
        learnt = run(folder, archive, tmp_path / name, Online(), few)
    assert store.directory_digest(tmp_path / "one") == store.directory_digest(tmp_path / "two")
    assert store.directory_digest(folder) == digest
    assert (learnt != fixed).any(axis=(1, 2, 3)).argmax() == 2  # the first with a sample
    np.testing.assert_array_equal(run(folder, archive, tmp_path / "fixed", None, few), fixed)  # nor the loaded network


def test_no_frame_after_an_init_time_is_read_before_its_forecast(
    folder: Path, archive: Path, tmp_path: Path, few: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest: list[int] = []  # frame that was read
    seen: dict[int, int] = {}  # init time -> the newest frame read before its forecast
    decode, members = FrameReader._decode, stage.forecast_members

    def spy(reader: FrameReader, start: int, stop: int) -> np.ndarray:
        newest.append(stop - 1)
        return decode(reader, start, stop)

    def forecast_members(forecaster: Any, history: np.ndarray, times: np.ndarray, *tiles: Any) -> np.ndarray:
        assert len(times) == 1
        seen[int((times[0] - START) / STEP)] = max(newest)
        return members(forecaster, history, times, *tiles)

    monkeypatch.setattr(FrameReader, "_decode", spy)
    monkeypatch.setattr(stage, "forecast_members", forecast_members)
    run(folder, archive, tmp_path / "online", Online(), few)
    assert list(seen) == [int((time - START) / STEP) for time in few]
    assert all(frame == position for position, frame in seen.items())


def test_what_comes_later_changes_nothing(folder: Path, archive: Path, tmp_path: Path, few: np.ndarray) -> None:
    online = Online(learning_rate=0.01)
    whole = run(folder, archive, tmp_path / "whole", online, few)
    known = store.open_observations(archive).sel(time=slice(None, few[6]))
    path = tmp_path / "cut.zarr"
    store.create_observations(
        path,
        known[["rain_rate"]][{"time": []}].drop_vars("time"),
        known["time"].values,
        known["frame_present"].values,
        known.sizes["time"],
    )
    store.write_block(path, 0, known[["rain_rate"]])
    store.finish(path)
    np.testing.assert_array_equal(run(folder, path, tmp_path / "cut", online, few[:7]), whole[:7])


@pytest.mark.parametrize("kind", ["recurrent", "video_transformer", "simvp"])
def test_an_unreachable_threshold_gives_the_fixed_forecasts(
    kind: str, archive: Path, tmp_path: Path, few: np.ndarray
) -> None:
    options = {"simvp": {"hidden": 4}, "video_transformer": {"dim": 8, "heads": 2, "patch": 3}}.get(kind, {})
    trained(kind, tmp_path / kind, options={"dropout": 0.1} | options, horizon=HORIZON)
    fixed, passed, learnt = (
        run(tmp_path / kind, archive, tmp_path / name, online, few[:5])
        for name, online in {"fixed": None, "passed": Online(threshold=1e9), "learnt": Online()}.items()
    )
    np.testing.assert_array_equal(passed, fixed)
    assert not np.array_equal(learnt, fixed)
    attributes = store.open_forecasts(tmp_path / "learnt").attrs
    assert attributes["online_learning_rate"] == 1e-4
    assert "online_learning_rate" not in store.open_forecasts(tmp_path / "fixed").attrs


def loaded(folder: Path, archive: Path, **options: float) -> tuple[Network, Learning]:
    network = load(folder).network
    assert network is not None
    return network, Learning(network, DESCRIPTION, FrameReader(archive, ["rain_rate"]), Online(**options))


def test_which_samples_are_taken(folder: Path, archive: Path) -> None:
    _, learning = loaded(folder, archive)
    second = (BEFORE + 1) * (EVENT + 1)
    taken = [i for i in range(second, second + EVENT) if learning.before(START + i * STEP) is not None]
    assert [i - second for i in taken] == [4, 5, 6, 12, 13, 14, 15, 16, 17, 18]  # none with frame 7, or of two events
    assert learning.before(START + taken[-1] * STEP) is None  # taken already
    with pytest.raises(ValueError, match=r"init time 2024-06-01T15:05.* comes after a later one, expected ascending"):
        learning.before(START + (second + 1) * STEP)
    _, learning = loaded(folder, archive)
    assert learning.before(START + (HISTORY + HORIZON - 2) * STEP) is None  # would begin before the store


def test_a_step_is_that_of_adagrad_on_the_squared_error(folder: Path, archive: Path) -> None:
    network, learning = loaded(folder, archive, learning_rate=0.01)
    twin, _ = loaded(folder, archive)
    position = BEFORE * (EVENT + 1) + 5
    time = START + (position - HORIZON) * STEP
    frames = FrameReader(archive, ["rain_rate"]).read(position - HISTORY - HORIZON + 1, position + 1)
    seconds = time.astype("datetime64[s]").astype(int)
    where = torch.tensor([seconds]), torch.zeros(1, 2, dtype=torch.int64)
    truth = (np.log1p(frames[None, HISTORY:] / RAIN.floor) - 0.5) / 1.0
    loss = ((twin(torch.from_numpy(frames[None, :HISTORY]), *where) - torch.from_numpy(truth)) ** 2).mean()
    loss.backward()
    assert learning.before(START + position * STEP) == pytest.approx(loss.item(), rel=1e-5)
    for (name, parameter), same in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert same.grad is not None
        expected = same - 0.01 * same.grad / (same.grad**2).sqrt().add(1e-10)
        sure = same.grad.abs() > 1e-6  # elsewhere the sign is one of rounding
        torch.testing.assert_close(parameter[sure], expected[sure], msg=name)


def test_forecasts_after_a_step_are_those_of_the_new_weights(folder: Path, archive: Path) -> None:
    network, learning = loaded(folder, archive, learning_rate=0.01)
    history = FrameReader(archive, ["rain_rate"]).read(0, HISTORY)[None]
    old = forecast_batch(network, history, np.zeros(1, int))  # what is kept of the old weights must not last
    learning.before(START + 4 * STEP)
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    fresh = forecaster_of(DESCRIPTION, arrays).network
    assert fresh is not None
    new = forecast_batch(network, history, np.zeros(1, int))
    np.testing.assert_array_equal(new, forecast_batch(fresh, history, np.zeros(1, int)))
    assert not np.array_equal(new, old)


@pytest.mark.parametrize(("output", "loss"), [("quantiles", pinball), ("ensemble", almost_fair_crps)])
def test_members_learn_from_their_own_loss(
    output: str, loss: Loss, archive: Path, tmp_path: Path, few: np.ndarray
) -> None:
    options = {"hidden": [7], "patch": 1, "output": output, "members": 5}
    trained("recurrent", tmp_path / "model", options=options, horizon=HORIZON)
    _, learning = loaded(tmp_path / "model", archive)
    assert learning.loss is loss
    one, two = (run(tmp_path / "model", archive, tmp_path / name, Online(), few[:5]) for name in ("one", "two"))
    assert one.shape == (5, HORIZON, 5, H, W)
    np.testing.assert_array_equal(one, two)


def test_references_forecast_as_always(archive: Path, tmp_path: Path, few: np.ndarray) -> None:
    checkpoint.save_checkpoint(tmp_path / "model", description("persistence", horizon=HORIZON), {}, "# card\n")
    for name, online in {"fixed": None, "online": Online()}.items():
        run(tmp_path / "model", archive, tmp_path / name, online, few)
    assert store.directory_digest(tmp_path / "fixed") == store.directory_digest(tmp_path / "online")


def test_tiles_are_refused(archive: Path, tmp_path: Path, few: np.ndarray) -> None:
    trained("recurrent", tmp_path / "model", options={"hidden": [5], "patch": 1}, horizon=HORIZON, crop_cells=8)
    message = (
        "params.yaml: forecast.online learns from whole fields, here of 11 x 13 cells, which may not fit into memory"
        " where forecasts are made by tiles of 8; set forecast.online to null, or forecast.tile_cells to 13 if whole"
        " fields do fit"
    )
    with pytest.raises(InputError) as caught:
        run(tmp_path / "model", archive, tmp_path / "out", Online(), few)
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()
    run(tmp_path / "model", archive, tmp_path / "out", Online(), few[:5], tile_cells=13)


@pytest.mark.parametrize(
    ("online", "expected"),
    [
        (
            {"learning_rate": 0},
            "forecast.online.learning_rate is 0: Input should be greater than or equal to 0.000000000001",
        ),
        ({"threshold": -1}, "forecast.online.threshold is -1: Input should be greater than or equal to 0"),
        ({"optimiser": "adam"}, "forecast.online.optimiser is 'adam': unknown key; remove it or correct its spelling"),
        (True, "forecast.online is True: Input should be an object"),
    ],
)
def test_wrong_options_are_one_line(online: Any, expected: str, small: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(merged(small, {"forecast": {"online": online}})))
    with pytest.raises(InputError) as caught:
        config.read(path)
    assert str(caught.value).startswith(f"{path}: {expected}")
    assert "\n" not in str(caught.value)


def test_without_a_reference_no_model_could_be_champion(small: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    only = {"models": {"convlstm": {"kind": "recurrent"}}, "references": "none"}
    path.write_text(yaml.safe_dump(small | only | {"forecast": {"online": {}}}))
    with pytest.raises(InputError) as caught:
        config.read(path)
    assert str(caught.value) == (
        f"{path}: the file: forecast.online leaves promotion without a candidate, since all models learn on;"
        " add a reference such as persistence, or set forecast.online to null"
    )
    path.write_text(yaml.safe_dump(small | only))
    assert config.read(path).forecast.online is None


def test_scores_say_that_a_model_learnt_on(folder: Path, archive: Path, tmp_path: Path, few: np.ndarray) -> None:
    run(folder, archive, tmp_path / "out", Online(learning_rate=0.002), few)
    forecasts, observed = store.open_forecasts(tmp_path / "out"), store.open_observations(archive)
    write_sums(verify(forecasts, observed, Verify()), tmp_path / "sums.nc")
    assert read_sums(tmp_path / "sums.nc").attrs["online_learning_rate"] == 0.002


def test_a_model_that_learnt_on_is_not_promoted() -> None:
    rng = np.random.default_rng(3)
    sizes = {"persistence": 2.0, "convlstm": 1.0, "video_transformer": 1.2}
    sums = {name: made_sums(rng.normal(0, size, (64, 3, 9))) for name, size in sizes.items()}
    sums["convlstm"].attrs["online_learning_rate"] = 1e-4
    few = Compare(resamples=200)
    why = "it learnt on through the test period (forecast.online), which a schedule does not do"
    found = decide(sums, Promotion(), few, ["persistence"])
    assert (found.promote, found.champion) == (True, "video_transformer")
    stays = decide(sums, Promotion(), few, ["persistence"], champion="convlstm")
    assert (stays.promote, stays.champion) == (False, "convlstm")
    assert stays.reason == f"not promoted: the champion convlstm has no comparable scores: {why}"
    said = compare({name: Entry(own, name) for name, own in sums.items()}, few).verdict
    assert f"convlstm cannot be champion: {why}." in said
    assert sum("cannot be champion" in sentence for sentence in said) == 1
