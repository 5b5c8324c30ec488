"""Attention patterns of a trunk by name, with their options.

Importing this loads no torch; `build_pattern` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from fieldcast.models.layers.outputs import LearnedOptions

if TYPE_CHECKING:
    from torch import nn

AttentionName = Literal[
    "factorised",
    "joint",
    "divided",
    "axial",
    "window",
    "linear",
    "performer",
    "linformer",
    "nystrom",
    "pooled",
    "reformer",
    "clustered",
    "deformable",
]
Triple = tuple[PositiveInt, PositiveInt, PositiveInt]


class AttentionOptions(LearnedOptions):
    """Attention pattern and its options; options of one pattern are refused with the others."""

    attention: AttentionName = Field(
        default="factorised",
        description="factorised: sub-layers along time or space; joint: over all tokens; divided: TimeSformer blocks; "
        "axial: time, rows, columns; window, deformable: near tokens; the others: approximations of joint",
    )
    order: str = Field(
        default="TSST",
        pattern="^[TSHW]+$",
        max_length=64,
        description="factorised only: sub-layers, T time, S space, H rows, W columns",
    )
    window: Triple = Field(default=(4, 4, 4), description="window only: steps, rows and columns of tokens of a window")
    features: int = Field(default=256, ge=1, description="performer only: random features of a head")
    keys: int = Field(default=64, ge=1, description="linformer only: learned mixtures of all tokens")
    landmarks: int = Field(default=64, ge=1, description="nystrom only: means of segments of tokens")
    stride: int = Field(default=2, ge=1, description="pooled only: side of the squares of tokens that become one key")
    chunk: int = Field(default=64, ge=1, description="reformer only: like tokens that see one another at once")
    rounds: int = Field(default=4, ge=1, le=64, description="reformer and clustered only: random hashes")
    width: float = Field(default=1.0, gt=0, description="clustered only: bins of a hash; larger makes fewer clusters")
    points: int = Field(default=4, ge=1, description="deformable only: sampled points of a frame, scale and head")
    global_tokens: int = Field(
        default=0, ge=0, le=8, description="learned tokens beside each sub-layer's that see all and are seen by all"
    )

    @model_validator(mode="after")
    def _options_of_this_attention(self) -> Self:
        allowed = ATTENTIONS[self.attention].options
        for option in {option for spec in ATTENTIONS.values() for option in spec.options} - set(allowed):
            value = getattr(self, option)
            if value != type(self).model_fields[option].default:
                names = " or ".join(name for name, spec in ATTENTIONS.items() if option in spec.options)
                raise ValueError(f"{option} applies to attention: {names} only, got {value!r} with {self.attention}")
        return self


@dataclass(frozen=True)
class PatternSpec:
    """One attention pattern: its class, and the arguments of that class for the sub-layer at an index of the trunk."""

    meaning: str
    paper: str
    module: str  # in this package
    class_name: str
    arguments: Callable[[AttentionOptions, int], dict[str, Any]]
    options: tuple[str, ...] = ()


ATTENTIONS: dict[AttentionName, PatternSpec] = {
    "factorised": PatternSpec(
        "time or space, in the order of `order`",
        "Arnab et al. 2021, ViViT",
        "exact.axes",
        "AlongAxes",
        lambda options, index: {"along": options.order[index % len(options.order)]},
        ("order",),
    ),
    "joint": PatternSpec(
        "all tokens, exactly",
        "Vaswani et al. 2017, Attention Is All You Need",
        "exact.axes",
        "AlongAxes",
        lambda _, __: {"along": "J"},
    ),
    "divided": PatternSpec(
        "time, then space, with one MLP for both",
        "Bertasius et al. 2021, TimeSformer",
        "exact.axes",
        "AlongAxes",
        lambda _, index: {"along": "TS"[index % 2]},
    ),
    "axial": PatternSpec(
        "time, rows and columns in turn",
        "Ho et al. 2019, Axial Attention in Multidimensional Transformers",
        "exact.axes",
        "AlongAxes",
        lambda _, index: {"along": "THW"[index % 3]},
    ),
    "window": PatternSpec(
        "neighbours in space and time, in windows that every second sub-layer shifts by half",
        "Liu et al. 2022, Video Swin Transformer",
        "exact.window",
        "Window",
        lambda options, index: {"window": options.window, "shifted": index % 2 == 1},
        ("window",),
    ),
    "linear": PatternSpec(
        "all tokens, weighted by positive features of queries and keys",
        "Katharopoulos et al. 2020, Transformers are RNNs",
        "approximate.linear",
        "LinearAttention",
        lambda _, __: {},
    ),
    "performer": PatternSpec(
        "all tokens, weights estimated with random features",
        "Choromanski et al. 2021, Rethinking Attention with Performers",
        "approximate.performer",
        "Performer",
        lambda options, index: {"features": options.features, "seed": index},
        ("features",),
    ),
    "linformer": PatternSpec(
        "a few learned mixtures of all tokens",
        "Wang et al. 2020, Linformer",
        "approximate.linformer",
        "Linformer",
        lambda options, _: {"keys": options.keys},
        ("keys",),
    ),
    "nystrom": PatternSpec(
        "all tokens, by way of a few means of segments",
        "Xiong et al. 2021, Nyströmformer",
        "approximate.nystrom",
        "Nystrom",
        lambda options, _: {"landmarks": options.landmarks},
        ("landmarks",),
    ),
    "pooled": PatternSpec(
        "all tokens, pooled to squares",
        "Wang et al. 2021, Pyramid Vision Transformer",
        "approximate.pooled",
        "Pooled",
        lambda options, _: {"stride": options.stride},
        ("stride",),
    ),
    "reformer": PatternSpec(
        "tokens that a random hash finds alike, sorted into chunks",
        "Kitaev et al. 2020, Reformer",
        "approximate.reformer",
        "Reformer",
        lambda options, index: {"chunk": options.chunk, "rounds": options.rounds, "seed": index},
        ("chunk", "rounds"),
    ),
    "clustered": PatternSpec(
        "all tokens, asked once for each cluster of like queries",
        "Zheng et al. 2020, Adaptive Clustering Transformer",
        "approximate.clustered",
        "Clustered",
        lambda options, index: {"rounds": options.rounds, "width": options.width, "seed": index},
        ("rounds", "width"),
    ),
    "deformable": PatternSpec(
        "a few learned places in each frame",
        "Zhu et al. 2021, Deformable DETR",
        "approximate.deformable",
        "Deformable",
        lambda options, _: {"points": options.points},
        ("points",),
    ),
}

TURNS: tuple[AttentionName, ...] = ("factorised", "joint", "divided", "axial")  # those that can rotate queries and keys


def build_pattern(options: AttentionOptions, dim: int, heads: int, index: int) -> nn.Module:
    """Return the attention pattern of the sub-layer at `index`, with global tokens if the options have any."""
    spec = ATTENTIONS[options.attention]
    build = getattr(import_module(f"{__package__}.{spec.module}"), spec.class_name)
    pattern: nn.Module = build(dim, heads, **spec.arguments(options, index))
    if not options.global_tokens:
        return pattern
    add_globals = import_module(f"{__package__}.exact.global_tokens").GlobalTokens
    with_globals: nn.Module = add_globals(dim, heads, pattern, tokens=options.global_tokens)
    return with_globals
