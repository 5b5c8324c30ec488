"""Where the time of a scheduled forecast goes: one cycle on the whole KNMI image with the model loaded.

765 x 700 cells of 1 km, history 4, horizon 6, a ConvLSTM of the default size (untrained: its weights do not change its
cost) by blended tiles of 64 cells, as the KNMI example forecasts. The last of several cycles counts: model and
libraries are loaded. Real files are read, from FIELDCAST_TEST_DATA or beside the project.
"""

import json
import logging
import os
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fieldcast.pipeline.config import Params
from fieldcast.pipeline.datasets.signature import Channel, signature_of
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig, save_checkpoint
from fieldcast.pipeline.forecasting.forecaster import build_network
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.clock import SimulatedClock
from fieldcast.pipeline.live.context import Station
from fieldcast.pipeline.sources import open_source
from fieldcast.pipeline.sources.target import target_of

ROOT = Path(__file__).parents[1]
ARCHIVE = Path(os.environ.get("FIELDCAST_TEST_DATA", ROOT.parent / "shared" / "data")) / "radar" / "knmi"
START = datetime(2010, 8, 26, 6, tzinfo=UTC)
CYCLES = 4


def parameters(checkpoint: Path) -> Params:
    """Return those of the KNMI example, on the whole image."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "knmi-radar.yaml").read_text())
    content["source"] = {"kind": "radar", "format": "knmi", "path": str(ARCHIVE)}
    content["live"] = {"model": str(checkpoint)}
    return Params.model_validate(content)


def write_checkpoint(folder: Path, params: Params) -> None:
    """Write an untrained ConvLSTM for the whole image."""
    source = open_source(params.source.model_copy(update={"path": str(min(ARCHIVE.rglob("*.h5")))}))
    grid = target_of(source.grid(), params.source, "the archive").grid
    first = source.segments()[0].times[0]
    channel = Channel("rain_rate", "mm h-1", "log", 2.0, valid_min=0.0, mean=0.1, scale=0.4, max=150.0)
    description = CheckpointConfig(
        model="convlstm",
        kind="recurrent",
        options=params.models["convlstm"].model_dump(mode="json"),
        history=params.sample.history,
        horizon=params.sample.horizon,
        step_minutes=5,
        channels=(channel,),
        targets=1,
        anomalies=False,
        signature=signature_of(grid, ["rain_rate"], np.timedelta64(5, "m"), first),
        crop_cells=params.sample.crop_cells,
        data_digest="none",
    )
    network = build_network(description, np.full((1, 1, 1, 1), 0.1, np.float32), np.full(1, 0.4, np.float32))
    save_checkpoint(folder, description, {name: it.numpy() for name, it in network.state_dict().items()}, "")


def main() -> None:
    """Run the cycles and print the breakdown of the last."""
    if not ARCHIVE.is_dir():
        sys.exit(f"no radar files at {ARCHIVE}: set FIELDCAST_TEST_DATA to the folder that holds radar/knmi")
    logging.getLogger("pipeline").setLevel(logging.ERROR)  # of frames that are in the future of the simulated clock
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        params = parameters(folder / "checkpoint")
        write_checkpoint(folder / "checkpoint", params)
        clock = SimulatedClock(START)
        for _ in range(CYCLES):
            before = time.perf_counter()
            outcome = cycle.run(Station(params, folder / "live", clock))[0]
            seconds = time.perf_counter() - before
            clock.set(clock.now() + timedelta(minutes=5))
    parts = {**outcome.timings, "rest": seconds - sum(outcome.timings.values())}
    report = {
        "cycle": str(outcome.result),
        "seconds": round(seconds, 2),
        **{f"seconds_{part}": round(value, 3) for part, value in parts.items()},
        "share_in_model": round(outcome.timings["model"] / seconds, 3),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
