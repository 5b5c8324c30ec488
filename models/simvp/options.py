"""Options of the convolutional model."""

from pydantic import Field, field_validator

from fieldcast.models.layers.outputs import LearnedOptions


class SimVPOptions(LearnedOptions):
    """Size of encoder, translator and decoder."""

    channels: int = Field(default=16, ge=1, description="channels of one frame inside encoder and decoder")
    levels: int = Field(default=2, ge=0, le=10, description="how often the encoder halves the grid")
    hidden: int = Field(default=128, ge=1, description="channels of the translator, which sees all frames at once")
    blocks: int = Field(default=3, ge=1, le=256, description="gated blocks of the translator")
    kernel: int = Field(
        default=5, ge=1, description="side of a block's first convolution, odd; its second spans 7 x 7, 3 apart"
    )
    mlp_ratio: float = Field(
        default=2.0, gt=0, le=100, description="hidden channels of a block's MLP per channel of it"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of channels dropped in each branch of a block")

    @field_validator("kernel")
    @classmethod
    def _kernel_is_odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        return kernel
