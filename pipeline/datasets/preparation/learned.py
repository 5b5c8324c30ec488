"""Digest of all that models learn from: the training and the validation period, and nothing of the test period.

With it a model is the same whatever the observations of the test period are, and DVC does not train it again for these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.frames import time_blocks
from fieldcast.pipeline.datasets.schema import TIME
from fieldcast.pipeline.datasets.signature import Statistics
from fieldcast.pipeline.errors import InputError

LEARNED = "learned.json"
SPLITS = ("train", "validation")
LETTERS = 32  # MLflow takes at most 36


def digest_of(
    observations: xr.Dataset,
    names: Sequence[str],
    init_times: pd.DataFrame,
    samples: tuple[int, int],
    statistics: Statistics,
    climatology: xr.Dataset,
) -> str:
    """Return the SHA-256 of init times, frames of their samples (history, horizon), and statistics, 64 hex digits."""
    digest = hashlib.sha256(json.dumps(asdict(statistics), sort_keys=True).encode())
    for name in names:
        digest.update(_bytes(climatology[name].values))
    for split in SPLITS:
        chosen = init_times.loc[init_times["split"] == split, "init_time"].to_numpy("datetime64[s]")
        digest.update(chosen.tobytes())
        first, last = np.searchsorted(observations[TIME].values, chosen[[0, -1]])
        frames = observations.isel({TIME: slice(int(first) + 1 - samples[0], int(last) + 1 + samples[1])})
        for name in names:
            for block in time_blocks(frames[name]):
                digest.update(_bytes(frames[name][block].values))
    return digest.hexdigest()


def write_digest(folder: Path, digest: str) -> None:
    """Write the digest that `digest_of` gave into `folder`."""
    content = {"of": "init times, frames and statistics of training and validation", "sha256": digest}
    (folder / LEARNED).write_text(json.dumps(content, indent=2) + "\n")


def read_digest(folder: Path) -> str:
    """Return the digest that `write_digest` left in `folder`, 32 hex digits; raise `InputError` where there is none."""
    content = manifest.read_file(folder / LEARNED)
    try:
        return str(json.loads(content)["sha256"])[:LETTERS]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / LEARNED}: {type(error).__name__}: run the prepare stage again") from None


def _bytes(values: np.ndarray) -> bytes:
    """Return values as bytes, a missing one always the same."""
    return np.where(np.isnan(values), np.float32("nan"), values).astype(np.float32).tobytes()
