"""The attention patterns of a trunk by name: what each is made of, and which options are its own.

Reading this loads no torch; `build_mixer` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from fieldcast.models.layers.outputs import OutputOptions

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
Triple = tuple[int, int, int]


class AttentionOptions(OutputOptions):
    """Kind of attention, with what is needed to build it; options of one kind are refused with the others."""

    attention: AttentionName = Field(
        default="factorised",
        description="factorised: sub-layers along time or space; joint: over all tokens; divided: TimeSformer blocks; "
        "axial: time, rows, columns; window, deformable: near tokens; the others: approximations of joint",
    )
    order: str = Field(
        default="TSST",
        pattern="^[TSHW]+$",
        description="factorised only: sub-layers, T time, S space, H rows, W columns",
    )
    window: Triple = Field(default=(4, 4, 4), description="window only: steps, rows and columns of tokens of a window")
    features: int = Field(default=256, ge=1, description="performer only: random features of a head")
    keys: int = Field(default=64, ge=1, description="linformer only: learned mixtures of all tokens")
    landmarks: int = Field(default=64, ge=1, description="nystrom only: means of segments of tokens")
    stride: int = Field(default=2, ge=1, description="pooled only: side of the squares of tokens that become one key")
    chunk: int = Field(default=64, ge=1, description="reformer only: like tokens that see one another at once")
    rounds: int = Field(default=4, ge=1, description="reformer and clustered only: random hashes")
    width: float = Field(default=1.0, gt=0, description="clustered only: bins of a hash; larger makes fewer clusters")
    points: int = Field(default=4, ge=1, description="deformable only: sampled points of a frame, scale and head")
    global_tokens: int = Field(
        default=0, ge=0, le=8, description="learned tokens beside each sub-layer's that see all and are seen by all"
    )

    @model_validator(mode="after")
    def _options_of_this_attention(self) -> Self:
        own = ATTENTIONS[self.attention].options
        for option in {option for choice in ATTENTIONS.values() for option in choice.options} - set(own):
            value = getattr(self, option)
            if value != type(self).model_fields[option].default:
                names = " or ".join(name for name, choice in ATTENTIONS.items() if option in choice.options)
                raise ValueError(f"{option} applies to attention: {names} only, got {value!r} with {self.attention}")
        return self


@dataclass(frozen=True)
class Choice:
    """One attention pattern: its class, and the arguments of that for the sub-layer at an index of the trunk."""

    meaning: str
    paper: str
    module: str
    class_name: str
    arguments: Callable[[AttentionOptions, int], dict[str, Any]]
    options: tuple[str, ...] = ()


ATTENTIONS: dict[AttentionName, Choice] = {
    "factorised": Choice(
        "time or space, in the order of `order`",
        "Arnab et al. 2021, ViViT",
        "fieldcast.models.video_transformer.attention.axes",
        "AlongAxes",
        lambda options, index: {"along": options.order[index % len(options.order)]},
        ("order",),
    ),
    "joint": Choice(
        "all tokens, exactly",
        "Vaswani et al. 2017, Attention Is All You Need",
        "fieldcast.models.video_transformer.attention.axes",
        "AlongAxes",
        lambda _, __: {"along": "J"},
    ),
    "divided": Choice(
        "time, then space, with one MLP for both",
        "Bertasius et al. 2021, TimeSformer",
        "fieldcast.models.video_transformer.attention.axes",
        "AlongAxes",
        lambda _, index: {"along": "TS"[index % 2]},
    ),
    "axial": Choice(
        "time, rows and columns in turn",
        "Ho et al. 2019, Axial Attention in Multidimensional Transformers",
        "fieldcast.models.video_transformer.attention.axes",
        "AlongAxes",
        lambda _, index: {"along": "THW"[index % 3]},
    ),
    "window": Choice(
        "neighbours in space and time, in windows that every second sub-layer shifts by half",
        "Liu et al. 2022, Video Swin Transformer",
        "fieldcast.models.video_transformer.attention.window",
        "Window",
        lambda options, index: {"window": options.window, "pattern": ("local", "shifted")[index % 2]},
        ("window",),
    ),
    "linear": Choice(
        "all tokens, weighted by positive features of queries and keys",
        "Katharopoulos et al. 2020, Transformers are RNNs",
        "fieldcast.models.video_transformer.attention.linear",
        "LinearAttention",
        lambda _, __: {},
    ),
    "performer": Choice(
        "all tokens, weights estimated with random features",
        "Choromanski et al. 2021, Rethinking Attention with Performers",
        "fieldcast.models.video_transformer.attention.performer",
        "Performer",
        lambda options, index: {"features": options.features, "seed": index},
        ("features",),
    ),
    "linformer": Choice(
        "a few learned mixtures of all tokens",
        "Wang et al. 2020, Linformer",
        "fieldcast.models.video_transformer.attention.linformer",
        "Linformer",
        lambda options, _: {"keys": options.keys},
        ("keys",),
    ),
    "nystrom": Choice(
        "all tokens, by way of a few means of segments",
        "Xiong et al. 2021, Nyströmformer",
        "fieldcast.models.video_transformer.attention.nystrom",
        "Nystrom",
        lambda options, _: {"landmarks": options.landmarks},
        ("landmarks",),
    ),
    "pooled": Choice(
        "all tokens, pooled to squares",
        "Wang et al. 2021, Pyramid Vision Transformer",
        "fieldcast.models.video_transformer.attention.pooled",
        "Pooled",
        lambda options, _: {"stride": options.stride},
        ("stride",),
    ),
    "reformer": Choice(
        "tokens that a random hash finds alike, sorted into chunks",
        "Kitaev et al. 2020, Reformer",
        "fieldcast.models.video_transformer.attention.reformer",
        "Reformer",
        lambda options, index: {"chunk": options.chunk, "rounds": options.rounds, "seed": index},
        ("chunk", "rounds"),
    ),
    "clustered": Choice(
        "all tokens, asked once for each cluster of like queries",
        "Zheng et al. 2020, Adaptive Clustering Transformer",
        "fieldcast.models.video_transformer.attention.clustered",
        "Clustered",
        lambda options, index: {"rounds": options.rounds, "width": options.width, "seed": index},
        ("rounds", "width"),
    ),
    "deformable": Choice(
        "a few learned places in each frame",
        "Zhu et al. 2021, Deformable DETR",
        "fieldcast.models.video_transformer.attention.deformable",
        "Deformable",
        lambda options, _: {"points": options.points},
        ("points",),
    ),
}

TURNS: tuple[AttentionName, ...] = ("factorised", "joint", "divided", "axial")  # those whose mixers can rotate


def build_mixer(options: AttentionOptions, dim: int, heads: int, index: int) -> nn.Module:
    """The mixer (`Mixer`) of the sub-layer at `index`, with global tokens where asked for."""
    choice = ATTENTIONS[options.attention]
    made = getattr(import_module(choice.module), choice.class_name)
    mixer: nn.Module = made(dim, heads, **choice.arguments(options, index))
    if not options.global_tokens:
        return mixer
    with_globals = import_module("fieldcast.models.video_transformer.attention.global_tokens").GlobalTokens
    wrapped: nn.Module = with_globals(dim, heads, mixer=mixer, tokens=options.global_tokens)
    return wrapped
