"""The command of a replay: `make replay`, or `python -m tests.live.replay FILES --format knmi --cycles 288`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from tests.live.replay.config import ReplayOptions
from tests.live.replay.run import replay


def main(
    archive: Annotated[Path, typer.Argument(help="A folder of radar files.")],
    kind: Annotated[Literal["bom", "knmi", "fmi"], typer.Option("--format", help="The format of the files.")],
    into: Annotated[Path, typer.Option(help="A folder for all that is written, emptied first.")] = Path("data/replay"),
    model: Annotated[Literal["advection", "persistence"], typer.Option(help="The model.")] = "persistence",
    coarsen: Annotated[int, typer.Option(min=1, help="Mean over n x n cells.")] = 1,
    history: Annotated[int, typer.Option(min=1, help="Frames that a forecast is made from.")] = 3,
    horizon: Annotated[int, typer.Option(min=1, help="Frames that are forecast.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the faults.")] = 1,
    cycles: Annotated[int | None, typer.Option(min=1, help="Only so many, from the first on.")] = None,
    faults: Annotated[bool, typer.Option("--faults/--no-faults", help="Let feed and machine fail.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Replay an archive as if it came in live, with faults in feed, disk, clock and processes.

    Frames come late, damaged, twice or never; two schedulers work at once; processes are killed in mid-cycle. Every
    forecast is compared with the frames that had arrived by then. Exit code 1: one was missed, doubled, damaged or
    hidden.
    """
    result = replay(ReplayOptions(archive, kind, into, model, coarsen, history, horizon, seed, cycles, faults, faults))
    if as_json:
        sys.stdout.write(json.dumps(result.as_dict(), indent=2) + "\n")
    else:
        Console().print(result.table())
    for name, lines in result.faults().items():
        for line in lines:
            sys.stderr.write(f"replay: {name}: {line}\n")
    raise typer.Exit(1 if any(result.faults().values()) else 0)


if __name__ == "__main__":
    typer.run(main)
