"""Stage `check`: the whole of `params.yaml` is valid -> `data/checked`, always the same text.

All other stages come after it: DVC takes names of files and of stages from `params.yaml`, and deletes a stage's outputs
before it runs the stage.
"""

from __future__ import annotations

from fieldcast.pipeline import config
from fieldcast.pipeline.datasets.paths import CHECKED


def main() -> None:
    """Read `params.yaml`, write `data/checked`."""
    config.load()
    CHECKED.parent.mkdir(exist_ok=True)
    CHECKED.write_text("params.yaml is valid\n")


if __name__ == "__main__":
    config.run_stage(main)
