"""Moving MNIST: digits that drift and bounce on a 64 x 64 canvas.

The generator of Srivastava, Mansimov and Salakhutdinov 2015 (ICML, "Unsupervised learning of video representations
using LSTMs"): each digit starts at a random place in a random direction, moves by 0.1 of the free range a frame,
bounces off the edges, is drawn at the integer position below its own; overlapping digits combine by their maximum.

As an archive: one sequence a day, hourly frames from hour 0, the hours after them missing. Sequences below
`sequences_train` show training digits, those after them test digits, so periods separate the two.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr

from fieldcast.pipeline.config.sources import MovingMnistOptions
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.files import fetch
from fieldcast.pipeline.sources.template import fields, grid_template

CANVAS, DIGIT = 64, 28
STEP = 0.1  # of the free range, a frame
IDX_IMAGES = 0x00000803
MOST_BYTES = 2**28  # of a file of digits, unpacked; 60,000 images are 47 million
INTENSITY = {"long_name": "Intensity", "units": "1", "valid_min": 0.0, "valid_max": 1.0}


@dataclass(frozen=True)
class MovingMnistSource:
    """The sequences of training digits, then those of test digits."""

    options: MovingMnistOptions

    def segments(self) -> Sequence[MovingSequence]:
        """Return one segment a sequence; raise `InputError` where digit files are missing, broken or others."""
        options = self.options
        train = str(fetch(options.train_images, options.train_sha256, options.download_folder))
        test = str(fetch(options.test_images, options.test_sha256, options.download_folder))
        for path in (train, test):
            read_digits(path)
        count = options.sequences_train + options.sequences_test
        return [MovingSequence(options, n, train if n < options.sequences_train else test) for n in range(count)]

    def grid(self) -> xr.Dataset:
        """Return the template: `intensity (0, y, x)` from 0 to 1, y and x in cells."""
        y, x = (
            xr.Variable(axis, np.arange(CANVAS, dtype=float), {"units": "1", "long_name": "cell"}) for axis in (Y, X)
        )
        return grid_template(y, x, {"intensity": INTENSITY}, {"title": "Moving MNIST"})


@dataclass(frozen=True)
class MovingSequence:
    """One sequence, drawn from its own seed."""

    options: MovingMnistOptions
    number: int
    images: str

    @property
    def name(self) -> str:
        """Return 'sequence 12'."""
        return f"sequence {self.number}"

    @property
    def times(self) -> np.ndarray:
        """Return the frames' times (datetime64[ns])."""
        start = np.datetime64(self.options.start, "ns") + np.timedelta64(self.number, "D")
        return np.asarray(start + np.arange(self.options.frames).astype("timedelta64[h]"))

    def read(self, frames: np.ndarray, y: slice, x: slice) -> xr.Dataset:
        """Return `intensity (time, y, x)` of the wanted frames and cells."""
        rng = np.random.default_rng([self.options.seed, self.number])
        film = draw_sequence(rng, read_digits(self.images), self.options.frames, self.options.digits)
        return fields(self.times[frames], {"intensity": film[frames, y, x]}, {"intensity": "1"})


def draw_sequence(rng: np.random.Generator, images: np.ndarray, frames: int, digits: int) -> np.ndarray:
    """Return one sequence (frames, 64, 64) float32 in 0 … 1 with digits drawn from `images` (n, 28, 28) uint8."""
    film = np.zeros((frames, CANVAS, CANVAS), np.uint8)
    for _ in range(digits):
        image = images[rng.integers(len(images))]
        for frame, (top, left) in enumerate(trajectory(rng, frames)):
            place = film[frame, top : top + DIGIT, left : left + DIGIT]
            np.maximum(place, image, out=place)
    return film.astype(np.float32) / np.float32(255)


def trajectory(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Return integer positions (frames, 2) of a digit's top left cell, 0 … 36."""
    place = rng.random(2)
    angle = rng.random() * 2 * np.pi
    velocity = np.array([np.sin(angle), np.cos(angle)]) * STEP
    places = np.empty((frames, 2))
    for frame in range(frames):
        place = place + velocity
        velocity = np.where((place <= 0) | (place >= 1), np.where(place <= 0, 1, -1) * np.abs(velocity), velocity)
        place = np.clip(place, 0, 1)
        places[frame] = place
    return (places * (CANVAS - DIGIT)).astype(np.int64)


@lru_cache(maxsize=2)
def read_digits(path: str) -> np.ndarray:
    """Return the digits of an IDX file, (n, 28, 28) uint8; raise `InputError` when it is not one or is truncated."""
    try:
        with gzip.open(path) if path.endswith(".gz") else Path(path).open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: truncated or broken gzip file: replace the file") from error
    if len(raw) > MOST_BYTES:
        raise InputError(f"{path}: more than {MOST_BYTES} bytes of images: take another file")
    head = np.frombuffer(raw[:16], ">u4") if len(raw) >= 16 else np.zeros(4)
    if head[0] != IDX_IMAGES or tuple(head[2:]) != (DIGIT, DIGIT):
        raise InputError(f"{path}: no IDX file of {DIGIT} x {DIGIT} images: correct the path")
    size = int(head[1]) * DIGIT * DIGIT
    if len(raw) - 16 < size or not size:
        raise InputError(f"{path}: truncated file, {len(raw) - 16} bytes of images, expected {size}: replace the file")
    return np.frombuffer(raw, np.uint8, size, 16).reshape(-1, DIGIT, DIGIT)
