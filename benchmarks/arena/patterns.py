"""Attention patterns that are compared: all of the video transformer, and joint attention written out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import nn

from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes
from fieldcast.models.video_transformer.attention.interface import AttentionPattern
from fieldcast.models.video_transformer.attention.patterns import ATTENTIONS, AttentionOptions, build_pattern

SUB_LAYERS = 4
EXPLICIT, JOINT, FACTORISED = "joint explicit", "joint", "factorised"
Grid = tuple[int, int, int]  # tokens along time, height, width


@dataclass(frozen=True)
class Pattern:
    """Mixers of a stack: as the video transformer makes them, or of joint attention with its weights in memory."""

    name: str
    explicit: bool = False

    def mixers(self, dim: int, heads: int, count: int = SUB_LAYERS) -> list[nn.Module]:
        """Return one mixer for each sub-layer, by default with the options of the video transformer."""
        if self.explicit:
            return [AlongAxes(dim, heads, "J", impl="eager") for _ in range(count)]
        options = AttentionOptions.model_validate({"attention": self.name})
        return [build_pattern(options, dim, heads, index) for index in range(count)]


PATTERNS: Mapping[str, Pattern] = {
    EXPLICIT: Pattern(EXPLICIT, explicit=True),
    **{name: Pattern(name) for name in sorted(ATTENTIONS, key=lambda name: name != JOINT)},
}


def weights_mb(mixers: list[nn.Module], grid: Grid) -> float:
    """Return the MB of the attention weights of a sample in float32, with two more copies at the busiest moment."""
    held = [cast(AttentionPattern, mixer).held(*grid) for mixer in mixers]
    return 4 * (sum(held) + 2 * max(held)) / 1e6


def macs(mixers: list[nn.Module], grid: Grid) -> int:
    """Return the multiply-adds of the mixers of a sample."""
    return sum(cast(AttentionPattern, mixer).macs(*grid) for mixer in mixers)


def tokens(grid: Grid) -> int:
    """Return the number of tokens."""
    return math.prod(grid)
