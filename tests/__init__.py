"""Tests of fieldcast; in them, shapes and types of tensors are checked in every call of a model."""

from jaxtyping import install_import_hook

from tests import typechecking

CHECKED = (
    "fieldcast.models.layers.members",
    "fieldcast.models.layers.missing",
    "fieldcast.models.layers.patches",
    "fieldcast.models.recurrent",
    "fieldcast.models.simvp",
    "fieldcast.models.video_transformer",
    "fieldcast.pipeline.forecasting.losses",
    "fieldcast.pipeline.forecasting.network",
    "fieldcast.pipeline.forecasting.normaliser",
)
install_import_hook(CHECKED, f"{typechecking.__name__}.check")  # before anything imports them
