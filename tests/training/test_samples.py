from pathlib import Path

import numpy as np
import pytest
import torch

from fieldcast.pipeline.datasets.frames import FrameReader, read_init_times
from fieldcast.pipeline.datasets.paths import OBSERVATIONS, PREPARED
from fieldcast.pipeline.datasets.store import open_observations
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.training.samples import EpochSampler, SampleDataset, SampleShape, loader

SHAPE = SampleShape(history=3, horizon=4, channels=("rain_rate",), targets=1)


@pytest.fixture(scope="module")
def init_times(prepared: Path) -> np.ndarray:
    return read_init_times(prepared / PREPARED / "init_times.csv", "train")


def dataset(prepared: Path, init_times: np.ndarray, cache: str = "store", crop: int | None = None) -> SampleDataset:
    shape = SampleShape(3, 4, ("rain_rate",), 1, crop, 0.5)
    return SampleDataset(FrameReader(prepared / OBSERVATIONS, ["rain_rate"], cache), init_times, shape)


def test_history_ends_at_init_time_and_target_follows(prepared: Path, init_times: np.ndarray) -> None:
    batch = dataset(prepared, init_times)[(5, 0)]
    observed = open_observations(prepared / OBSERVATIONS)["rain_rate"]
    step = np.timedelta64(5, "m")
    history = observed.sel(time=[init_times[5] + k * step for k in (-2, -1, 0)]).values
    target = observed.sel(time=[init_times[5] + k * step for k in (1, 2, 3, 4)]).values
    np.testing.assert_array_equal(batch["history"][0, :, 0], history)
    np.testing.assert_array_equal(batch["target"][0, :, 0], target)
    assert batch["init_time"][0] == init_times[5].astype("datetime64[s]").astype(int)


def test_ram_equals_store(prepared: Path, init_times: np.ndarray) -> None:
    items = [(0, 11), (7, 12), (3, 13)]
    stored, kept = (dataset(prepared, init_times, cache, crop=11)[items[0]] for cache in ("store", "ram"))
    for key in stored:
        assert torch.equal(stored[key], kept[key]), key


def test_crop_follows_its_seed_and_its_origin(prepared: Path, init_times: np.ndarray) -> None:
    data = dataset(prepared, init_times, crop=11)
    batch = data.__getitems__([(4, 1), (4, 1), (4, 2)])
    assert batch["history"].shape == (3, 3, 1, 11, 11)
    assert torch.equal(batch["history"][0], batch["history"][1])
    assert not torch.equal(batch["origin"][0], batch["origin"][2])
    whole = dataset(prepared, init_times)[(4, 0)]["history"][0]
    y, x = batch["origin"][2].tolist()
    assert torch.equal(batch["history"][2], whole[:, :, y : y + 11, x : x + 11])


def test_crop_prefers_valid_cells(prepared: Path, init_times: np.ndarray) -> None:
    data = dataset(prepared, init_times, crop=11)
    frames = np.full((7, 1, 24, 24), np.nan, dtype=np.float32)
    frames[:, :, :, 12:] = 1  # only the right half is covered
    shares = []
    for seed in range(30):
        y, x, h, w = data._crop(frames, seed)
        shares.append(np.isfinite(frames[2, 0, y : y + h, x : x + w]).mean())
    assert min(shares) >= 0.5


def test_every_epoch_has_its_own_order_and_repeats_it() -> None:
    def order(epoch: int, seed: int = 3) -> list[tuple[int, int]]:
        sampler = EpochSampler(50, seed, shuffle=True)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(1, seed=4)
    assert sorted(index for index, _ in order(1)) == list(range(50))
    fixed = EpochSampler(5, 3, shuffle=False)
    first = list(fixed)
    fixed.set_epoch(7)
    assert list(fixed) == first


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_see_each_sample_once(prepared: Path, init_times: np.ndarray, workers: int) -> None:
    data = dataset(prepared, init_times[:21])
    seen = torch.cat([batch["init_time"] for batch in loader(data, 4, 1, workers, shuffle=True)])
    alone = torch.cat([batch["init_time"] for batch in loader(data, 4, 1, 0, shuffle=True)])
    assert torch.equal(seen, alone)
    assert sorted(seen.tolist()) == sorted(data.seconds.tolist())


def test_init_time_off_the_axis(prepared: Path, init_times: np.ndarray) -> None:
    with pytest.raises(InputError, match="run the prepare stage again"):
        dataset(prepared, init_times + np.timedelta64(1, "m"))
