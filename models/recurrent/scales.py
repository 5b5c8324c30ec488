"""Convolutions between the levels of a recurrent network: to a coarser grid in the encoder, back in the forecaster.

Shi et al. 2017, "Deep Learning for Precipitation Nowcasting", appendix: kernels a little wider than the stride, padding
of one cell, leaky ReLU. A grid that is a multiple of the stride is divided by it exactly, and multiplied back.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.recurrent.convgru import SLOPE
from fieldcast.models.recurrent.unroll import all_steps


class Down(nn.Conv2d):
    """To a grid `stride` times coarser: kernels of 3, 3, 5, 5, 7 cells for strides of 1, 2, 3, 4, 5."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__(channels_in, channels_out, stride + 1 + stride % 2, stride=stride, padding=1)

    def forward(self, steps: Float[Tensor, "t b c h w"]) -> Float[Tensor, "t b d h_out w_out"]:
        """Return all steps' maps, by one convolution."""
        coarse = functional.leaky_relu(super().forward(all_steps(steps)), SLOPE)
        return rearrange(coarse, "(t b) d h w -> t b d h w", t=len(steps))


class Up(nn.ConvTranspose2d):
    """To a grid `stride` times finer: kernels of stride + 2 cells."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__(channels_in, channels_out, stride + 2, stride=stride, padding=1)

    def forward(  # type: ignore[override]
        self, steps: Float[Tensor, "t b c h w"]
    ) -> Float[Tensor, "t b d h_out w_out"]:
        """Return all steps' maps, by one convolution."""
        fine = functional.leaky_relu(super().forward(all_steps(steps)), SLOPE)
        return rearrange(fine, "(t b) d h w -> t b d h w", t=len(steps))
