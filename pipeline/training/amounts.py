"""Models of amounts, such as rain: refused for variables that are none, and on cells that are far from square."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from fieldcast.models.layers.cascade_options import CascadeOptions
from fieldcast.models.layers.motion_options import MotionOptions
from fieldcast.models.layers.outputs import LearnedOptions
from fieldcast.pipeline.datasets.preparation.ranges import Range
from fieldcast.pipeline.errors import InputError

SQUARE = 1.1  # sides of a cell, the longer over the shorter, that scales of a cascade take for equal
BASES_THAT_MOVE = ("advection", "lagrangian_regression", "auto")


def check_amounts(model: str, options: BaseModel, targets: Sequence[Range]) -> None:
    """Raise `InputError` where a model takes the logarithm of variables that it forecasts and that are no amounts."""
    for key, dry_below, fix in _decibels(model, options):
        for target in targets:
            if reason := target.because(dry_below, dry=True):
                raise InputError(
                    f"params.yaml: models.{key} works in decibels of an amount, but {reason}, expected dry cells and "
                    f"amounts from {dry_below:g} on, such as mm h-1: {fix}"
                )


def check_cells(model: str, options: BaseModel, ratio: float) -> None:
    """Raise `InputError` where a model knows one spacing alone, and the cells have sides of this `ratio`."""
    if isinstance(options, CascadeOptions) and ratio > SQUARE:
        raise InputError(
            f"params.yaml: models.{model} needs cells that are as high as wide, but one side is {ratio:.2f} times the "
            f"other, expected at most {SQUARE:g}: regrid the archive or take {model} out of models"
        )


def _decibels(model: str, options: BaseModel) -> Iterator[tuple[str, float, str]]:
    """Yield the key, dry threshold and way out of each option that takes decibels of the forecast variables."""
    if isinstance(options, CascadeOptions):
        yield model, options.dry_below, f"take {model} out of models"
    if isinstance(options, MotionOptions) and options.transform == "db":
        yield f"{model}.transform: db", options.dry_below, "set it to identity"
    moves = isinstance(options, LearnedOptions) and (options.frame == "moving" or options.base in BASES_THAT_MOVE)
    if moves and isinstance(options, LearnedOptions) and options.motion.transform == "db":
        yield f"{model}.motion.transform: db", options.motion.dry_below, "set it to identity"
