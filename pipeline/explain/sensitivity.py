"""Sensitivity of a forecast to the cells of its history, by gradients: for any learned model.

The gradient is that of Simonyan et al. 2014, "Deep Inside Convolutional Networks"; times the input it says how much
each cell has added, to first order (Shrikumar et al. 2017, "Learning Important Features Through Propagating Activation
Differences", section 2.2).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def sensitivity(
    model: Callable[[Tensor, Tensor | None], Tensor],
    history: Float[Tensor, "1 t c h w"],
    lead: int,
    region: Bool[Tensor, "h w"],
    *,
    channel: int = 0,
    noise: Float[Tensor, "1 m k"] | None = None,
) -> Float[Tensor, "t c h w"]:
    """Return the change of a region's mean forecast for a change of each history cell; 0 where one is missing.

    Of the target `channel` and the lead at position `lead`, 0 the first; members are averaged. The model should be in
    eval mode. Raises ValueError for a region without any cell.
    """
    if not region.any():
        raise ValueError("region must hold at least one cell")
    varied = history.detach().clone().requires_grad_()
    with torch.enable_grad():
        forecast: Tensor = model(varied, noise)
        fields = forecast[..., lead, channel, :, :]  # (1, h, w), or (1, m, h, w)
        (gradient,) = torch.autograd.grad(fields[..., region].mean(), varied)
    return gradient[0]


def contribution(
    model: Callable[[Tensor, Tensor | None], Tensor],
    history: Float[Tensor, "1 t c h w"],
    lead: int,
    region: Bool[Tensor, "h w"],
    *,
    background: Float[Tensor, "#t #c #h #w"] | None = None,
    channel: int = 0,
    noise: Float[Tensor, "1 m k"] | None = None,
) -> Float[Tensor, "t h w"]:
    """Gradient times input, summed over channels: how much each cell adds to the forecast of a region.

    The input counts from `background`, which says nothing (no rain); 0 where none is given. Signs remain: a cell may
    lower the forecast.
    """
    gradient = sensitivity(model, history, lead, region, channel=channel, noise=noise)
    departure = torch.nan_to_num(history[0] if background is None else history[0] - background)
    return (gradient * departure).sum(dim=1)
