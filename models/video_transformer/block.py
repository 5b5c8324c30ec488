"""The pieces of the trunk: pre-norm residual branches of attention and SwiGLU."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.video_transformer.attention import ALONG, Attention, Tokens, along_space, along_time
from models.video_transformer.options import VideoTransformerOptions


def drop_path(branch: Tokens, share: float, *, training: bool) -> Tokens:
    """The branch with whole samples set to 0, the others scaled up (Huang et al. 2016); unchanged outside training."""
    if not training or share == 0:
        return branch
    keep: Tensor = functional.dropout(torch.ones_like(branch[:, :1, :1, :1]), share)
    return branch * keep


class SwiGLU(nn.Module):
    """W3(silu(W1 x) * W2 x), without biases (Shazeer 2020)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, tokens: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        """Each token's own transformation."""
        out: Tensor = self.down(functional.silu(self.gate(tokens)) * self.up(tokens))
        return out


class Branch(nn.Module):
    """What becomes of a residual branch in training: dropout of features, drop-path of samples."""

    def __init__(self, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.dropout, self.drop_path = dropout, drop_path

    def forward(self, branch: Tokens) -> Tokens:
        """The branch, thinned in training, unchanged otherwise."""
        return drop_path(
            functional.dropout(branch, self.dropout, self.training), self.drop_path, training=self.training
        )


class SubLayer(nn.Module):
    """x + attention(LN x) along one direction of `ALONG`, then x + SwiGLU(LN x)."""

    def __init__(self, options: VideoTransformerOptions, along: str, drop_path: float) -> None:
        super().__init__()
        dim = options.dim
        self.along = ALONG[along]
        self.attention_norm, self.attention = nn.LayerNorm(dim), Attention(dim, options.heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), SwiGLU(dim, round(options.mlp_ratio * dim))
        self.thin = Branch(options.dropout, drop_path)

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens mixed along the direction, then each transformed."""
        tokens = tokens + self.thin(self.along(self.attention, self.attention_norm(tokens)))
        mlp: Tokens = self.thin(self.mlp(self.mlp_norm(tokens)))
        return tokens + mlp


class DividedBlock(nn.Module):
    """Attention along time, then space, then one MLP: the block of TimeSformer (Bertasius et al. 2021).

    The linear after the temporal attention starts at zero, so that mixing along time fades in.
    """

    def __init__(self, options: VideoTransformerOptions, drop_path: float) -> None:
        super().__init__()
        dim = options.dim
        self.time_norm, self.time_attention = nn.LayerNorm(dim), Attention(dim, options.heads)
        self.time_out = nn.Linear(dim, dim)
        self.space_norm, self.space_attention = nn.LayerNorm(dim), Attention(dim, options.heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp: nn.Module = SwiGLU(dim, round(options.mlp_ratio * dim))
        self.thin = Branch(options.dropout, drop_path)
        nn.init.zeros_(self.time_out.weight)
        nn.init.zeros_(self.time_out.bias)

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens mixed along time, then space, then each transformed."""
        tokens = tokens + self.thin(self.time_out(along_time(self.time_attention, self.time_norm(tokens))))
        tokens = tokens + self.thin(along_space(self.space_attention, self.space_norm(tokens)))
        mlp: Tokens = self.thin(self.mlp(self.mlp_norm(tokens)))
        return tokens + mlp


def rising(share: float, count: int) -> list[float]:
    """Drop-path shares from 0 for the first to `share` for the last of `count` sub-layers."""
    return [share * index / max(count - 1, 1) for index in range(count)]


def factorised_trunk(options: VideoTransformerOptions) -> nn.Sequential:
    """Layers of sub-layers along time or space, in the order of `options.order`."""
    along = options.order * options.layers
    return nn.Sequential(*map(SubLayer, [options] * len(along), along, rising(options.drop_path, len(along))))


def joint_trunk(options: VideoTransformerOptions) -> nn.Sequential:
    """As many sub-layers as the factorised trunk, so as many weights, each over all tokens."""
    along = "J" * len(options.order) * options.layers
    return nn.Sequential(*map(SubLayer, [options] * len(along), along, rising(options.drop_path, len(along))))


def divided_trunk(options: VideoTransformerOptions) -> nn.Sequential:
    """One divided block a layer."""
    return nn.Sequential(*(DividedBlock(options, share) for share in rising(options.drop_path, options.layers)))


TRUNKS = {"factorised": factorised_trunk, "joint": joint_trunk, "divided": divided_trunk}
