"""From gridded observations to compared, tracked and scheduled forecasts.

`load` gives a trained model that forecasts xarray datasets; `open_observations`, `open_forecasts` and `open_products`
open what a project has stored; `verify` scores forecasts. `fieldcast.pipeline` and `fieldcast.models` are the folders
`pipeline/` and `models/` of the repository.
"""

import os
import sqlite3  # noqa: F401  before eccodes, whose old SQLite would serve the whole process, and MLflow refuses it
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fieldcast.pipeline.api import load, open_forecasts, open_observations, open_products, verify

__all__ = ["load", "open_forecasts", "open_observations", "open_products", "verify"]

# torch's threads (libgomp) spin at barriers before they sleep. Beside other busy processes a training step then takes
# up to a hundred times as long; a short spin costs nothing on a quiet machine. Read once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> Any:
    """Return a function of `fieldcast.pipeline.api`, imported when it is first used: stages do without."""
    if name not in __all__:
        raise AttributeError(f"module 'fieldcast' has no attribute {name!r}")
    from fieldcast.pipeline import api

    return getattr(api, name)
