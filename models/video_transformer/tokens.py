"""Frames to tokens and tokens to increments."""

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from fieldcast.models.layers.patches import crop, pad_to_multiple, patchify, unpatchify
from fieldcast.models.video_transformer.attention.interface import Grid


def whole_tubelets(frames: Float[Tensor, "b t c h w"], tubelet: int) -> Float[Tensor, "b t_end c h w"]:
    """Return the frames with the first repeated in front of them, until their number is a multiple."""
    return torch.cat([frames[:, :1].expand(-1, -frames.shape[1] % tubelet, -1, -1, -1), frames], dim=1)


class Embedding(nn.Module):
    """Patches of `tubelet` frames each through one linear map."""

    def __init__(self, channels: int, patch: int, dim: int, *, tubelet: int = 1) -> None:
        super().__init__()
        self.patch, self.tubelet = patch, tubelet
        self.linear = nn.Linear(tubelet * channels * patch**2, dim)

    def forward(self, frames: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b s h_patch w_patch d"]:
        """Return tokens of frames without NaN."""
        frames = whole_tubelets(frames, self.tubelet)
        patches = patchify(pad_to_multiple(frames, self.patch), self.patch)
        tokens: Grid = self.linear(rearrange(patches, "b (t pt) c h w -> b t h w (pt c)", pt=self.tubelet))
        return tokens


class Queries(nn.Module):
    """One learned vector for every patch of the future: what is asked before anything is known of it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(0.02 * torch.randn(dim))

    def forward(self, history: Grid, frames: int) -> Float[Tensor, "b {frames} h w d"]:
        """Return queries of so many frames, in the size and precision of the history's tokens."""
        b, _, h, w, _ = history.shape
        return repeat(self.vector, "d -> b f h w d", b=b, f=frames, h=h, w=w).to(history.dtype)


class Readout(nn.Module):
    """Tokens of the future to increments of the field; 0 at first, whatever the tokens are."""

    def __init__(self, channels: int, patch: int, dim: int, *, smooth: bool) -> None:
        super().__init__()
        self.patch = patch
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, channels * patch**2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1, bias=False) if smooth else None
        if self.smooth is not None:
            nn.init.dirac_(self.smooth.weight)  # changes nothing at first

    def forward(self, tokens: Grid, height: int, width: int) -> Float[Tensor, "b t c {height} {width}"]:
        """Return increments on the grid of the frames."""
        patches = rearrange(self.linear(self.norm(tokens)), "b t h w c -> b t c h w")
        field = unpatchify(patches, self.patch)
        if self.smooth is not None:
            flat = self.smooth(rearrange(field, "b t c h w -> (b t) c h w"))
            field = rearrange(flat, "(b t) c h w -> b t c h w", b=len(tokens))
        return crop(field, height, width)
