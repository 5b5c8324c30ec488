"""Options of the video transformer."""

from typing import Literal, Self

from pydantic import Field, model_validator

from models.outputs import OutputOptions


class VideoTransformerOptions(OutputOptions):
    """Size of the transformer and the kind of its attention."""

    attention: Literal["factorised", "joint", "divided"] = Field(
        default="factorised",
        description="factorised: sub-layers along time or space; joint: over all tokens; divided: TimeSformer blocks",
    )
    order: str = Field(
        default="TSST", pattern="^[TS]+$", description="factorised only: sub-layers of a layer, T time, S space"
    )
    dim: int = Field(default=96, ge=4, description="features of a token: a multiple of 4 and of heads")
    heads: int = Field(default=4, ge=1, description="attention heads")
    layers: int = Field(
        default=1, ge=1, description="layers; one is four sub-layers (as many as order has), or a block"
    )
    mlp_ratio: float = Field(default=4.0, gt=0, description="hidden features of the SwiGLU per feature of a token")
    patch: int = Field(default=8, ge=1, description="side of the squares of cells that become one token")
    smooth: bool = Field(default=False, description="3x3 convolution of the increments, against seams between patches")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of features dropped in each branch")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="share of samples that skip a branch, last sub-layer")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dim % 4 or self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of 4 and of heads ({self.heads}), got {self.dim}")
        if self.attention != "factorised" and self.order != "TSST":
            raise ValueError(f"order applies to attention: factorised only, got {self.order!r} with {self.attention}")
        return self
