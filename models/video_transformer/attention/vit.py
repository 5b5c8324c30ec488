"""The plain vision transformer on frames or short stacks of frames, as pretrained encoders have it.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", and Arnab et al. 2021, "ViViT", model 1, which attends to all
tokens of all slots at once. Weights come from elsewhere: `inflate` fits them to other channels and to stacks.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from fieldcast.models.video_transformer.attention.core import Attention
from fieldcast.models.video_transformer.attention.positions import resize


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of a `VisionEncoder`."""

    channels: int
    dim: int
    heads: int
    layers: int
    hidden: int  # of the MLPs
    patch: int
    rows: int  # of the table of positions
    columns: int
    frames: int = 1  # that become one slot
    slots: int = 1  # that attend to each other; 1: every slot is encoded by itself
    eps: float = 1e-12  # of the layer norms
    gelu: Literal["none", "tanh"] = "none"  # its approximation


class PlainBlock(nn.Module):
    """x + attention(LN x), then x + MLP(LN x) with a GELU."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        dim = shape.dim
        self.attention_norm, self.attention = nn.LayerNorm(dim, shape.eps), Attention(dim, shape.heads)
        self.mlp_norm = nn.LayerNorm(dim, shape.eps)
        self.mlp = nn.Sequential(
            nn.Linear(dim, shape.hidden), nn.GELU(approximate=shape.gelu), nn.Linear(shape.hidden, dim)
        )

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Return tokens mixed, then each transformed."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        mlp: Tensor = self.mlp(self.mlp_norm(tokens))
        return tokens + mlp


class VisionEncoder(nn.Module):
    """Patches of each slot of frames, and a class token before them, through plain blocks and a layer norm."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.shape = shape
        kernel = (shape.frames, shape.patch, shape.patch)
        self.embedding = nn.Conv3d(shape.channels, shape.dim, kernel, stride=kernel)
        self.class_token = nn.Parameter(torch.zeros(shape.dim))
        self.class_position = nn.Parameter(torch.zeros(shape.dim))
        self.positions = nn.Parameter(torch.zeros(shape.slots, shape.rows, shape.columns, shape.dim))
        self.blocks = nn.Sequential(*(PlainBlock(shape) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.dim, shape.eps)

    def forward(self, video: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b s n d"]:
        """Return features of the class token and the patches, row by row, for every slot; attending slots are one.

        Frames and cells that do not fill a slot or a patch are cut off. Positions are resized to the grid. Raises
        ValueError for another number of slots than those that attend to each other.
        """
        patches = rearrange(self.embedding(rearrange(video, "b t c h w -> b c t h w")), "b d s h w -> b s h w d")
        _, slots, height, width, _ = patches.shape
        if self.shape.slots not in (1, slots):
            raise ValueError(f"video must make {self.shape.slots} slots of {self.shape.frames} frames, got {slots}")
        together = self.shape.slots
        tokens = patches + torch.stack([resize(table, height, width) for table in self.positions])
        tokens = rearrange(tokens, "b (s z) h w d -> (b s) (z h w) d", z=together)
        first = (self.class_token + self.class_position).expand(len(tokens), 1, -1)
        features: Tensor = self.norm(self.blocks(torch.cat([first, tokens], dim=1)))
        return rearrange(features, "(b s) n d -> b s n d", b=len(video))
