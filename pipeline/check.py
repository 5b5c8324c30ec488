"""Stage `check`: the whole of `params.yaml` is valid -> `data/checked/params.json`, with inherited values and defaults.

The other stages depend on their sections of that file: DVC sees neither inherited values nor defaults in `params.yaml`.
Passwords are left out.

It also leaves a digest of the code of each model's base, `data/checked/bases/<model>`, on which its stages depend:
`dvc.yaml` cannot name the folder of a kind that only some models have. In a project outside the repository it leaves a
digest of each part of the installed code too, `data/checked/code/pipeline/…` and `…/models/…`, in place of its files.

All other stages come after it: DVC takes names of files and of stages from `params.yaml`, and deletes a stage's outputs
before it runs the stage.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fieldcast.pipeline import config
from fieldcast.pipeline.datasets.code import code_digest, parts_of_code
from fieldcast.pipeline.datasets.paths import CHECKED
from fieldcast.pipeline.errors import public, run_stage


def main() -> None:
    """Read `params.yaml`, write `data/checked`."""
    params = config.load()
    shutil.rmtree(CHECKED, ignore_errors=True)
    CHECKED.unlink(missing_ok=True)  # it was one file in earlier commits
    (CHECKED / "bases").mkdir(parents=True)
    content = public(params.model_dump(mode="json"))
    (CHECKED / "params.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    for name, entry in params.models.items():
        bases = config.bases_of(entry)
        digest = code_digest(f"models/{kind}" for kind in bases)
        (CHECKED / "bases" / name).write_text(f"{', '.join(bases)} {digest}\n" if bases else "none\n")
    for part in parts_of_code(Path()):
        (CHECKED / "code" / part).parent.mkdir(parents=True, exist_ok=True)
        (CHECKED / "code" / part).write_text(f"{code_digest([part])}\n")


if __name__ == "__main__":
    run_stage(main)
