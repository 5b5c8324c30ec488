"""Frames to tokens and tokens to increments: by overlapping convolutions, or patch by patch."""

from itertools import pairwise

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.layers.blocks import Block
from fieldcast.models.layers.norms import ChannelNorm
from fieldcast.models.layers.patches import crop, pad_to_multiple, patchify, unpatchify
from fieldcast.models.video_transformer.attention.interface import Grid
from fieldcast.models.video_transformer.options import VideoTransformerOptions

Seen = list[Float[Tensor, "_b _t _d _h _w"]]  # maps of the history on every grid finer than the tokens', finest first


def stem_of(channels: int, options: VideoTransformerOptions, *, tubelet: int = 1) -> "PatchStem | ConvStem":
    """Return the map of frames of so many channels to tokens, of `tubelet` frames each."""
    return (ConvStem if options.stem == "conv" else PatchStem)(channels, options, tubelet)


def readout_of(channels: int, history: int, options: VideoTransformerOptions) -> "PatchReadout | ConvReadout":
    """Return the map of tokens to fields of so many channels, which knows the maps of `history` frames."""
    return ConvReadout(channels, history, options) if options.stem == "conv" else PatchReadout(channels, options)


def strides_of(patch: int) -> list[int]:
    """Return the prime factors of a patch's side, the smallest first: how much coarser each level is."""
    strides, rest, factor = [], patch, 2
    while rest > 1:
        while rest % factor == 0:
            strides.append(factor)
            rest //= factor
        factor += 1
    return strides


def widths_of(options: VideoTransformerOptions) -> list[int]:
    """Return the channels at full resolution and on each coarser grid, the last that of the tokens."""
    return [options.channels * (level + 1) for level in range(len(strides_of(options.patch)) + 1)]


def whole_tubelets(frames: Float[Tensor, "b t c h w"], tubelet: int) -> Float[Tensor, "b t_end c h w"]:
    """Return the frames with the first repeated in front of them, until their number is a multiple."""
    return torch.cat([frames[:, :1].expand(-1, -frames.shape[1] % tubelet, -1, -1, -1), frames], dim=1)


class PatchStem(nn.Module):
    """Patches of `tubelet` frames each through one linear map."""

    def __init__(self, channels: int, options: VideoTransformerOptions, tubelet: int = 1) -> None:
        super().__init__()
        self.patch, self.tubelet = options.patch, tubelet
        self.linear = nn.Linear(tubelet * channels * self.patch**2, options.dim)

    def forward(self, frames: Float[Tensor, "b t c h w"]) -> tuple[Float[Tensor, "b s h_patch w_patch d"], Seen]:
        """Return tokens of frames without NaN, and nothing else that was seen."""
        frames = whole_tubelets(frames, self.tubelet)
        patches = patchify(pad_to_multiple(frames, self.patch), self.patch)
        tokens: Grid = self.linear(rearrange(patches, "b (t pt) c h w -> b t h w (pt c)", pt=self.tubelet))
        return tokens, []


class ConvStem(nn.Module):
    """Overlapping convolutions of each frame on grids ever coarser; of the coarsest, `tubelet` frames make tokens.

    Xiao et al. 2021, "Early Convolutions Help Transformers See Better".
    """

    def __init__(self, channels: int, options: VideoTransformerOptions, tubelet: int = 1) -> None:
        super().__init__()
        self.patch, self.tubelet = options.patch, tubelet
        widths = widths_of(options)
        coarser = zip(pairwise(widths), strides_of(self.patch), strict=True)
        self.levels = nn.ModuleList(
            [Block(channels, widths[0]), *(Block(fine, coarse, stride) for (fine, coarse), stride in coarser)]
        )
        self.linear = nn.Linear(tubelet * widths[-1], options.dim)

    def forward(self, frames: Float[Tensor, "b t c h w"]) -> tuple[Float[Tensor, "b s h_patch w_patch d"], Seen]:
        """Return tokens of frames without NaN, and the maps on all finer grids."""
        maps = rearrange(pad_to_multiple(frames, self.patch), "b t c h w -> (b t) c h w")
        maps = maps.contiguous(memory_format=torch.channels_last)
        seen = []
        for level in self.levels:
            maps = level(maps)
            seen.append(rearrange(maps, "(b t) d h w -> b t d h w", b=len(frames)))
        coarsest = whole_tubelets(seen.pop(), self.tubelet)
        tokens: Grid = self.linear(rearrange(coarsest, "b (t pt) d h w -> b t h w (pt d)", pt=self.tubelet))
        return tokens, seen


class Queries(nn.Module):
    """One learned vector for every patch of the future: what is asked before anything is known of it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(0.02 * torch.randn(dim))

    def forward(self, history: Grid, frames: int) -> Float[Tensor, "b {frames} h w d"]:
        """Return queries of so many frames, in the size and precision of the history's tokens."""
        b, _, h, w, _ = history.shape
        return repeat(self.vector, "d -> b f h w d", b=b, f=frames, h=h, w=w).to(history.dtype)


class PatchReadout(nn.Module):
    """Each token to the increments of its patch; 0 at first, whatever the tokens are."""

    def __init__(self, channels: int, options: VideoTransformerOptions) -> None:
        super().__init__()
        self.patch = options.patch
        self.norm = nn.LayerNorm(options.dim)
        self.linear = nn.Linear(options.dim, channels * self.patch**2)
        make_zero(self.linear)

    def forward(self, tokens: Grid, seen: Seen, height: int, width: int) -> Float[Tensor, "b t c {height} {width}"]:
        """Return increments on the grid of the frames."""
        patches = rearrange(self.linear(self.norm(tokens)), "b t h w c -> b t c h w")
        return crop(unpatchify(patches, self.patch), height, width)


class ConvReadout(nn.Module):
    """Tokens to increments on grids ever finer, with what the stem saw there; 0 at first, whatever the tokens are.

    Maps are convolved and then interpolated, so that no cell knows where its patch ends. What was seen is the same for
    all leads, and its share computed once.
    """

    def __init__(self, channels: int, history: int, options: VideoTransformerOptions) -> None:
        super().__init__()
        widths = widths_of(options)
        finer = [(coarse, fine) for fine, coarse in pairwise(widths)][::-1]
        self.strides = strides_of(options.patch)[::-1]
        self.norm, self.enter = nn.LayerNorm(options.dim), nn.Linear(options.dim, widths[-1])
        self.of_leads = nn.ModuleList(nn.Conv2d(coarse, fine, 3, padding=1) for coarse, fine in finer)
        self.of_seen = nn.ModuleList(nn.Conv2d(history * fine, fine, 3, padding=1, bias=False) for _, fine in finer)
        self.norms = nn.ModuleList(ChannelNorm(fine) for _, fine in finer)
        self.leave = nn.Conv2d(widths[0], channels, 1)
        make_zero(self.leave)

    def forward(self, tokens: Grid, seen: Seen, height: int, width: int) -> Float[Tensor, "b t c {height} {width}"]:
        """Return increments on the grid of the frames; of several members a sample, all know what it has seen."""
        maps = rearrange(self.enter(self.norm(tokens)), "b t h w d -> (b t) d h w")
        levels = zip(self.strides, reversed(seen), self.of_leads, self.of_seen, self.norms, strict=True)
        for stride, fine, of_leads, of_seen, norm in levels:
            known = of_seen(rearrange(fine, "b t d h w -> b (t d) h w"))
            maps = functional.interpolate(of_leads(maps), scale_factor=stride, mode="bilinear", align_corners=False)
            maps = functional.silu(norm(maps + known.repeat_interleave(len(maps) // len(known), dim=0)))
        return crop(rearrange(self.leave(maps), "(b t) c h w -> b t c h w", b=len(tokens)), height, width)


def make_zero(layer: nn.Linear | nn.Conv2d) -> None:
    """Let a layer give 0 until it has learned."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
