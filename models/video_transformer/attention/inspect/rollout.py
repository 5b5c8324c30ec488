"""Attention rollout: how much of each history cell has reached a cell of the forecast through all layers.

Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers": a layer passes half of a token on unchanged (the
residual path) and half by its weights, averaged over heads; layers multiply. Attention along axes of a grid is a matrix
over all tokens that is 0 off its lines; here the product is taken from the forecast's side, line by line, so that no
such matrix is ever made.
"""

from collections.abc import Sequence

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from fieldcast.models.layers.patches import crop
from fieldcast.models.video_transformer.attention.core import Weights
from fieldcast.models.video_transformer.attention.exact.axes import AXES
from fieldcast.models.video_transformer.attention.inspect.recorder import Call, record
from fieldcast.models.video_transformer.attention.patterns import ATTENTIONS
from fieldcast.models.video_transformer.model import VideoTransformer
from fieldcast.models.video_transformer.options import VideoTransformerOptions

ALONG_AXES = tuple(name for name, choice in ATTENTIONS.items() if choice.class_name == "AlongAxes")


def passed_on(weights: Weights) -> Float[Tensor, "b n n"]:
    """Return half the mean of the heads and half the identity, rows normalised to 1 (one without weights is itself)."""
    mean = reduce(weights.float(), "b heads n m -> b n m", "mean")
    both = 0.5 * mean + 0.5 * torch.eye(mean.shape[-1], device=mean.device)
    return both / both.sum(dim=-1, keepdim=True)


def rolled_back(calls: Sequence[Call], relevance: Float[Tensor, "b t h w q"]) -> Float[Tensor, "b t h w q"]:
    """Return relevance of tokens before the first of `calls` from that after the last, for q questions.

    Sums over all tokens stay what they are. Raises ValueError for a call that did not run along axes of the grid.
    """
    for call in reversed(calls):
        if call.along is None or call.grid is None:
            raise ValueError(f"attention must run along axes of a grid of tokens, but {call.name} does not")
        b, t, h, w = call.grid
        left, right = AXES[call.along][1].split(" -> ")
        lines = rearrange(relevance, f"{left} -> {right}")
        lines = torch.einsum("bnm,bnq->bmq", passed_on(call.weights), lines)
        relevance = rearrange(lines, f"{right} -> {left}", b=b, t=t, h=h, w=w)
    return relevance


def of_tokens(region: Bool[Tensor, "h w"], patch: int) -> Float[Tensor, "h_patch w_patch"]:
    """Return the share of a region's cells that each patch holds; shares sum to 1."""
    height, width = region.shape
    padded = functional.pad(region.float(), (0, -width % patch, 0, -height % patch))
    shares = reduce(padded, "(h ph) (w pw) -> h w", "sum", ph=patch, pw=patch)
    return shares / shares.sum()


def over_cells(
    shares: Float[Tensor, "t h_patch w_patch"], patch: int, height: int, width: int
) -> Float[Tensor, "t {height} {width}"]:
    """Return every patch's share spread evenly over its cells, those of the padding cut off."""
    cells = repeat(shares / patch**2, "t h w -> t (h ph) (w pw)", ph=patch, pw=patch)
    return crop(cells, height, width)


def over_frames(shares: Float[Tensor, "s h w"], tubelet: int, frames: int) -> Float[Tensor, "{frames} h w"]:
    """Return every slot's share spread evenly over its frames; repetitions of the first frame count as the first."""
    each = repeat(shares / tubelet, "s h w -> (s pt) h w", pt=tubelet)
    ahead = len(each) - frames
    return torch.cat([each[: ahead + 1].sum(dim=0, keepdim=True), each[ahead + 1 :]])


def obstacle(options: VideoTransformerOptions) -> str | None:
    """Return the reason why a video transformer allows no rollout, or None."""
    if options.attention not in ALONG_AXES:
        return f"rollout needs attention: {', '.join(ALONG_AXES)}, got {options.attention}"
    if options.arch != "fill_in" or options.global_tokens:
        return f"rollout needs arch: fill_in without global tokens, got {options.arch} with {options.global_tokens}"
    return None


def look_back(
    model: VideoTransformer, history: Float[Tensor, "1 t c h w"], lead: int, region: Bool[Tensor, "h w"]
) -> Float[Tensor, "t h w"]:
    """Return the share of each history cell in the forecast of a region at the lead at position `lead`, 0 the first.

    Shares sum to at most 1: what is missing never left the queries of the future, or lies on padding. Raises ValueError
    for a model with an `obstacle`, or a region without any cell.
    """
    if problem := obstacle(model.options):
        raise ValueError(problem)
    if not region.any():
        raise ValueError("region must hold at least one cell")
    with torch.no_grad(), record(model.trunk) as recording:
        model(history)
    patch, grid = model.options.patch, recording.calls[-1].grid
    assert grid is not None  # along axes
    asked = torch.zeros(*grid, 1, device=history.device)
    asked[0, lead - model.sizes.horizon, ..., 0] = of_tokens(region, patch).to(history.device)  # leads come last
    rolled = rolled_back(recording.calls, asked)[0, : model.slots, ..., 0]
    return over_frames(over_cells(rolled, patch, *region.shape), model.options.tubelet, history.shape[1])
