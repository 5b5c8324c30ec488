"""Options of the ConvLSTM."""

from pydantic import Field, PositiveInt, field_validator

from models.outputs import OutputOptions


class ConvLSTMOptions(OutputOptions):
    """Size of the encoder-forecaster."""

    hidden: tuple[PositiveInt, ...] = Field(
        default=(48, 48), min_length=1, description="channels of each level of the encoder; the forecaster mirrors them"
    )
    kernel: int = Field(default=3, ge=1, description="side of every convolution in a cell, odd, in patches")
    patch: int = Field(default=4, ge=1, description="side of the squares of cells that the recurrence works on")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of channels dropped on each level's input")

    @field_validator("kernel")
    @classmethod
    def _kernel_is_odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        return kernel
