"""Sequential operations of a learned model, and the length of paths through it.

After Vaswani et al. 2017, "Attention Is All You Need", table 1, for whole forecasters. An operation mixes positions: a
step of a recurrent cell, a sub-layer of attention, a convolution that is wider than a cell or goes over frames. Work on
each position by itself belongs to the operation before it, and statistics of norms do not count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pydantic import BaseModel

from fieldcast.models.layers.sizes import Sizes
from fieldcast.models.recurrent.options import RecurrentOptions
from fieldcast.models.simvp.layers import APART, FAR
from fieldcast.models.simvp.options import SimVPOptions
from fieldcast.models.unet.options import UNetOptions
from fieldcast.models.video_transformer.attention.exact.axes import AXES
from fieldcast.models.video_transformer.attention.exact.window import fitted
from fieldcast.models.video_transformer.attention.patterns import ATTENTIONS
from fieldcast.models.video_transformer.options import VideoTransformerOptions
from fieldcast.models.video_transformer.tokens import strides_of

Cells = tuple[int, int]  # rows and columns of the field
Tokens = tuple[int, int, int]  # along time, height, width


@dataclass(frozen=True)
class Complexity:
    """Operations in a row, and the path from any corner of the first frame to the opposite one at the last lead.

    The path is the fewest operations that lead there in a model of enough layers; None where none ever does. T are
    the steps of history and horizon, n the cells or tokens along the longest axis, r those that an operation reaches.
    """

    in_a_row: int
    row_grows: str
    path: int | None
    path_grows: str


def complexity_of(options: BaseModel, sizes: Sizes, cells: Cells) -> Complexity:
    """Return the complexity of the learned model with these options; raise ValueError for options of another model."""
    if isinstance(options, RecurrentOptions):
        return of_recurrent(options, sizes, cells)
    if isinstance(options, SimVPOptions):
        return of_simvp(options, cells)
    if isinstance(options, UNetOptions):
        return of_unet(options, cells)
    if isinstance(options, VideoTransformerOptions):
        return of_video_transformer(options, sizes, cells)
    raise ValueError(f"options must be of a learned model, got {type(options).__name__}")


def of_recurrent(options: RecurrentOptions, sizes: Sizes, cells: Cells) -> Complexity:
    """Return T operations and one for each further level, up and down; a step carries the state on by r patches.

    Attention reads what up to `memory` (K) steps have left in one step; a flow brings the state from anywhere. Raises
    ValueError for strides, whose levels differ in r.
    """
    if options.strides is not None:
        raise ValueError(f"strides must be null, got {options.strides}")
    steps = sizes.history + sizes.horizon
    in_a_row = steps + 2 * (len(options.hidden) - 1)
    in_time, grows = steps, "T"
    if options.cell == "attention":
        in_time, grows = math.ceil(steps / options.memory), "T/K"
    if options.cell == "trajgru":
        return Complexity(in_a_row, "O(T)", in_time, f"O({grows})")
    distance = math.ceil(max(cells) / options.patch) - 1 - options.kernel // 2  # but for what the first step reads
    in_space = 1 + _times(distance, options.state_side // 2)
    path = None if in_space == math.inf else int(max(in_time, in_space))
    return Complexity(in_a_row, "O(T)", path, f"O({grows} + n/r)")


def of_simvp(options: SimVPOptions, cells: Cells) -> Complexity:
    """Return the convolutions of SimVP; a path needs blocks for the distance that encoder and decoder do not span.

    Each of these two reaches a cell of the coarse grid. A block has two branches: one with two convolutions, and an MLP
    with one, of side 3.
    """
    ends = 1 + options.levels + 1 + options.levels + 1  # encoder, frames to one map, decoder
    distance = max(0, math.ceil((max(cells) - 1) / 2**options.levels) - 2)
    mixings, rest = divmod(distance, options.kernel // 2 + FAR // 2 * APART)
    return Complexity(ends + 3 * options.blocks, "O(1)", ends + 2 * mixings + min(rest, 2), "O(n/r)")


def of_unet(options: UNetOptions, cells: Cells) -> Complexity:
    """Return the convolutions of the U-Net; all paths go through all of them, as far as its coarsest grid reaches."""
    in_a_row = 2 + 4 * options.levels  # two at full resolution; three on the way down and one on the way up a level
    reach = [2]  # the last cell of each grid that the first cell of the field has reached
    for _ in range(options.levels):
        reach.append(reach[-1] // 2 + 2)
    last = reach.pop()
    while reach:
        last = max(2 * last + 1, reach.pop()) + 1
    return Complexity(in_a_row, "O(1)", in_a_row if last >= max(cells) - 1 else None, "O(1)")


def of_video_transformer(options: VideoTransformerOptions, sizes: Sizes, cells: Cells) -> Complexity:
    """Return the sub-layers of trunk and decoder; with global tokens a sub-layer of the trunk counts twice.

    A path needs only the cross-attention of a decoder, since that sees the whole history. Convolutions before and
    after count where there are some; what they say by themselves comes from a patch or two away, and is left out.
    """
    levels = len(strides_of(options.patch)) if options.stem == "conv" else 0
    before = levels + 1 if options.stem == "conv" else 0
    ends = before + levels
    trunk = _sub_layers(options) * (2 if options.global_tokens else 1)
    if options.arch == "fill_in":
        path, grows = path_in_trunk(options, _tokens(options, sizes, cells))
        return Complexity(trunk + ends, "O(1)", None if path is None else path + ends, grows)
    if options.autoregressive:
        decoder = 2 * options.decoder_layers * sizes.horizon  # self-attention and cross-attention for each lead
        further = ends * (sizes.horizon - 1)  # each lead is read out and becomes tokens
        return Complexity(trunk + decoder + ends + further, "O(T)", 1 + ends, "O(1)")
    a_layer = 3 if options.query_attention == "factorised" else 1  # time, space, cross-attention
    return Complexity(trunk + a_layer * options.decoder_layers + ends, "O(1)", 1 + ends, "O(1)")


def path_in_trunk(options: VideoTransformerOptions, tokens: Tokens) -> tuple[int | None, str]:
    """Return the fewest sub-layers from the first token to the last, and how they grow with the tokens.

    Global tokens gather what they then spread. Patterns that have neither axes nor windows see all tokens at once, or
    those that they choose.
    """
    if options.global_tokens:
        return min(2, _path_of_pattern(options, tokens)[0] or 2), "O(1)"
    return _path_of_pattern(options, tokens)


def _path_of_pattern(options: VideoTransformerOptions, tokens: Tokens) -> tuple[int | None, str]:
    arguments = [ATTENTIONS[options.attention].arguments(options, index) for index in range(_sub_layers(options))]
    reach = reach_of_readout(options)
    if "along" in arguments[0]:
        steps, rows, columns = tokens
        return path_along(arguments, (steps, max(1, rows - reach), max(1, columns - reach))), "O(1)"
    if options.attention == "window":
        return path_through_windows(options.window, tokens, reach), "O(n/r)"
    return 1, "O(1)"


def path_along(arguments: list[dict[str, Any]], tokens: Tokens) -> int | None:
    """Return the fewest of the letters of axes (see `AXES`) that together mix all axes of more than one token."""
    letters = {of_sub_layer["along"] for of_sub_layer in arguments}
    wanted = {axis for axis, size in enumerate(tokens) if size > 1}
    for count in range(len(letters) + 1):
        for chosen in combinations(letters, count):
            if wanted <= {axis for letter in chosen for axis in AXES[letter][0]}:
                return count
    return None


def reach_of_readout(options: VideoTransformerOptions) -> int:
    """Return how many tokens away from the first one the first cell's increments come from, by convolutions alone."""
    last = 0
    for stride in strides_of(options.patch) if options.stem == "conv" else ():
        last = max(0, math.ceil((last + 0.5) / stride - 0.5)) + 1  # interpolated between two, each read with neighbours
    return last


def path_through_windows(window: Tokens, tokens: Tokens, reach: int = 0) -> int | None:
    """Return ceil(2 n / k) - 1 along the axis where that is most: after a window of k, each sub-layer adds k / 2.

    Windows that are shifted by half take turns with those that are not. Where windows are odd or do not divide an axis,
    the way back along it may begin with the second sub-layer. The last `reach` rows and columns need no window.
    """
    distances = (tokens[0], *(max(1, size - reach) for size in tokens[1:]))
    pairs = list(zip(distances, fitted(tokens, window), strict=True))
    if any(size > 1 and part == 1 for size, part in pairs):
        return None
    return max(1, *(math.ceil(2 * size / part) - 1 for size, part in pairs))


def _tokens(options: VideoTransformerOptions, sizes: Sizes, cells: Cells) -> Tokens:
    queries = sizes.horizon if options.future == "queries" else 0
    height, width = (math.ceil(side / options.patch) for side in cells)
    return math.ceil(sizes.history / options.tubelet) + queries, height, width


def _sub_layers(options: VideoTransformerOptions) -> int:
    return options.layers * (2 if options.attention == "divided" else len(options.order))


def _times(distance: int, reach: int) -> float:
    """Return how often `reach` fits into the distance, rounded up; infinity where it is 0."""
    if distance <= 0:
        return 0
    return math.ceil(distance / reach) if reach else math.inf
