"""Attention in clusters for a checkpoint that learned with joint attention, and what that saves and changes.

All weights stay; each layer then answers once for all queries that a few random projections do not separate. Their
distance is taken from training samples; errors and work are measured on validation samples, never on test data.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from tqdm import tqdm

from fieldcast.models.video_transformer.attention.approximate.clustered import Clustered
from fieldcast.models.video_transformer.attention.core import projection_macs, score_macs
from fieldcast.models.video_transformer.options import VideoTransformerOptions
from fieldcast.pipeline.datasets.frames import FrameReader, read_init_times
from fieldcast.pipeline.datasets.labels import readable_units
from fieldcast.pipeline.datasets.paths import OBSERVATIONS, PREPARED
from fieldcast.pipeline.datasets.signature import check_signature
from fieldcast.pipeline.datasets.times import from_seconds
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecasting import checkpoint
from fieldcast.pipeline.forecasting.checkpoint import CONFIG, CheckpointConfig, model_card, save_checkpoint
from fieldcast.pipeline.forecasting.forecaster import Forecaster, best_device, build_network, load, mean_of_members
from fieldcast.pipeline.forecasting.network import Network
from fieldcast.pipeline.training.samples import Batch, SampleDataset, SampleShape

SAMPLES = 32  # of the training period to calibrate by, of the validation period to measure by; spread over it


@dataclass(frozen=True)
class Pair:
    """One quantity with exact attention, and with clusters."""

    exact: float
    clustered: float

    @property
    def change(self) -> float:
        """Return by which share of the first the second is larger; 0 where both are 0."""
        return self.clustered / self.exact - 1 if self.exact else 0.0


@dataclass(frozen=True)
class Clustering:
    """A checkpoint with clusters in its attention, and how its forecasts of validation samples differ."""

    forecaster: Forecaster
    rmse: dict[str, Pair]  # of each target, in its units, over all leads
    attention_macs: Pair  # of a forecast: scores, mixing and hashing, without linear maps
    milliseconds: Pair  # of a forecast, the median
    clusters: float  # share of the tokens

    @property
    def facts(self) -> dict[str, Any]:
        """Return what is the same each time it is measured."""
        rows = {f"validation: {name}": _text(pair) for name, pair in self._rows()}
        return {**rows, "clusters": f"{self.clusters:.0%} of the tokens"}

    def text(self) -> str:
        """Return what was found as lines to print."""
        rows = [*self._rows(), ("forecast [ms]", self.milliseconds)]
        width = max(len(name) for name, _ in rows)
        lines = [f"{'':{width}}  {'exact':>9}  {'clustered':>9}  {'change':>8}"]
        lines += [
            f"{name:{width}}  {pair.exact:9.4g}  {pair.clustered:9.4g}  {pair.change:+8.2%}" for name, pair in rows
        ]
        return "\n".join([*lines, f"clusters: {self.clusters:.0%} of the tokens"]) + "\n"

    def _rows(self) -> list[tuple[str, Pair]]:
        units = {channel.name: channel.units for channel in self.forecaster.config.channels}
        rows = [(f"RMSE of {name} [{readable_units(units[name])}]", pair) for name, pair in self.rmse.items()]
        macs = Pair(self.attention_macs.exact / 1e6, self.attention_macs.clustered / 1e6)
        return [*rows, ("attention [million multiply-adds]", macs)]


def _text(pair: Pair) -> str:
    return f"{pair.exact:.6g} exact, {pair.clustered:.6g} clustered"


def cluster(folder: Path, rounds: int, ratio: float, out: Path) -> Clustering:
    """Write to `out` the checkpoint in `folder` with clusters in place of its joint attention; return what changed.

    Queries share a cluster where `rounds` projections fall into the same bins, whose width is `ratio` of the median
    distance of two queries. Raise `InputError` for what cannot be clustered, before anything is written.
    """
    if out.exists():
        raise InputError(f"--out is {out}, which exists: choose another, or delete it")
    if not ratio > 0:
        raise InputError(f"--ratio is {ratio:g}, expected more than 0")
    old = checkpoint.read_config(folder)
    described = replace(old, model=out.name, options=_options(folder, old, rounds))
    reader = FrameReader(OBSERVATIONS, old.channel_names)
    check_signature(OBSERVATIONS, reader.observations, old.signature, old.model)
    training, validation = (_samples(reader, old, split) for split in ("train", "validation"))
    exact = load(folder, best_device(old.kind))
    network = _with_clusters(exact, described)
    _calibrate(network, training, ratio)
    clustering = _measure(exact, Forecaster(described, exact.arrays, network), validation)
    facts = {"clusters made from": old.model, "width of bins": f"{ratio:g} of the typical distance"}
    weights = {name: value.cpu().numpy() for name, value in network.state_dict().items()}
    save_checkpoint(out, described, {**exact.arrays, **weights}, model_card(described, {**facts, **clustering.facts}))
    return clustering


def _options(folder: Path, config: CheckpointConfig, rounds: int) -> dict[str, Any]:
    """Return the options of the model with clusters."""
    path, attention = folder / CONFIG, config.options.get("attention", config.kind)
    if attention != "joint":
        raise InputError(
            f"{path}: attention is {attention}, expected joint, which reads all tokens; others save work already"
        )
    try:
        options = VideoTransformerOptions.model_validate({**config.options, "attention": "clustered", "rounds": rounds})
    except ValidationError as error:
        reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise InputError(f"{path}: clusters do not go with its other options: {reason}") from None
    return options.model_dump(mode="json")


def _samples(reader: FrameReader, config: CheckpointConfig, split: str) -> list[Batch]:
    """Return some samples of a period, each a batch of one, as the training saw them."""
    init_times = read_init_times(PREPARED / "init_times.csv", split)
    shape = SampleShape(
        config.history,
        config.horizon,
        tuple(reader.channels),
        config.targets,
        config.crop_cells,
        min_valid_share=1.0,
    )
    samples = SampleDataset(reader, init_times, shape)
    chosen = np.unique(np.linspace(0, len(init_times) - 1, SAMPLES).round().astype(int))
    return [samples[(int(index), int(index))] for index in chosen]


def _with_clusters(exact: Forecaster, config: CheckpointConfig) -> Network:
    """Return the network of `config` with the weights of another, on its device."""
    assert exact.network is not None  # a learned model has one
    learned = exact.network.state_dict()
    baseline, scale = (learned[f"normaliser.{name}"] for name in ("baseline", "scale"))
    network = build_network(config, baseline.cpu().numpy(), scale.cpu().numpy())
    network.guide = exact.network.guide
    network.load_state_dict(learned, strict=False)  # all but the clusters' own projections and widths
    return network.eval().to(scale.device)


def _layers(network: Network) -> list[Clustered]:
    return [layer for layer in network.modules() if isinstance(layer, Clustered)]


def _calibrate(network: Network, samples: list[Batch], ratio: float) -> None:
    """Choose the width of each layer, the first one's before the second is reached, as each sees these samples."""

    def choose(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(layer, Clustered)
        try:
            layer.calibrate(arguments[0], ratio)
        except ValueError as error:
            raise InputError(f"{OBSERVATIONS}: {error}; are there values in the training period?") from None

    hooks = [layer.register_forward_pre_hook(choose) for layer in _layers(network)]
    device = next(network.parameters()).device
    together = {name: torch.cat([sample[name] for sample in samples]).to(device) for name in samples[0]}
    try:
        with torch.no_grad():
            network(together["history"], together["init_time"], together["origin"])
    finally:
        for hook in hooks:
            hook.remove()


def _measure(exact: Forecaster, clustered: Forecaster, samples: list[Batch]) -> Clustering:
    """Return what clusters change in forecasts of one sample at a time."""
    squares: dict[str, list[tuple[float, float, int]]] = {name: [] for name in exact.config.target_names}
    seconds, work = [], []
    for sample in tqdm(samples, desc="validation samples", unit="sample", disable=None):
        (one, took), (other, took_other) = (_forecast(forecaster, sample) for forecaster in (exact, clustered))
        work.append(_work(clustered, sample))
        seconds.append((took, took_other))
        observed = sample["target"].numpy()
        for c, sums in enumerate(squares.values()):
            valid = np.isfinite(observed[:, :, c]) & np.isfinite(one[:, :, c])
            first, second = (float(((forecast - observed)[:, :, c][valid] ** 2).sum()) for forecast in (one, other))
            sums.append((first, second, int(valid.sum())))
    totals = {name: np.sum(sums, axis=0) for name, sums in squares.items()}
    macs_exact, macs_clustered, share = np.mean(work, axis=0)
    milliseconds = 1000 * np.median(seconds, axis=0)
    return Clustering(
        clustered,
        {name: Pair(*(float(np.sqrt(total[i] / total[2])) for i in (0, 1))) for name, total in totals.items()},
        Pair(float(macs_exact), float(macs_clustered)),
        Pair(*(float(ms) for ms in milliseconds)),
        float(share),
    )


def _forecast(forecaster: Forecaster, sample: Batch) -> tuple[np.ndarray, float]:
    row, column = sample["origin"][0].tolist()
    init_times = from_seconds(sample["init_time"].numpy())
    started = time.perf_counter()
    forecast = mean_of_members(forecaster.members(sample["history"].numpy(), init_times, None, (row, column)))
    return forecast, time.perf_counter() - started


def _work(forecaster: Forecaster, sample: Batch) -> tuple[int, int, float]:
    """Return multiply-adds of exact and of clustered attention in all layers, and clusters as a share of tokens."""
    exact, clustered, shares = [], [], []

    def count(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(layer, Clustered)
        grid: Tensor = arguments[0]
        t, h, w = grid.shape[1:4]
        clusters = int(layer.count_clusters(*arguments).max())
        exact.append(score_macs(t * h * w, t * h * w, layer.dim))
        clustered.append(layer.macs(t, h, w, clusters) - projection_macs(t * h * w, layer.dim))
        shares.append(clusters / (t * h * w))

    assert forecaster.network is not None
    hooks = [layer.register_forward_pre_hook(count) for layer in _layers(forecaster.network)]
    _forecast(forecaster, sample)
    for hook in hooks:
        hook.remove()
    return sum(exact), sum(clustered), float(np.mean(shares))
