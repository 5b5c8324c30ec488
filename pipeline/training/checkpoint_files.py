"""Files from which an interrupted training goes on: written beside their place, synced, renamed, with their SHA-256.

The newest is `last.ckpt`, the one before it stays: a file that a full disk or a power cut has damaged costs an epoch,
and never the training.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.atomic import fsync_folder, partial_of, write_durable
from fieldcast.pipeline.errors import DamagedError

LAST, BEFORE = "last.ckpt", "before.ckpt"


class CheckpointFiles(CheckpointIO):
    """Writes and reads Lightning's checkpoints whole, or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint to `path`; an earlier `last.ckpt` becomes `before.ckpt`."""
        path, content = Path(path), io.BytesIO()
        torch.save(checkpoint, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_of(path)
        try:
            write_durable(partial, manifest.with_tail(content.getvalue()))
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        if path.name == LAST and path.exists():
            path.replace(path.with_name(BEFORE))
        partial.replace(path)
        fsync_folder(path.parent)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Return the checkpoint at `path`; raise `DamagedError` where its bytes have changed."""
        return read(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)


def read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Return the checkpoint at `path`, without pickle; raise `DamagedError` where its bytes have changed."""
    content = io.BytesIO(manifest.without_tail(path, "remove it, and train again"))
    checkpoint: dict[str, Any] = torch.load(content, map_location=map_location, weights_only=True)
    return checkpoint


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole, None without one; say which damaged ones were passed over."""
    for path in (folder / LAST, folder / BEFORE):
        try:
            if path.exists():
                manifest.without_tail(path, "passed over: an earlier epoch is repeated")
                return path
        except DamagedError as error:
            sys.stderr.write(f"fieldcast: {error}\n")
    return None
