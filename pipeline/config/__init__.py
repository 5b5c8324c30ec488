"""Parameters of a project.

In: `params.yaml`. Out: frozen, checked sections, one class each; for wrong input one line with key, value and fix.
May import: `errors`, `models`; of a kind of model its options alone.
"""

from fieldcast.pipeline.config.data import Prepare, Sample, Split, Splits, Transform
from fieldcast.pipeline.config.evaluation import (
    Compare,
    CostLoss,
    Dask,
    Forecast,
    Guards,
    Online,
    Promotion,
    Region,
    StormCell,
    Track,
    Verify,
)
from fieldcast.pipeline.config.live import Drift, LateData, Live, Notify, Products, Retention, Schedule
from fieldcast.pipeline.config.read import (
    PARAMS,
    ModelEntry,
    Params,
    bases_of,
    check_gaps,
    load,
    named_model,
    read,
)
from fieldcast.pipeline.config.section import Amounts, amount_of
from fieldcast.pipeline.config.sources import (
    Crop,
    GriddedOptions,
    IngestOptions,
    MovingMnistOptions,
    RadarOptions,
    SharedOptions,
    SourceOptions,
    StormsOptions,
)
from fieldcast.pipeline.config.training import Rollout, ScheduledSampling, Train

__all__ = [
    "PARAMS",
    "Amounts",
    "Compare",
    "CostLoss",
    "Crop",
    "Dask",
    "Drift",
    "Forecast",
    "GriddedOptions",
    "Guards",
    "IngestOptions",
    "LateData",
    "Live",
    "ModelEntry",
    "MovingMnistOptions",
    "Notify",
    "Online",
    "Params",
    "Prepare",
    "Products",
    "Promotion",
    "RadarOptions",
    "Region",
    "Retention",
    "Rollout",
    "Sample",
    "Schedule",
    "ScheduledSampling",
    "SharedOptions",
    "SourceOptions",
    "Split",
    "Splits",
    "StormCell",
    "StormsOptions",
    "Track",
    "Train",
    "Transform",
    "Verify",
    "amount_of",
    "bases_of",
    "check_gaps",
    "load",
    "named_model",
    "read",
]
