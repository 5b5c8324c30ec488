"""Flips and quarter turns of training samples: weather that moves and forms alike in every direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fieldcast.pipeline.training.samples import Batch

FIELDS = ("history", "target", "base", "flow")


@dataclass(frozen=True)
class Turning:
    """Flips, and quarter turns where `quarters`; the vectors among the channels turn along."""

    quarters: bool
    vectors: Sequence[tuple[int, int]]  # channels of the components along x and y
    up: float  # 1 where y grows from row to row, else -1

    def draw(self, batch: Batch) -> Batch:
        """Return a batch that is flipped or not and turned by 0 to 3 quarters, by torch's global generator."""
        flip, quarters = bool(torch.randint(2, ())), int(torch.randint(4, ()))
        h, w = batch["history"].shape[-2:]
        if not self.quarters or h != w:
            quarters -= quarters % 2
        return self.turned(batch, flip=flip, quarters=quarters)

    def turned(self, batch: Batch, *, flip: bool, quarters: int) -> Batch:
        """Return the batch with its columns in reverse order where `flip`, then turned `quarters` times from y to x."""
        result = dict(batch)
        for name in FIELDS:
            if name in batch:
                result[name] = self._field(batch[name], name, flip=flip, quarters=quarters)
        return result

    def _field(self, field: Tensor, name: str, *, flip: bool, quarters: int) -> Tensor:
        pairs = [(0, 1, 1.0)] if name == "flow" else [(x, y, self.up) for x, y in self.vectors]
        pairs = [pair for pair in pairs if max(pair[:2]) < field.shape[-3]]
        if flip:
            field = field.flip(-1)
        field = torch.rot90(field, quarters, (-2, -1))
        if not pairs:
            return field
        channels = list(field.unbind(-3))
        for x, y, up in pairs:
            along_x, along_y = channels[x], up * channels[y]  # in cells, rows counted downwards
            along_x = -along_x if flip else along_x
            for _ in range(quarters % 4):
                along_x, along_y = along_y, -along_x
            channels[x], channels[y] = along_x, up * along_y
        return torch.stack(channels, dim=-3)
