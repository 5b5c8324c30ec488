"""Names, units and lead times as people write them, and the colour of each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fieldcast.pipeline.datasets.schema import RAIN_RATE_UNITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lead_unit(leads: Sequence[float]) -> tuple[int, str]:
    """Return the unit in which people give leads of so many minutes: minutes per unit, and its name."""
    return (60, "hours") if max(leads) >= 180 and all(lead % 60 == 0 for lead in leads) else (1, "minutes")


def readable(name: str) -> str:
    """Return a model's name as a person writes it."""
    return name.replace("_", " ")


def readable_units(units: str) -> str:
    """Return units as people write them: 'mm h-1' -> 'mm/h'; dimensionless is 'value'."""
    return {RAIN_RATE_UNITS: "mm/h", "1": "value", "": "value"}.get(units, units)


def without_mathematics(figure: Figure) -> None:
    """Take titles, labels and legends of a figure as they are written: a `$` in a name of the data begins no formula.

    The numbers along an axis are left as they are: those of logarithmic ones are formulas.
    """
    from matplotlib.text import Text  # whoever has a figure has loaded it

    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    numbers = {text for axis in axes for text in axis.findobj(Text) if text is not axis.label}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in numbers:
            text.set_parse_math(False)


# Okabe & Ito (2008): distinct with every common colour blindness
COLOURS = {
    "persistence": "#7f7f7f",
    "climatology": "#b59f00",
    "damped_persistence": "#56b4e9",
    "advection": "#000000",
    "sprog": "#7570b3",
    "steps": "#009e73",
    "convlstm": "#0072b2",
    "convlstm_quantiles": "#aa4499",
    "video_transformer": "#d55e00",
    "lagrangian_regression": "#8c564b",
    "lagrangian_quantiles": "#c49c94",
    "unet": "#cc79a7",
    "unet_quantiles": "#882255",
}
