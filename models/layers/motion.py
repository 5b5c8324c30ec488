"""Motion of fields in torch: optical flow of the latest frames, and paths of what moves along it.

The flow is a multi-scale Lucas-Kanade (Lucas and Kanade 1981, Bouguet 2001): at every cell the displacement that best
maps each frame to the next, over a Gaussian window and all pairs of frames, from coarse grids to fine ones. Where
little can be seen (dry areas, edges along the motion) the flow is that of its surroundings, weighted by how well these
see it. Fields move by backward semi-Lagrangian extrapolation with a constant flow (Germann and Zawadzki 2002).

What enters over the border is not known. One rule for all references: beyond the grid, and beyond what was ever seen,
a field goes on with the values of its edge, so that no rain stands where it also moves away from.

Tensor letters: n steps, `places` are (x, y) in cells.
"""

import hashlib
import math
from collections.abc import Hashable
from functools import lru_cache
from threading import Lock
from typing import Literal

import numpy as np
import torch
from cachetools import LRUCache
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fieldcast.models.layers.motion_options import MotionOptions

Array32 = NDArray[np.float32]
Transform = Literal["db", "identity"]

COARSEST, FINEST = 16, 256  # cells of the shorter side of the coarsest grid, of the longer side of the finest one
WINDOW, SMOOTH = 3.0, 10.0  # standard deviation of the window and of the smoothing of the flow, in cells of each grid
ROUNDS = 3  # of refining the flow on each grid
FAINT = 0.02  # of the strongest gradients: what is weaker hardly moves the flow
FAR = 0.01  # weight of the mean flow, where no cell within reach sees any
LIMIT = 2.0  # cells that one round may add
REACH = (2.0, 8.0, 32.0)  # cells over which the edge of what was seen is carried on, one after the other
KEPT_BYTES = 2**27  # of flows
GAUSSIANS = 32  # blurs whose weights are kept

Fields = Float[Tensor, "b c h w"]
Flow = Float[Tensor, "b 2 h w"]
Places = Float[Tensor, "b n 2 h w"]

_FLOWS: LRUCache[Hashable, Tensor] = LRUCache(KEPT_BYTES, getsizeof=lambda flow: int(flow.nbytes))
_FLOWS_LOCK = Lock()


def motion(recent: Array32, options: MotionOptions) -> Flow:
    """Return the flow, in cells a step, of the latest frames of (b, t, h, w) with NaN; 0 where nothing moves.

    The flow of the same frames is computed once in a process, as long as the latest fit into `KEPT_BYTES`: a network
    and its base ask for the same, and so do the fit of a base and the samples of a training.
    """
    frames = np.ascontiguousarray(recent[:, -options.frames :])
    keys: list[Hashable] = [
        (options.transform, options.dry_below, frames.shape[1:], digest(sample)) for sample in frames
    ]
    with _FLOWS_LOCK:
        known = {key: _FLOWS[key] for key in keys if key in _FLOWS}
    new = [i for i, key in enumerate(keys) if key not in known]
    if new:
        flows = optical_flow(scaled(torch.from_numpy(frames[new]), options.transform, options.dry_below))
        found: dict[Hashable, Tensor] = {keys[i]: flow.clone() for i, flow in zip(new, flows, strict=True)}
        with _FLOWS_LOCK:
            _FLOWS.update(found)
        known |= found
    return torch.stack([known[key] for key in keys])


def digest(sample: Array32) -> bytes:
    """Return what tells these frames (t, h, w) from others."""
    return hashlib.blake2b(sample.tobytes(), digest_size=16).digest()


def scaled(frames: Float[Tensor, "b t h w"], transform: Transform, dry_below: float) -> Float[Tensor, "b t h w"]:
    """Return frames in dB above the dry threshold, or as they are: the flow does not depend on their unit."""
    if transform == "identity":
        return frames
    return 10 * torch.log10(frames.clamp(min=dry_below) / dry_below)


def optical_flow(frames: Float[Tensor, "b t h w"]) -> Flow:
    """Return the flow (x, y) in cells a step of frames with NaN at missing cells; 0 for fields without contrast."""
    h, w = frames.shape[-2:]
    valid = frames.isfinite()
    flow = frames.new_zeros(len(frames), 2, 1, 1)
    if frames.shape[1] < 2:
        return flow.expand(-1, -1, h, w)
    for grid, weight in reversed(pyramid(standardised(frames), valid.to(frames.dtype))):
        flow = resized(flow, (grid.shape[-2], grid.shape[-1]))
        for _ in range(ROUNDS):
            flow = refined(flow, grid, weight)
    return resized(flow, (h, w))


def standardised(frames: Float[Tensor, "b t h w"]) -> Float[Tensor, "b t h w"]:
    """Return frames less the mean of each sample, by its standard deviation; 0 where missing or constant."""
    valid = frames.isfinite()
    cells = valid.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    filled = torch.where(valid, frames, 0.0)
    departure = torch.where(valid, filled - filled.sum(dim=(1, 2, 3), keepdim=True) / cells, 0.0)
    spread = ((departure**2).sum(dim=(1, 2, 3), keepdim=True) / cells).sqrt()
    size = filled.abs().amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(spread > 1e-6 * size, departure / spread.clamp(min=1e-30), 0.0)  # below: rounding alone


def pyramid(
    frames: Float[Tensor, "b t h w"], weight: Float[Tensor, "b t h w"]
) -> list[tuple[Float[Tensor, "b t _h _w"], Float[Tensor, "b t _h _w"]]]:
    """Return (frames, share of valid cells), each half as fine as the one before; none finer than `FINEST`."""
    grids = [(frames, weight)]
    while min(grids[-1][0].shape[-2:]) >= 2 * COARSEST:
        finer, share = grids[-1]
        pooled = functional.avg_pool2d(share, 2, ceil_mode=True)
        total = functional.avg_pool2d(finer * share, 2, ceil_mode=True)
        grids.append((total / pooled.clamp(min=1e-6), pooled))
    return [grid for grid in grids if max(grid[0].shape[-2:]) <= FINEST] or grids[-1:]


def refined(flow: Flow, grid: Float[Tensor, "b t h w"], weight: Float[Tensor, "b t h w"]) -> Flow:
    """Return the flow after one round: the least-squares step at every cell, then smoothed by how well it is seen."""
    places = cells_of(flow) - flow
    moved, later = read_at(grid[:, :-1], places), grid[:, 1:]
    seen = (read_at(weight[:, :-1], places) > 0.999) & (weight[:, 1:] > 0.999) & is_inside(places)[:, None]
    along_x, along_y = gradients((moved + later) / 2)
    along_x, along_y, change = (torch.where(seen, part, 0.0) for part in (along_x, along_y, later - moved))
    products = (along_x**2, along_x * along_y, along_y**2, along_x * change, along_y * change)
    xx, xy, yy, xt, yt = blurred(torch.stack([p.sum(dim=1) for p in products], dim=1), WINDOW).unbind(1)
    trace = xx + yy
    faint = FAINT * trace.amax(dim=(-2, -1), keepdim=True) + 1e-9
    determinant = (xx + faint) * (yy + faint) - xy**2
    step = torch.stack([xy * yt - (yy + faint) * xt, xy * xt - (xx + faint) * yt], dim=1) / determinant[:, None]
    weaker = (trace / 2 - ((trace / 2) ** 2 - xx * yy + xy**2).clamp(min=0).sqrt()).clamp(min=0)  # eigenvalue
    return smoothed(flow + step.clamp(-LIMIT, LIMIT), (weaker / (weaker + faint))[:, None])


def smoothed(flow: Flow, trust: Float[Tensor, "b 1 h w"]) -> Flow:
    """Return the flow averaged over `SMOOTH` cells by `trust`, towards its mean where nothing near is trusted."""
    mean = (trust * flow).sum(dim=(-2, -1), keepdim=True) / trust.sum(dim=(-2, -1), keepdim=True).clamp(min=1e-9)
    near = blurred(trust, SMOOTH)
    far = FAR * near.amax(dim=(-2, -1), keepdim=True).clamp(min=1e-9)
    return (blurred(trust * flow, SMOOTH) + far * mean) / (near + far)


def gradients(fields: Fields) -> tuple[Fields, Fields]:
    """Return central differences along x and y, one cell apart, edges repeated."""
    wide = functional.pad(fields, (1, 1, 1, 1), mode="replicate")
    return (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2, (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2


def blurred(fields: Fields, sigma: float) -> Fields:
    """Return Gaussian sums with weight 1 in all, 0 beyond the border, as matrix products, whatever `sigma` [cells]."""
    rows, columns = (gaussian(size, sigma, fields.dtype, fields.device) for size in fields.shape[-2:])
    return rows @ fields @ columns.mT


@lru_cache(maxsize=GAUSSIANS)
def gaussian(size: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "size size"]:
    """Return the weights of a Gaussian blur along an axis of `size` cells: a row for each cell."""
    with torch.inference_mode(mode=False):  # weights made there could not be part of a gradient later
        cells = torch.arange(size, dtype=dtype, device=device)
        weights = torch.exp(-0.5 * ((cells[:, None] - cells[None]) / sigma) ** 2)
        return weights / (sigma * math.sqrt(2 * math.pi))


def averaged(fields: Fields, sigma: float) -> Fields:
    """Return Gaussian means (standard deviation `sigma` cells) over the cells of the grid; `sigma` 0: as they are."""
    if sigma == 0:
        return fields
    return blurred(fields, sigma) / blurred(torch.ones_like(fields[:1, :1]), sigma)


def resized(flow: Flow, size: tuple[int, int]) -> Flow:
    """Return the flow on a grid of `size` over the same area, in cells of that grid a step."""
    if flow.shape[-2:] == size:
        return flow
    finer = torch.tensor([size[1] / flow.shape[-1], size[0] / flow.shape[-2]], dtype=flow.dtype, device=flow.device)
    return finer[:, None, None] * functional.interpolate(flow, size=size, mode="bilinear", align_corners=False)


def cells_of(fields: Float[Tensor, "*any h w"]) -> Float[Tensor, "2 h w"]:
    """Return x and y of every cell of the grid."""
    h, w = fields.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([x, y]).to(fields)


def departures(flow: Flow, steps: int) -> Places:
    """Return where that comes from which arrives at every cell after 1 to `steps` steps along the flow.

    Each step goes back along the flow at its middle, found by one iteration.
    """
    arrival = cells_of(flow)
    back = torch.zeros_like(flow)
    places = []
    for _ in range(steps):
        start = read_at(flow, arrival - back)
        back = back + read_at(flow, arrival - back - start / 2)
        places.append(arrival - back)
    return torch.stack(places, dim=1)


def read_at(fields: Fields, places: Flow) -> Fields:
    """Return fields at `places` (x, y), bilinear between cells; beyond the grid the values of its edge."""
    h, w = fields.shape[-2:]
    size = places.new_tensor([max(w - 1, 1), max(h - 1, 1)])[:, None, None]
    grid = (places * (2 / size) - 1).movedim(1, -1)
    return functional.grid_sample(fields, grid, mode="bilinear", padding_mode="border", align_corners=True)


def is_inside(places: Float[Tensor, "*any 2 h w"]) -> Bool[Tensor, "*any h w"]:
    """Return whether places are inside the grid."""
    h, w = places.shape[-2:]
    x, y = places.unbind(-3)
    return (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)


def moved(fields: Fields, places: Places) -> Float[Tensor, "b n c h w"]:
    """Return fields read at the places of every step; a place that is the cell itself has its very value."""
    steps = [read_at(fields, places[:, n]) for n in range(places.shape[1])]
    stays = (places == cells_of(places)).all(dim=2)
    return torch.where(stays[:, :, None], fields[:, None], torch.stack(steps, dim=1))


def carried_on(fields: Fields) -> Fields:
    """Return fields whose missing cells (NaN) go on with the values of the nearest seen ones; 0 without any."""
    known = fields.isfinite()
    if bool(known.all()):
        return fields
    filled, weight = torch.where(known, fields, 0.0), known.to(fields.dtype)
    for sigma in REACH:
        near = blurred(weight, sigma)
        reached = (weight == 0) & (near > 1e-3)
        filled = torch.where(reached, blurred(filled * weight, sigma) / near.clamp(min=1e-3), filled)
        weight = torch.where(reached, 1.0, weight)
    total = weight.sum(dim=(-2, -1), keepdim=True)
    mean = (filled * weight).sum(dim=(-2, -1), keepdim=True) / total.clamp(min=1)
    return torch.where(weight > 0, filled, mean)
