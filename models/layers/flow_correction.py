"""Learned correction of a flow: what the motion of the latest frames says wrongly of the next ones, trained end to end.

Optical flow tells where weather has moved. Where it turns, speeds up or grows on one side, its motion from now on is
another, and the frames brought along the flow to the init time, which would be alike, tell it: a small network sees
these and the flow, on a grid `COARSER` times as coarse, since motion is smooth. The flow it corrects moves both the
base and what the network says. Before training it corrects nothing.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.layers.motion import Flow, Places, cells_of, moved, read_at

COARSER = 4
WIDTH = 16  # channels inside
REACH = 5  # cells of a kernel's side, on the coarse grid


class FlowCorrection(nn.Module):
    """Convolutions from `channels` of aligned frames and the flow to a change of the flow, zero at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 2, WIDTH, REACH, padding="same", padding_mode="replicate"),
            nn.GELU(),
            nn.Conv2d(WIDTH, WIDTH, REACH, padding="same", padding_mode="replicate"),
            nn.GELU(),
        )
        self.out = nn.Conv2d(WIDTH, 2, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, aligned: Float[Tensor, "b t v h w"], flow: Flow) -> Flow:
        """Return what to add to `flow` [cells a step]; `aligned` are normalised frames brought along it, with NaN."""
        h, w = flow.shape[-2:]
        seen = torch.cat([rearrange(aligned.nan_to_num(0.0), "b t v h w -> b (t v) h w"), flow], dim=1)
        coarse = functional.avg_pool2d(seen, COARSER, ceil_mode=True, count_include_pad=False)
        change = self.out(self.layers(coarse)).float()
        return functional.interpolate(change, size=(h, w), mode="bilinear", align_corners=False)


def moved_on(base: Float[Tensor, "b f c h w"], change: Flow, *, exact: bool) -> Float[Tensor, "b f c h w"]:
    """Return a base forecast, which has moved along a flow, as if `change` had been part of that flow.

    Lead f moves by f times the change. Where that is 0, `exact` keeps the very values; training goes without, since a
    value that is kept has no slope.
    """
    places: Places = (
        cells_of(change) - change[:, None] * torch.arange(1, base.shape[1] + 1).to(change)[:, None, None, None]
    )
    if exact:
        return torch.stack([moved(base[:, f], places[:, f : f + 1])[:, 0] for f in range(base.shape[1])], dim=1)
    together = read_at(base.flatten(0, 1), places.flatten(0, 1))
    return rearrange(together, "(b f) c h w -> b f c h w", b=len(base))
