"""Missing cells (NaN) in a history: the two things a learned model does with them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def fill_and_mask(history: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c+1 h w"]:
    """Return the history with 0 in its missing cells and one more channel: 1 where all channels are valid, else 0.

    No gradient flows back through a missing cell.
    """
    missing = history.isnan()
    filled = torch.where(missing, 0.0, history)
    valid = (~missing.any(dim=2, keepdim=True)).to(history.dtype)
    return torch.cat([filled, valid], dim=2)


def carried_forward(history: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
    """Return the history with missing cells filled by the cell's latest earlier value, else 0."""
    frames = []
    latest = torch.zeros_like(history[:, 0])
    for frame in history.unbind(dim=1):
        latest = torch.where(frame.isnan(), latest, frame)
        frames.append(latest)
    return torch.stack(frames, dim=1)


class LinearBaseline(nn.Module):
    """The base of a learned forecast: for each lead a learned mixture of the history's frames, the same in every cell.

    It starts with all weight on the last frame, so that an untrained model is persistence. In normalised values, where
    0 is the mean or the climatology, it soon becomes what a regression on the history would be (damped persistence, or
    yesterday's value at the same hour), which the network then need not build out of increments.
    """

    start: Tensor

    LR_MULTIPLIER = 10.0  # these weights move so many times faster than others: a training has few steps to halve one

    def __init__(self, history: int, horizon: int, channels_out: int) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(horizon, history, channels_out))
        start = torch.zeros(history)
        start[-1] = 1
        self.register_buffer("start", start[:, None], persistent=False)

    def forward(
        self, increment: Float[Tensor, "b *m f c_out h w"], history: Float[Tensor, "b t c_in h w"]
    ) -> Float[Tensor, "b *m f c_out h w"]:
        """Return increments added to the mixture of the first c_out channels, in the history's precision.

        All members of a sample, where there are any, share its mixture.
        """
        frames = carried_forward(history[:, :, : increment.shape[-3]])
        weights = (self.start + self.LR_MULTIPLIER * self.change).to(frames.dtype)
        with torch.autocast(frames.device.type, enabled=False):  # the base keeps its precision
            mixture = torch.einsum("ftc,btchw->bfchw", weights, frames)
            return (mixture if increment.ndim == 5 else mixture[:, None]) + increment.to(frames.dtype)
