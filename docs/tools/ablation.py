"""What each part of the default network is worth: it is trained with one part at a time left out, with several seeds.

`make ablation` prints a table for the project's `params.yaml`, of mean and standard deviation over seeds on its test
period, at the leads that `PARTS` of the horizon reach. Observations are made once; each variation has a project
folder of its own below `--out`, where finished trainings are kept and not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from fieldcast.pipeline.verification.aggregation import scores_of
from fieldcast.pipeline.verification.sums_file import read_sums

MODEL = "unet"
PARTS = (1 / 12, 1 / 4, 1 / 2, 1)  # of the horizon
Change = Mapping[str, Mapping[str, Any]]  # section -> key -> value; "model": the network's own options
VARIATIONS: dict[str, Change] = {
    "all": {},
    "fixed frame": {"model": {"frame": "fixed"}},
    "base: history": {"model": {"base": "history"}},
    "fixed frame, base: history": {"model": {"frame": "fixed", "base": "history"}},
    "loss: mse": {"train": {"loss": "mse"}},
    "augment: none": {"train": {"augment": "none"}},
    "a third of the init times": {"splits": {"every_steps": 3}},
    "correct_flow: true": {"model": {"correct_flow": True}},
    "precision: 32-true": {"train": {"precision": "32-true"}},
}


def main() -> None:
    """Train and verify all variations; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--model", default=MODEL, help="of the parameters' models")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threshold", type=float, default=1.0, help="of the CSI")
    parser.add_argument("--out", type=Path, default=Path("data/ablation"))
    arguments = parser.parse_args()
    content = yaml.safe_load(arguments.params.read_text())
    if "path" in content["source"] and "://" not in content["source"]["path"]:
        content["source"]["path"] = str(Path(content["source"]["path"]).absolute())  # stages run elsewhere
    source = arguments.out.resolve() / "observations"
    run(source, content, ("ingest",))
    rows = {}
    for name, change in VARIATIONS.items():
        folder = arguments.out.resolve() / name.replace(" ", "_").replace(",", "").replace(":", "")
        models = [f"seed_{seed}" for seed in range(1, arguments.seeds + 1)]
        run(folder, varied(content, arguments.model, change, models), ("prepare",), source)
        for model in models:
            run(folder, None, ("train", "forecast", "verify"), model=model)
        rows[name] = [scores_of(read_sums(folder / "data" / "scores" / f"{model}.nc")) for model in models]
        sys.stdout.write(f"{row(name, rows[name], arguments.threshold)}\n")
        sys.stdout.flush()


def varied(content: Mapping[str, Any], model: str, change: Change, names: list[str]) -> dict[str, Any]:
    """Return the parameters with a change, whose only models are trainings of `model` with seeds 1, 2 …."""
    changed: dict[str, Any] = json.loads(json.dumps(content, default=str))
    changed["train"] |= change.get("train", {})
    changed["prepare"]["splits"]["train"] |= change.get("splits", {})
    options = {**changed["models"][model], **change.get("model", {})}
    changed["models"] = {name: {**options, "seed": seed} for seed, name in enumerate(names, 1)}
    changed["references"] = "none"
    return changed


def run(
    folder: Path,
    content: Mapping[str, Any] | None,
    stages: tuple[str, ...],
    source: Path | None = None,
    model: str | None = None,
) -> None:
    """Run stages in a project folder, which gets its parameters and the observations of `source`; none twice."""
    done = folder / f"{'-'.join(stages)}{f'@{model}' if model else ''}.done"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if content is not None:
        (folder / "params.yaml").write_text(yaml.safe_dump(dict(content), sort_keys=False))
    if source is not None:
        shutil.copytree(source / "data", folder / "data", dirs_exist_ok=True)
    for stage in stages:
        command = [sys.executable, "-m", f"fieldcast.pipeline.{stage}", *(["--model", model] if model else [])]
        subprocess.run(command, cwd=folder, check=True, env=os.environ)  # noqa: S603
    done.touch()


def row(name: str, trainings: Sequence[Mapping[Any, Mapping[float, float]]], threshold: float) -> str:
    """Return a line of the table: RMSE and CSI of all trainings at a few leads, as mean ± standard deviation."""
    cells = []
    for wanted in ("rmse", "csi"):
        for part in PARTS:
            values = list(_at(trainings, wanted, threshold, part))
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.3f}{spread}")
    return f"| {name} | {' | '.join(cells)} |"


def _at(
    trainings: Sequence[Mapping[Any, Mapping[float, float]]], name: str, threshold: float, part: float
) -> Iterator[float]:
    """Yield a score of each training at the lead that is `part` of the horizon."""
    for scores in trainings:
        score = next(it for it in scores if it.name == name and it.threshold in (None, threshold))
        leads = sorted(scores[score])
        yield scores[score][leads[max(0, round(part * len(leads)) - 1)]]


if __name__ == "__main__":
    main()
