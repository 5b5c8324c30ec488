"""Softmax attention estimated from its rows and columns at a few landmarks.

Xiong et al. 2021, "Nystromformer", equations 13 and 14 and algorithm 1; the skip of values here convolves over the
space-time grid.
"""

from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.video_transformer.attention.approximate.mixing import mix_all
from fieldcast.models.video_transformer.attention.core import (
    Attention,
    Heads,
    attend,
    join_heads,
    projection_macs,
    score_macs,
    split_heads,
)
from fieldcast.models.video_transformer.attention.interface import Grid, Valid, ValidTokens

Square = Float[Tensor, "*any m m"]
Size = tuple[int, int, int]
ITERATIONS = 6  # of the pseudo-inverse, as in the paper
KERNEL = 3  # side of the convolution of values, along time, rows and columns


def segments(tokens: int, landmarks: int) -> tuple[int, int]:
    """Return the number of segments of neighbouring tokens, at most `landmarks`, and the length of all but the last."""
    length = -(-tokens // landmarks)
    return -(-tokens // length), length


def segment_landmarks(heads: Heads, landmarks: int, valid: ValidTokens | None = None) -> Float[Tensor, "b heads m d"]:
    """Return the means of the valid tokens of every segment; 0 without any."""
    mask = heads.new_ones(1, heads.shape[-2]) if valid is None else valid.to(heads.dtype)
    total = _segment_sums(heads * mask[:, None, :, None], landmarks)
    members = _segment_sums(mask[:, None, :, None], landmarks)
    return total / members.clamp(min=1)


def segment_valid(valid: ValidTokens, landmarks: int) -> Bool[Tensor, "b m"]:
    """Return true for segments with any valid token."""
    return _segment_sums(valid[:, None, :, None].float(), landmarks)[:, 0, :, 0] > 0


def _segment_sums(heads: Heads, landmarks: int) -> Float[Tensor, "b heads m d"]:
    count, length = segments(heads.shape[-2], landmarks)
    padded = functional.pad(heads, (0, 0, 0, count * length - heads.shape[-2]))
    return rearrange(padded, "b heads (m n) d -> b heads m n d", m=count).sum(dim=-2)


def landmark_weights(query: Heads, key: Heads, there: Bool[Tensor, "b m"] | None) -> Float[Tensor, "b heads m m"]:
    """Return attention among landmarks, in float32 at least; those that are not `there` attend to themselves alone."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    logits: Tensor = query.to(dtype) @ key.to(dtype).transpose(-2, -1) * query.shape[-1] ** -0.5
    if there is None:
        return logits.softmax(dim=-1)
    weights = logits.masked_fill(~there[:, None, None], torch.finfo(dtype).min).softmax(dim=-1)
    alone = torch.eye(logits.shape[-1], dtype=dtype, device=logits.device)
    return torch.where(there[:, None, :, None], weights, alone)


def iterate_inverse(weights: Square, iterations: int) -> Square:
    """Return the pseudo-inverse of matrices whose rows sum to 1, by a third-order iteration (equation 11)."""
    identity = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    columns = weights.sum(dim=-2).amax(dim=-1)[..., None, None]  # the 1-norm; the rows' is 1
    inverse = weights.transpose(-2, -1) / columns
    for _ in range(iterations):
        product = weights @ inverse
        inverse = 0.25 * inverse @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product)))
    return inverse


class Nystrom(nn.Module):
    """Every token's mix of all, through landmarks, plus a depth-wise convolution of values that starts at zero."""

    def __init__(self, dim: int, heads: int, *, landmarks: int = 64) -> None:
        super().__init__()
        if landmarks < 1:
            raise ValueError(f"landmarks must be at least 1, got {landmarks}")
        self.dim, self.landmarks = dim, landmarks
        self.attention = Attention(dim, heads)
        self.skip = nn.Conv3d(dim, dim, KERNEL, padding="same", groups=dim, bias=False)
        nn.init.zeros_(self.skip.weight)

    def forward(self, grid: Grid, valid: Valid | None = None) -> Grid:
        """Return the grid, mixed over all its tokens."""
        _, t, h, w, _ = grid.shape
        return mix_all(self.attention, grid, valid, partial(self._mix, size=(t, h, w)))

    def macs(self, t: int, h: int, w: int) -> int:
        """Return 4 N d^2 + 4 N m d + 2 m^2 d + 4 heads m^3 an iteration + d N a kernel's cells, for m landmarks."""
        tokens = t * h * w
        m, _ = segments(tokens, self.landmarks)
        among = score_macs(m, m, self.dim) + 4 * ITERATIONS * self.attention.heads * m**3
        return (
            projection_macs(tokens, self.dim)
            + 2 * score_macs(tokens, m, self.dim)
            + among
            + tokens * self.skip.weight.numel()
        )

    def held(self, t: int, h: int, w: int) -> int:
        """Return the numbers of skip, landmarks and their mixes, their weights, and five matrices of an iteration."""
        m, _ = segments(t * h * w, self.landmarks)
        return (2 * t * h * w + 4 * m) * self.dim + self.attention.heads * m**2 * (5 * ITERATIONS + 3)

    def _mix(self, query: Heads, key: Heads, value: Heads, valid: ValidTokens | None, *, size: Size) -> Heads:
        allowed = there = None
        if valid is not None:
            value = value.masked_fill(~valid[:, None, :, None], 0.0)
            allowed, there = valid[:, None, None], segment_valid(valid, self.landmarks)
        query_marks = segment_landmarks(query, self.landmarks, valid)
        key_marks = segment_landmarks(key, self.landmarks, valid)
        read = attend(query_marks, key, value, allowed=allowed)
        with torch.autocast(value.device.type, enabled=False):
            weights = landmark_weights(query_marks, key_marks, there)
            spread = (iterate_inverse(weights, ITERATIONS) @ read.to(weights.dtype)).to(value.dtype)
        mixed = attend(query, key_marks, spread, allowed=None if there is None else there[:, None, None])
        return mixed + self._skip(value, size)

    def _skip(self, value: Heads, size: Size) -> Heads:
        t, h, w = size
        volume = rearrange(join_heads(value), "b (t h w) d -> b d t h w", t=t, h=h, w=w)
        skipped = rearrange(self.skip(volume), "b d t h w -> b (t h w) d")
        return split_heads(skipped, self.attention.heads)
