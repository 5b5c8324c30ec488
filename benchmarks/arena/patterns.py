"""Attention patterns that are compared: all of the video transformer, and joint attention written out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import nn

from fieldcast.models.video_transformer.attention.axes import AlongAxes
from fieldcast.models.video_transformer.attention.choices import ATTENTIONS, AttentionOptions, build_mixer
from fieldcast.models.video_transformer.attention.mixer import Mixer

SUB_LAYERS = 4
EXPLICIT, JOINT, FACTORISED = "joint explicit", "joint", "factorised"
Grid = tuple[int, int, int]  # tokens along time, height, width


@dataclass(frozen=True)
class Pattern:
    """The mixers of a stack: as the video transformer makes them, or of joint attention with its weights in memory."""

    name: str
    explicit: bool = False

    def mixers(self, dim: int, heads: int, count: int = SUB_LAYERS) -> list[nn.Module]:
        """One mixer for each sub-layer, with the options that the video transformer has unless told otherwise."""
        if self.explicit:
            return [AlongAxes(dim, heads, "J", impl="eager") for _ in range(count)]
        options = AttentionOptions.model_validate({"attention": self.name})
        return [build_mixer(options, dim, heads, index) for index in range(count)]


PATTERNS: Mapping[str, Pattern] = {
    EXPLICIT: Pattern(EXPLICIT, explicit=True),
    **{name: Pattern(name) for name in sorted(ATTENTIONS, key=lambda name: name != JOINT)},
}


def weights_mb(mixers: list[nn.Module], grid: Grid) -> float:
    """Memory in MB of the attention weights of a sample in float32, with two more copies at the busiest moment."""
    held = [cast(Mixer, mixer).held(*grid) for mixer in mixers]
    return 4 * (sum(held) + 2 * max(held)) / 1e6


def macs(mixers: list[nn.Module], grid: Grid) -> int:
    """Multiply-adds of the mixers of a sample."""
    return sum(cast(Mixer, mixer).macs(*grid) for mixer in mixers)


def tokens(grid: Grid) -> int:
    """How many there are."""
    return math.prod(grid)
