"""Options of the video transformer."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fieldcast.models.video_transformer.attention.patterns import TURNS, AttentionOptions

ONLY: dict[str, tuple[str, tuple[str, ...]]] = {  # option: the other option it needs, and that one's values
    "future": ("arch", ("fill_in",)),
    "decode": ("arch", ("encoder_decoder",)),
    "decoder_layers": ("arch", ("encoder_decoder",)),
    "query_attention": ("arch", ("encoder_decoder",)),
    "deep_supervision": ("arch", ("encoder_decoder",)),
    "channels": ("stem", ("conv",)),
    "positions_grid": ("positions", ("learned", "onehot")),
}


class VideoTransformerOptions(AttentionOptions):
    """Size of the transformer, the kind of its attention and positions, and how it comes from history to forecast."""

    arch: Literal["fill_in", "encoder_decoder"] = Field(
        default="fill_in",
        description="fill_in: history and future in one grid of tokens; encoder_decoder: the future reads the history",
    )
    future: Literal["queries", "direct"] = Field(
        default="queries",
        description="fill_in only: queries: tokens of their own; direct: lead k is read from history step k of as many",
    )
    decode: Literal["queries", "autoregressive"] = Field(
        default="queries",
        description="encoder_decoder only: queries: all leads at once; autoregressive: one after the other",
    )
    query_attention: Literal["factorised", "none"] = Field(
        default="factorised",
        description="decode queries only: factorised: queries see one another along time and space; none: each alone",
    )
    decoder_layers: int = Field(default=2, ge=1, le=256, description="encoder_decoder only: layers of the decoder")
    deep_supervision: bool = Field(
        default=False, description="decode queries only: in training forecasts after every decoder layer count alike"
    )
    positions: Literal["sines", "sincos3d", "learned", "onehot", "rotary3d", "none"] = Field(
        default="sines",
        description="sines: fixed in space, network of minutes in time; sincos3d: fixed in both; learned, onehot: "
        "tables; rotary3d: queries and keys turned",
    )
    positions_grid: tuple[int, int] = Field(
        default=(8, 8),
        description="learned and onehot only: rows and columns of the tables, whatever the grid",
    )
    dim: int = Field(default=96, ge=4, description="features of a token: a multiple of 4 and of heads")
    heads: int = Field(default=4, ge=1, description="attention heads")
    layers: int = Field(
        default=1, ge=1, le=256, description="layers; one is four sub-layers (as many as order has), or a block"
    )
    mlp_ratio: float = Field(
        default=4.0, gt=0, le=100, description="hidden features of the SwiGLU per feature of a token"
    )
    patch: int = Field(default=8, ge=1, description="side of the squares of cells that become one token")
    tubelet: int = Field(default=1, ge=1, description="history frames that become one token together")
    stem: Literal["conv", "patch"] = Field(
        default="conv",
        description="conv: convolutions that overlap, from cells to tokens and back; patch: each patch by itself",
    )
    channels: int = Field(
        default=8, ge=1, description="conv only: channels at full resolution; each coarser level adds as many"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of features dropped in each branch")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="share of samples that skip a branch, last sub-layer")
    checkpoint_activations: bool = Field(
        default=False, description="less memory in training: each sub-layer is computed again in the backward pass"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dim % 4 or self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of 4 and of heads ({self.heads}), got {self.dim}")
        if min(self.positions_grid) < 1:
            raise ValueError(f"positions_grid must be at least 1 by 1, got {self.positions_grid}")
        if self.positions == "sincos3d" and self.dim < 12:
            raise ValueError(f"positions: sincos3d needs a dim of at least 12, got {self.dim}")
        return self

    @model_validator(mode="after")
    def _options_with_others_only(self) -> Self:
        for option, (other, values) in ONLY.items():
            value, chosen = getattr(self, option), getattr(self, other)
            if value != type(self).model_fields[option].default and chosen not in values:
                raise ValueError(
                    f"{option} applies to {other}: {' or '.join(values)} only, got {value!r} with {chosen}"
                )
        if self.future == "direct" and self.tubelet > 1:
            raise ValueError(f"future: direct needs a tubelet of 1, got {self.tubelet}")
        if self.autoregressive and self.query_attention != "factorised":
            raise ValueError("query_attention applies to decode: queries only, got 'none' with autoregressive")
        if self.autoregressive and self.deep_supervision:
            raise ValueError("deep_supervision applies to decode: queries only, got true with autoregressive")
        if self.autoregressive and self.output != "point":
            raise ValueError(f"decode: autoregressive gives output: point only, got {self.output}")
        if (self.autoregressive or self.deep_supervision) and (self.frame, self.base) != ("fixed", "history"):
            raise ValueError(
                "decode: autoregressive and deep_supervision apply to frame: fixed with base: history only, got "
                f"{self.frame} with {self.base}"
            )
        return self

    @model_validator(mode="after")
    def _rotation_fits(self) -> Self:
        if self.positions != "rotary3d":
            return self
        if self.attention not in TURNS or self.global_tokens or self.arch != "fill_in":
            raise ValueError(
                f"positions: rotary3d applies to arch: fill_in with attention: {', '.join(TURNS)} and no global "
                f"tokens, got {self.arch} with {self.attention} and {self.global_tokens}"
            )
        width = self.dim // self.heads
        if width < 6 or width % 2:
            raise ValueError(
                f"positions: rotary3d needs heads of an even width of at least 6 (dim / heads), got {width}"
            )
        return self

    @property
    def autoregressive(self) -> bool:
        """Return True if each lead's forecast is an input of the next."""
        return self.decode == "autoregressive"
