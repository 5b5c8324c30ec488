"""The checkpoint as MLflow loads it: a pyfunc model from code, without pickle and without this project's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from fieldcast.pipeline.forecasting.forecaster import load


class ServedForecaster(PythonModel):
    """MLflow model of a checkpoint: physical histories in, physical forecasts out."""

    def load_context(self, context: Any) -> None:
        """Load the checkpoint folder that was logged with the model."""
        self.forecaster = load(Path(context.artifacts["checkpoint"]), "cpu")

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints as schemas
        """Return forecasts (b, horizon, c_target, h, w).

        `model_input` holds `history` (b, t, c, h, w) float32 with NaN at missing cells, and `init_time` (b,) int64 in
        seconds since 1970.
        """
        init_times = np.asarray(model_input["init_time"]).astype("datetime64[s]").astype("datetime64[ns]")
        return self.forecaster(np.asarray(model_input["history"], dtype=np.float32), init_times)


set_model(ServedForecaster())
