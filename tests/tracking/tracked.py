"""References that are trained and have the run that the stage `compare` gives them."""

from fieldcast.pipeline.config import Params
from fieldcast.pipeline.datasets.paths import CHECKPOINTS
from fieldcast.pipeline.datasets.store import directory_digest
from fieldcast.pipeline.tracking.identity import complete
from fieldcast.pipeline.tracking.runs import Run, open_run
from fieldcast.pipeline.train import train


def run_of(experiment: str, model: str) -> Run:
    """Return the run of the model's checkpoint."""
    return open_run(experiment, model, directory_digest(CHECKPOINTS / model), "compare")


def train_tracked(params: Params, model: str) -> Run:
    """Train a reference and return its run, complete and ended."""
    train(params, model)
    run = run_of(params.track.experiment, model)
    complete(run, params, model)
    run.end()
    return run
