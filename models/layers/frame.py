"""Frame that a network works in, and the base that its output changes.

In the moving frame the history is brought along the flow to the init time, so that weather stands still where it only
moves. The network sees both, and says two things of each lead: the change in the moving frame, which is moved to the
lead, and the change in the fixed frame, which counts where the flow brings in what was never seen. With a base its
output counts as increments on that: an untrained network is its base.

Tensor letters: v variables, of which the first c are forecast; p planes that tell time and place.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from fieldcast.models.layers.missing import carried_forward
from fieldcast.models.layers.motion import Places, is_inside, read_at
from fieldcast.models.layers.sizes import Frame


def inputs(
    frame: Frame,
    z: Float[Tensor, "b t v h w"],
    planes: Float[Tensor, "b t p h w"],
    paths: Places | None,
    base: Float[Tensor, "b f c h w"] | None,
) -> Float[Tensor, "b t c_in h w"]:
    """Return the input of the network: what it changes comes first, NaN is a missing cell."""
    parts = [z] if paths is None else _in_both(frame, z, paths)
    if frame.shows_base and base is not None:
        parts.append(dealt(base, frame.history))
    return torch.cat([*parts, planes], dim=2)


def _in_both(frame: Frame, z: Float[Tensor, "b t v h w"], paths: Places) -> list[Tensor]:
    aligned = brought_along(z, paths)
    c = frame.targets
    return [aligned[:, :, :c], z[:, :, :c], aligned[:, :, c:], z[:, :, c:]]


def outputs(
    frame: Frame,
    output: Float[Tensor, "b *m f c_out h w"],
    inputs: Float[Tensor, "b t c_in h w"],
    paths: Places | None,
    base: Float[Tensor, "b f c h w"] | None,
    share: Float[Tensor, " f"] | None = None,
) -> Float[Tensor, "b *m f c h w"]:
    """Return the forecasts that the network's `output` for `inputs` stands for; of a lead's increments `share`."""
    fields = output.float()
    if base is not None:  # the network's own base is persistence at first
        latest = carried_forward(inputs[:, :, : fields.shape[-3]])[:, -1:]
        fields = fields - spread_over(latest, fields)
    if paths is not None:
        fields = _at_leads(frame, fields, paths)
    if base is None:
        return fields
    return spread_over(base, fields) + (fields if share is None else share[:, None, None, None] * fields)


def _at_leads(frame: Frame, fields: Tensor, paths: Places) -> Tensor:
    """Return fields of the moving frame at their leads, and of the fixed one where nothing known arrives."""
    leads = paths[:, : frame.horizon]
    known = rearrange(is_inside(leads), "b f h w -> (b f) 1 h w")
    together = fields if fields.ndim == 6 else fields[:, None]
    members, c = together.shape[1], frame.targets
    moving, fixed = (
        rearrange(part, "b m f c h w -> (b f) (m c) h w") for part in (together[:, :, :, :c], together[:, :, :, c:])
    )
    moved = torch.where(known, read_at(moving, leads.flatten(0, 1)), fixed)
    apart = rearrange(moved, "(b f) (m c) h w -> b m f c h w", f=frame.horizon, m=members)
    return apart if fields.ndim == 6 else apart[:, 0]


def brought_along(z: Float[Tensor, "b t v h w"], paths: Places) -> Float[Tensor, "b t v h w"]:
    """Return every frame moved to the time of the last one along `paths`, NaN where it comes from beyond the grid."""
    steps = z.shape[1]
    frames = []
    for step in range(steps - 1):
        places = paths[:, steps - 2 - step]
        frames.append(torch.where(is_inside(places)[:, None], read_at(z[:, step], places), torch.nan))
    return torch.stack([*frames, z[:, -1]], dim=1)


def dealt(base: Float[Tensor, "b f c h w"], frames: int) -> Float[Tensor, "b t n h w"]:
    """Return the leads of a base forecast dealt out over the frames of a history, in order; the last one is repeated.

    So each of them is shown once, and a network that reads frame by frame sees them in time.
    """
    each = -(-base.shape[1] // frames)
    missing = each * frames - base.shape[1]
    complete = torch.cat([base, *([base[:, -1:]] * missing)], dim=1)
    return rearrange(complete, "b (t n) c h w -> b t (n c) h w", n=each)


def spread_over(
    fields: Float[Tensor, "b n c h w"], like: Float[Tensor, "b *m f c h w"]
) -> Float[Tensor, "b *m n c h w"]:
    """Return fields with the dimension of members that `like` has."""
    return fields if like.ndim == 5 else fields[:, None]
