"""Options of the U-Net."""

from pydantic import Field

from fieldcast.models.layers.outputs import LearnedOptions


class UNetOptions(LearnedOptions):
    """Size of the U-Net."""

    channels: int = Field(default=16, ge=1, description="channels at full resolution; each coarser level adds as many")
    levels: int = Field(default=2, ge=0, description="how often the grid is halved")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of channels dropped at the coarsest level")
