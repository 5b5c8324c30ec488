"""Fields larger than a network was trained on, by tiles whose outputs are blended where they overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Side of square tiles, and how many cells neighbours share at least."""

    cells: int
    overlap: int


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """Return first cells of tiles that cover `size` cells, neighbours sharing at least `overlap` of them."""
    if tile >= size:
        return [0]
    count = -(-(size - overlap) // (tile - overlap))  # rounded up
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def ramp(tile: int, overlap: int) -> Tensor:
    """Return the weight of a tile's cells along one axis: rising over `overlap` cells from either edge, 1 between."""
    cells = torch.arange(tile)
    distance = torch.minimum(cells, cells.flip(0)) + 1
    return (distance / (overlap + 1)).clamp(max=1.0)


def by_tiles(model: Callable[[Tensor], Tensor], inputs: Tensor, tiles: Tiles) -> Tensor:
    """Return the output (..., h, w) of a model for `inputs` (..., h, w), put together from its outputs for tiles.

    An ensemble's noise is the same in every tile, so that a member is one field.
    """
    h, w = inputs.shape[-2:]
    overlap = min(tiles.overlap, tiles.cells - 1)
    tile_y, tile_x = min(tiles.cells, h), min(tiles.cells, w)
    weight = (ramp(tile_y, overlap)[:, None] * ramp(tile_x, overlap)[None, :]).to(inputs)
    total: Tensor | None = None
    weights = inputs.new_zeros(h, w)
    for y in tile_starts(h, tile_y, overlap):
        for x in tile_starts(w, tile_x, overlap):
            here = (..., slice(y, y + tile_y), slice(x, x + tile_x))
            part = model(inputs[here])
            if total is None:
                total = part.new_zeros(*part.shape[:-2], h, w)
            total[here] += part * weight
            weights[here] += weight
    assert total is not None
    return total / weights
