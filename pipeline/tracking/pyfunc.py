"""The checkpoint as MLflow loads it: a pyfunc model from code, without pickle and without this project's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from fieldcast.pipeline.datasets.times import from_seconds
from fieldcast.pipeline.forecasting.dataset import LoadedModel


class ServedForecaster(PythonModel):
    """MLflow model of a checkpoint: physical histories in, physical forecasts out."""

    def load_context(self, context: Any) -> None:
        """Load the checkpoint folder that was logged with the model."""
        self.model = LoadedModel.read(Path(context.artifacts["checkpoint"]), "cpu")

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints as schemas
        """Return the forecast of an xarray dataset or array with the history, as `LoadedModel.forecast` does.

        What comes over HTTP is no dataset: of a mapping with `history` (b, t, c, y, x), None or NaN at missing cells,
        and `init_time` (b,) in seconds since 1970 the forecasts are an array (b, m, horizon, c_target, y, x).
        """
        if isinstance(model_input, xr.Dataset | xr.DataArray):
            return self.model.forecast(model_input, **(params or {}))
        history = np.asarray(model_input["history"], dtype=np.float32)
        return self.model.forecaster.members(history, from_seconds(np.asarray(model_input["init_time"])))


set_model(ServedForecaster())
