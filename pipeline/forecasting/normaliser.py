"""Between physical units and the values a network sees: a transform, a baseline to subtract and a scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from fieldcast.pipeline.datasets.signature import Channel
from fieldcast.pipeline.datasets.transforms import inverse_transform, smooth_inverse, transform


class Normaliser(nn.Module):
    """Normalised fields from physical ones, and back; its statistics are buffers and travel with a checkpoint.

    z = (transform(x) - baseline(hour of day, cell)) / scale. The baseline is one mean a channel, shape
    (1, c, 1, 1), or a map for each hour of the day, shape (24, c, H, W), where anomalies are forecast.
    """

    baseline: Tensor
    scale: Tensor

    def __init__(self, baseline: np.ndarray, scale: np.ndarray, channels: Sequence[Channel]) -> None:
        super().__init__()
        self.register_buffer("baseline", torch.as_tensor(baseline, dtype=torch.float32))  # (hours, c, H|1, W|1)
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))  # (c,)
        self.channels = tuple(channels)

    def normalise(self, fields: Tensor, seconds: Tensor, origin: Tensor) -> Tensor:
        """Return z of `fields` (b, t, c, h, w), valid at `seconds` (b, t) since 1970, cut out at `origin` (b, 2)."""
        z = torch.stack(
            [
                transform(fields[:, :, i], channel.transform, channel.floor)
                for i, channel in enumerate(self.channels[: fields.shape[2]])
            ],
            dim=2,
        )
        c = z.shape[2]
        baseline = self._baseline(seconds, origin, z.shape[-2], z.shape[-1])[:, :, :c]
        return (z - baseline) / self.scale[:c, None, None]

    def restore(self, z: Tensor, seconds: Tensor, origin: Tensor, *, bounded: bool = True) -> Tensor:
        """Return physical fields (b, t, c, h, w) of normalised ones.

        They are inside each channel's valid range; not `bounded`, they go on smoothly beyond the lower end of the
        transform, so that a loss in physical units has a gradient everywhere.
        """
        c = z.shape[2]
        baseline = self._baseline(seconds, origin, z.shape[-2], z.shape[-1])[:, :, :c]
        fields = z.float() * self.scale[:c, None, None] + baseline
        restored = []
        for i, channel in enumerate(self.channels[:c]):
            if not bounded:
                restored.append(smooth_inverse(fields[:, :, i], channel.transform, channel.floor))
                continue
            values = inverse_transform(fields[:, :, i], channel.transform, channel.floor)
            limited = channel.valid_min is not None or channel.valid_max is not None
            restored.append(values.clamp(channel.valid_min, channel.valid_max) if limited else values)
        return torch.stack(restored, dim=2)

    def _baseline(self, seconds: Tensor, origin: Tensor, h: int, w: int) -> Tensor:
        hours = torch.div(seconds, 3600, rounding_mode="floor") % self.baseline.shape[0]  # 0 where there is one mean
        if self.baseline.shape[-2:] in ((1, 1), (h, w)):
            return self.baseline[hours]  # (b, t, c, 1, 1), or the whole grid
        y = origin[:, 0, None] + torch.arange(h, device=origin.device)
        x = origin[:, 1, None] + torch.arange(w, device=origin.device)  # stays on the device: nothing waits for it
        maps = self.baseline[hours[:, :, None, None], :, y[:, None, :, None], x[:, None, None, :]]
        return rearrange(maps, "b t h w c -> b t c h w")
