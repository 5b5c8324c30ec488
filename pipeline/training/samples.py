"""From init times to training samples: (history, target) blocks of the observation store, cropped and shuffled."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fieldcast.pipeline.datasets.frames import FrameReader
from fieldcast.pipeline.datasets.times import to_seconds
from fieldcast.pipeline.forecasting.base import Guide
from fieldcast.pipeline.training.references import Part

CROP_DRAWS = 10
GUIDANCE_BYTES = 2 * 10**9

Batch = dict[str, Tensor]
Item = tuple[int, int]  # position among the init times, seed of its crop


@dataclass(frozen=True)
class SampleShape:
    """Sizes of one sample: frames before and after its init time, channels, and cells of a training crop."""

    history: int
    horizon: int
    channels: tuple[str, ...]  # targets first
    targets: int  # how many of the channels are forecast
    crop_cells: int | None = None
    min_valid_share: float = 0.0


class SampleDataset(Dataset[Batch]):
    """Samples at `init_times`; an item is (position, crop seed), and a list of items makes a batch in one call.

    With a `guide` they hold the flow and the base that a network is given, cut out of those of the whole field.
    """

    def __init__(
        self, reader: FrameReader, init_times: np.ndarray, shape: SampleShape, guide: Guide | HeldOut | None = None
    ) -> None:
        self.reader, self.shape = reader, shape
        self.guidance = None if guide is None else Guidance(guide)
        self.init_times = init_times
        self.seconds = to_seconds(init_times)
        self.positions = reader.positions(init_times)

    def __len__(self) -> int:
        return len(self.init_times)

    def __getitem__(self, item: Item) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        """Return history (b, t, c, h, w), target (b, horizon, c_target, h, w), init_time [s] (b,) and origin (b, 2).

        With a guide also flow (b, 2, h, w) and base (b, horizon, c_target, h, w), as far as it has them.
        """
        samples = []
        for index, crop_seed in items:
            frames = self._frames(index)
            y, x, size_y, size_x = self._crop(frames, crop_seed)
            fields = {
                "history": frames[: self.shape.history],
                "target": frames[self.shape.history :, : self.shape.targets],
            }
            if self.guidance is not None:
                fields |= self.guidance.of(index, fields["history"], self.seconds[index : index + 1])
            crop = (..., slice(y, y + size_y), slice(x, x + size_x))
            cut = {name: torch.from_numpy(field[crop]) for name, field in fields.items()}
            samples.append({**cut, "init_time": torch.tensor(self.seconds[index]), "origin": torch.tensor((y, x))})
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    def _frames(self, index: int) -> np.ndarray:
        return self.reader.sample(int(self.positions[index]), self.shape.history, self.shape.horizon)

    def _crop(self, frames: np.ndarray, seed: int) -> tuple[int, int, int, int]:
        """Return (y, x, h, w) of the first crop drawn whose last history frame is valid enough, or the fullest."""
        h, w = frames.shape[-2:]
        size_y, size_x = min(self.shape.crop_cells or h, h), min(self.shape.crop_cells or w, w)
        if (size_y, size_x) == (h, w):
            return 0, 0, h, w
        draws = np.random.default_rng(seed)
        last = np.isfinite(frames[self.shape.history - 1, 0])
        best, fullest = (0, 0), -1.0
        for _ in range(CROP_DRAWS):
            y, x = int(draws.integers(h - size_y + 1)), int(draws.integers(w - size_x + 1))
            share = float(last[y : y + size_y, x : x + size_x].mean())
            if share > fullest:
                best, fullest = (y, x), share
            if share >= self.shape.min_valid_share:
                break
        return (*best, size_y, size_x)


class HeldOut:
    """Guide of training samples: the base of each was fitted without the part of the training period it lies in."""

    def __init__(self, guide: Guide, parts: Sequence[Part]) -> None:
        self.flow = guide.flow
        self.lasts = [part.last for part in parts]
        self.guides = [replace(guide, arrays=part.arrays) for part in parts]

    def base(self, history: np.ndarray, seconds: np.ndarray) -> Tensor | None:
        """Return the base of one sample as `Guide.base` does; `seconds` (1,) is its init time."""
        return self.guides[bisect_left(self.lasts, int(seconds[0]))].base(history, seconds)


class Guidance:
    """Flow and base of the samples of a dataset, each computed once, as long as they fit into `GUIDANCE_BYTES`."""

    def __init__(self, guide: Guide | HeldOut) -> None:
        self.guide, self.bytes = guide, 0
        self.known: dict[int, dict[str, np.ndarray]] = {}

    def of(self, index: int, history: np.ndarray, seconds: np.ndarray) -> dict[str, np.ndarray]:
        """Return the flow (2, y, x) and the base (horizon, c_target, y, x) of a history (t, c, y, x), if there are.

        `seconds` (1,) is its init time.
        """
        if index in self.known:
            return self.known[index]
        with torch.inference_mode():
            found = {"flow": self.guide.flow(history[None]), "base": self.guide.base(history[None], seconds)}
        fields = {name: field[0].float().numpy().copy() for name, field in found.items() if field is not None}
        size = sum(field.nbytes for field in fields.values())
        if self.bytes + size <= GUIDANCE_BYTES:
            self.known[index], self.bytes = fields, self.bytes + size
        return fields


class EpochSampler(Sampler[Item]):
    """A new order and new crops every epoch, the same ones for the same (seed, epoch), before and after a resume."""

    def __init__(self, size: int, seed: int, *, shuffle: bool) -> None:
        self.size, self.seed, self.shuffle, self.epoch = size, seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each one."""
        self.epoch = epoch if self.shuffle else 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Item]:
        draws = np.random.default_rng((self.seed, self.epoch))
        order = draws.permutation(self.size) if self.shuffle else np.arange(self.size)
        seeds = draws.integers(2**62, size=self.size)
        return zip(order.tolist(), seeds.tolist(), strict=True)


def as_is(batch: Any) -> Any:
    """Return a batch that the dataset has put together already."""
    return batch


def loader(dataset: SampleDataset, batch_size: int, seed: int, workers: int, *, shuffle: bool) -> DataLoader[Batch]:
    """Return batches of `dataset`; worker processes are started afresh, since a forked Zarr reader can hang."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), seed, shuffle=shuffle),
        collate_fn=as_is,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        persistent_workers=workers > 0,
    )
