"""Attention of clusters of like queries: one answer for all queries that a few random projections cannot tell apart.

Adaptive clustering: Zheng et al. 2020, "End-to-End Object Detection with Adaptive Clustering Transformer", section
3.2; the hash is that of Datar et al. 2004 for Euclidean distance. The number of clusters follows from the data.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fieldcast.models.video_transformer.attention.approximate.mixing import mix_all
from fieldcast.models.video_transformer.attention.core import (
    Allowed,
    Attention,
    Heads,
    attend,
    projection_macs,
    score_macs,
    split_heads,
)
from fieldcast.models.video_transformer.attention.interface import Grid, Valid, ValidTokens, flatten, flatten_valid

Codes = Int[Tensor, "b heads n rounds"]
Index = Int[Tensor, "b heads n"]  # cluster of each token, counted from 0 in each sample and head
LARGEST = 2**62  # numbers of clusters are packed into 64 bits
CALIBRATION_QUERIES = 512  # of a sample: their distances are taken in pairs


def hash_codes(
    points: Heads, directions: Float[Tensor, "rounds d"], offsets: Float[Tensor, " rounds"], width: Tensor
) -> Codes:
    """Return floor(points . directions / width + offsets), offsets from 0 to 1: near points have equal codes."""
    with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
        codes: Codes = (points.to(directions.dtype) @ directions.T / width + offsets).floor().long()
    return codes


def number_clusters(codes: Codes, valid: ValidTokens | None = None) -> tuple[Index, int]:
    """Return each token's cluster, one per tuple of codes in a sample and head, and the largest number of clusters.

    Tokens that are not valid are one cluster of their own.
    """
    b, heads, n, _ = codes.shape
    if valid is not None:
        lowest = codes.masked_fill(~valid[:, None, :, None], torch.iinfo(codes.dtype).max).amin(dim=(0, 1, 2))
        codes = (codes - lowest + 1).masked_fill(~valid[:, None, :, None], 0)
    else:
        codes = codes - codes.amin(dim=(0, 1, 2))
    spans = [span + 1 for span in codes.amax(dim=(0, 1, 2)).tolist()]
    numbers, most = torch.arange(b * heads, device=codes.device).view(b, heads, 1).expand(b, heads, n), b * heads
    for code, span in zip(codes.unbind(dim=-1), spans, strict=True):
        if most * span > LARGEST:
            numbers, code = (_rank(x) for x in (numbers, code))
            most = span = codes[..., 0].numel()
        numbers, most = numbers * span + code, most * span
    ranks = _rank(numbers)  # those of the first sample and head come first
    index = ranks - ranks.amin(dim=-1, keepdim=True)
    return index, int(index.max()) + 1


def _rank(numbers: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    ranks: Tensor = torch.unique(numbers, return_inverse=True)[1]
    return ranks


def cluster_sums(points: Heads, index: Index, clusters: int) -> Float[Tensor, "b heads k d"]:
    """Return sums of the points of each cluster."""
    b, heads, _, d = points.shape
    sums = points.new_zeros(b * heads * clusters, d).index_add(0, _rows(index, clusters), points.flatten(0, 2))
    return sums.view(b, heads, clusters, d)


def _rows(index: Index, clusters: int) -> Int[Tensor, " b*heads*n"]:
    b, heads, _ = index.shape
    first = torch.arange(b * heads, device=index.device).view(b, heads, 1) * clusters
    return (first + index).flatten()


def attend_in_clusters(
    query: Heads,
    key: Float[Tensor, "b heads m d"],
    value: Float[Tensor, "b heads m d"],
    index: Index,
    clusters: int,
    *,
    allowed: Allowed | None = None,
) -> Heads:
    """Return the mix of the mean query of each cluster, for all of its queries; `index` assigns the clusters."""
    sizes = cluster_sums(torch.ones_like(query[..., :1]), index, clusters)
    means = cluster_sums(query, index, clusters) / sizes.clamp(min=1)
    read = attend(means, key, value, allowed=allowed)
    return read.flatten(0, 2)[_rows(index, clusters)].view_as(query)


def typical_distance(query: Heads) -> Tensor:
    """Return the median distance of two queries of a sample and head, among pairs that differ.

    Raises ValueError where no two do.
    """
    few = query[:, :, :: -(-query.shape[2] // CALIBRATION_QUERIES)].float()
    distance = torch.cdist(few, few, compute_mode="donot_use_mm_for_euclid_dist")
    apart = distance[distance > 1e-5 * distance.max()]
    if not len(apart):
        raise ValueError("all queries are the same: no width can be found")
    return apart.median()


class Clustered(nn.Module):
    """Every token's mix of all, asked for once for each cluster of like queries of a head.

    Queries are in one cluster where all of `rounds` projections fall into the same bins of `width`; fewer rounds and a
    larger width make fewer clusters. Projections are drawn once, from `seed`, and saved with the weights, as is a
    calibrated width; all heads share them.
    """

    directions: Tensor
    offsets: Tensor
    width: Tensor

    def __init__(self, dim: int, heads: int, *, rounds: int = 8, width: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        if rounds < 1 or width <= 0:
            raise ValueError(f"rounds must be at least 1 and width above 0, got {rounds} and {width}")
        self.dim, self.rounds = dim, rounds
        self.attention = Attention(dim, heads)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("directions", torch.randn(rounds, dim // heads, generator=generator))
        self.register_buffer("offsets", torch.rand(rounds, generator=generator))
        self.register_buffer("width", torch.tensor(width))

    def forward(self, grid: Grid, valid: Valid | None = None) -> Grid:
        """Return the grid, mixed over all its tokens."""
        return mix_all(self.attention, grid, valid, self._mix)

    @torch.no_grad()
    def calibrate(self, grid: Grid, ratio: float) -> None:
        """Set the width to `ratio` of the distance that is typical of two different queries of this grid."""
        self.width.copy_(ratio * typical_distance(self._query(grid)))

    @torch.no_grad()
    def count_clusters(self, grid: Grid, valid: Valid | None = None) -> Int[Tensor, "b heads"]:
        """Return the number of clusters of queries in each sample and head."""
        index, _ = self._find(self._query(grid), flatten_valid(valid))
        return index.amax(dim=-1) + 1

    def macs(self, t: int, h: int, w: int, clusters: int | None = None) -> int:
        """Return 4 N d^2 + N d rounds + 2 K N d for K clusters of queries, the most of any head.

        Without `clusters` every token is one of its own: the worst case.
        """
        tokens = t * h * w
        queries = tokens if clusters is None else clusters
        hashed = tokens * self.dim * self.rounds
        return projection_macs(tokens, self.dim) + hashed + score_macs(queries, tokens, self.dim)

    def held(self, t: int, h: int, w: int) -> int:
        """Return the number of sums, means and mixes of queries in the worst case: clusters of one token each."""
        return 3 * t * h * w * self.dim

    def _query(self, grid: Grid) -> Float[Tensor, "b heads n d_head"]:
        return split_heads(self.attention.query(flatten(grid)), self.attention.heads)

    def _find(self, points: Heads, valid: ValidTokens | None) -> tuple[Index, int]:
        return number_clusters(hash_codes(points, self.directions, self.offsets, self.width), valid)

    def _mix(self, query: Heads, key: Heads, value: Heads, valid: ValidTokens | None) -> Heads:
        allowed = None if valid is None else valid[:, None, None]
        index, clusters = self._find(query, valid)
        return attend_in_clusters(query, key, value, index, clusters, allowed=allowed)
