"""Checkpoints without a training, for tests of what is done with them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fieldcast import models
from fieldcast.pipeline.forecasting import checkpoint
from fieldcast.pipeline.forecasting.forecaster import build_network
from fieldcast.pipeline.train import describe
from tests.conftest import rewrite

KINDS: dict[str, dict[str, Any]] = {
    "recurrent": {"hidden": [5], "patch": 4},
    "video_transformer": {"dim": 8, "heads": 2, "patch": 6},
    "simvp": {"channels": 3, "hidden": 5, "blocks": 1, "levels": 1},
    "unet": {"channels": 4, "levels": 1},
}


def untrained(project: Path, kind: str, spread: float = 0.0, crop: int | None = None, **options: Any) -> Path:
    """Write a checkpoint of a model without training, so persistence, or with weights off by `spread`."""
    torch.manual_seed(0)
    chosen = models.OPTIONS[kind].model_validate({**KINDS[kind], **options}).model_dump(mode="json")
    described = describe(rewrite(project, {}), "convlstm", "0" * 32 + ".dir")
    described = replace(described, model="mine", kind=kind, options=chosen, crop_cells=crop)
    channel = described.channels[0]
    network = build_network(described, np.full((1, 1, 1, 1), channel.mean), np.array([channel.scale], np.float32))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    checkpoint.save_checkpoint(project / "mine", described, arrays, "# card\n")
    return project / "mine"
