"""Positions of tokens, as features to add to them or as angles that rotate their queries and keys.

Sines of a coordinate (Vaswani et al. 2017, section 3.5), tables that are learned at some places and read at others, and
rotation (Su et al. 2021, "RoFormer"), for which only differences of places matter.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

LONGEST = 10_000.0  # ratio of the longest to the shortest wavelength


def sines(values: Float[Tensor, " n"], features: int) -> Float[Tensor, "n d"]:
    """Return sines, then cosines, of values * LONGEST ** (-k / (features / 2)), in the values' precision."""
    half = features // 2
    rates = torch.exp(-math.log(LONGEST) * torch.arange(half, dtype=values.dtype, device=values.device) / half)
    angles = values[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sines_2d(rows: Float[Tensor, " h"], columns: Float[Tensor, " w"], dim: int) -> Float[Tensor, "h w d"]:
    """Return `sines` of the row, then of the column, half the features each."""
    by_row, by_column = sines(rows, dim // 2), sines(columns, dim // 2)
    return torch.cat([by_row[:, None].expand(-1, len(columns), -1), by_column[None].expand(len(rows), -1, -1)], dim=-1)


def sines_3d(
    times: Float[Tensor, " t"], rows: Float[Tensor, " h"], columns: Float[Tensor, " w"], dim: int
) -> Float[Tensor, "t h w d"]:
    """Return as many sines and cosines of the column, the row and the time; features that are left over are 0.

    Their rates go down to 1 / LONGEST itself, the last one included (dim at least 12). Beyer et al. 2022, "Better plain
    ViT baselines", have it for two dimensions.
    """
    count = dim // 6
    rates = torch.exp(-math.log(LONGEST) * torch.arange(count, dtype=times.dtype, device=times.device) / (count - 1))
    places = torch.stack(torch.meshgrid(times, rows, columns, indexing="ij"), dim=-1).flip(-1)
    angles: Float[Tensor, "t h w c k"] = places[..., None] * rates
    features = torch.stack([angles.sin(), angles.cos()], dim=-2)
    return functional.pad(rearrange(features, "t h w c both k -> t h w (c both k)"), (0, dim - 6 * count))


def resize(table: Float[Tensor, "h w d"], height: int, width: int) -> Float[Tensor, "{height} {width} d"]:
    """Return A table of a grid's cells for another number of cells over the same area: bicubic."""
    if table.shape[:2] == (height, width):
        return table
    planes = rearrange(table, "h w d -> 1 d h w")
    planes = functional.interpolate(planes, (height, width), mode="bicubic", align_corners=False)
    return rearrange(planes, "1 d h w -> h w d")


def read(table: Float[Tensor, "n d"], at: Float[Tensor, " n"], times: Float[Tensor, " m"]) -> Float[Tensor, "m d"]:
    """Return a table with rows at rising times `at`, read at other times: linear between rows, held outside."""
    if len(at) == 1:
        return table.expand(len(times), -1)
    after = torch.searchsorted(at, times).clamp(1, len(at) - 1)
    share = ((times - at[after - 1]) / (at[after] - at[after - 1])).clamp(0, 1)[:, None]
    return torch.lerp(table[after - 1], table[after], share.to(table.dtype))


def nearest(count: int, cells: int, device: torch.device) -> Float[Tensor, "{cells} {count}"]:
    """Return one-hot the part, of `count` equal parts of an axis, with the centre of each of its `cells`."""
    centres = (torch.arange(cells, device=device) + 0.5) * count / cells
    return functional.one_hot(centres.long(), count).float()


def nearest_time(at: Float[Tensor, " n"], times: Float[Tensor, " m"]) -> Float[Tensor, "m n"]:
    """Return one-hot the nearest of the times `at` for each time."""
    return functional.one_hot((times[:, None] - at).abs().argmin(dim=1), len(at)).float()


def angles_3d(places: Float[Tensor, "n 3"], head_dim: int) -> Float[Tensor, "n pair"]:
    """Return the angles of pairs of a head's features: a third of the pairs for time, row and column each.

    The fastest pair of an axis turns by 1 radian a step; pairs that are left over do not turn.
    """
    count = head_dim // 6
    rates = torch.exp(-math.log(LONGEST) * torch.arange(count, dtype=places.dtype, device=places.device) / count)
    angles = rearrange(places[..., None] * rates, "n c k -> n (c k)")
    return functional.pad(angles, (0, head_dim // 2 - 3 * count))


def rotate(heads: Float[Tensor, "b heads n d"], angles: Float[Tensor, "n pair"]) -> Float[Tensor, "b heads n d"]:
    """Return queries or keys with each pair of features (first half, second half) turned by its angle."""
    one, two = heads.chunk(2, dim=-1)
    cosine, sine = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    return torch.cat([one * cosine - two * sine, one * sine + two * cosine], dim=-1)
