"""The commands of scheduled forecasts, under `fieldcast`; heavy imports wait for their command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from datetime import datetime

    from fieldcast.pipeline.config import Params
    from fieldcast.pipeline.live.outcomes import Outcome

live = typer.Typer()

LIVE = "Scheduled forecasts"
ParamsFile = Annotated[Path, typer.Option("--params", "-p", help="The parameters to read.")]
LiveFolder = Annotated[Path, typer.Option("--folder", help="Where scheduled forecasts live: one local disk.")]
LIVE_FOLDER = Path("data/live")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Detailed = Annotated[
    bool, typer.Option("--detailed-exit-code", help="10 already done, 11 degraded, 12 skipped, instead of 0.")
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A checkpoint folder or an alias in the registry, instead of live.model.")
]


@live.command(rich_help_panel=LIVE, epilog="Example: `fieldcast cycle --at 2010-08-26T06:00 --dry-run`")
def cycle(
    at: Annotated[str, typer.Option(help="An init time (UTC), or latest: all that is due.")] = "latest",
    params: ParamsFile = Path("params.yaml"),
    folder: LiveFolder = LIVE_FOLDER,
    model: ModelName = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and write nothing.")] = False,
    supersede: Annotated[
        bool, typer.Option("--supersede", help="Issue a revision where another forecast is published.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for missing frames until their deadline.")] = False,
    detailed: Detailed = False,
    as_json: Json = False,
) -> None:
    """Issue the forecast that is due: bring observations in, forecast, publish, record; doing it twice does it once.

    Exit codes: 0 done or nothing to do, 2 wrong input, 73 cannot write, 74 a damaged file, 75 data not there yet or
    another process at work: try again.
    """
    from fieldcast.pipeline.live import cycle as cycles
    from fieldcast.pipeline.live.clock import SystemClock
    from fieldcast.pipeline.live.context import Station
    from fieldcast.pipeline.live.preview import preview
    from fieldcast.pipeline.live.scheduler import attend, attend_waiting

    init_times = None if at == "latest" else [time_of("--at", at)]
    if supersede and init_times is None:
        raise typer.BadParameter("needs --at: which init time?", param_hint="--supersede")
    _log(talkative=False)
    chosen = _live_params(params, model)
    if dry_run:
        outcomes = preview(Station(chosen, folder, SystemClock()), init_times)
    else:
        doing = attend_waiting if wait else attend
        work = lambda station: cycles.run(station, init_times, supersede=supersede)  # noqa: E731
        outcomes = doing(chosen, folder, SystemClock(), work)
    _tell(outcomes, as_json, detailed, dry_run=dry_run)


@live.command(
    rich_help_panel=LIVE, epilog="Example: `fieldcast backfill --from 2010-08-26T00:00 --to 2010-08-26T06:00`"
)
def backfill(
    start: Annotated[str, typer.Option("--from", help="First init time (UTC).")],
    end: Annotated[str, typer.Option("--to", help="Last init time (UTC), included.")],
    params: ParamsFile = Path("params.yaml"),
    folder: LiveFolder = LIVE_FOLDER,
    model: ModelName = None,
    detailed: Detailed = False,
    as_json: Json = False,
) -> None:
    """Issue every forecast of a past period that is not published yet, on the cluster of `dask.scheduler` if one is."""
    from fieldcast.pipeline.live.backfill import backfill as issue
    from fieldcast.pipeline.live.clock import SystemClock
    from fieldcast.pipeline.live.scheduler import attend

    _log(talkative=False)
    first, last = time_of("--from", start), time_of("--to", end)
    outcomes = attend(_live_params(params, model), folder, SystemClock(), lambda station: issue(station, first, last))
    _tell(outcomes, as_json, detailed)


@live.command(rich_help_panel=LIVE, epilog="Example: `fieldcast serve` in a terminal, or as a service: see deploy/")
def serve(params: ParamsFile = Path("params.yaml"), folder: LiveFolder = LIVE_FOLDER, model: ModelName = None) -> None:
    """Issue forecasts on the schedule of `live.schedule` until stopped (Ctrl-C, SIGTERM); the model stays loaded."""
    from fieldcast.pipeline.live.context import Station
    from fieldcast.pipeline.live.scheduler import Server

    _log(talkative=True)
    chosen = _live_params(params, model)
    server = Server(chosen, folder)
    Station(chosen, folder)  # whatever is wrong with model or feed stops the start, not the night
    raise typer.Exit(server.run())


@live.command(rich_help_panel=LIVE, epilog="Example: `fieldcast status --json`")
def status(
    params: ParamsFile = Path("params.yaml"),
    folder: LiveFolder = LIVE_FOLDER,
    cycles: Annotated[int, typer.Option(min=1, help="How many of the last cycles to list.")] = 24,
    as_json: Json = False,
) -> None:
    """Show the last cycles; write status.html and metrics.prom. Exit codes: 13 drift, 14 late or failed, 74 damaged."""
    from fieldcast.pipeline import config
    from fieldcast.pipeline.live.clock import SystemClock
    from fieldcast.pipeline.live.monitoring import status as state

    found = state.look(config.read(params), folder, SystemClock(), cycles)
    if folder.is_dir():
        state.write_metrics(found, folder / "metrics.prom")
        state.write_page(found, folder, folder / "status.html")
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=2) + "\n")
    else:
        Console().print(state.headline(found), state.table(found))
        for word, lines in (("late", found.late), ("damaged", found.faults), ("alarm", found.alarms)):
            for line in lines:
                Console().print(Text(f"{word}: ", "bold red"), line, sep="", markup=False)
    raise typer.Exit(found.exit_code())


@live.command(rich_help_panel=LIVE, epilog="Example: `fieldcast audit`")
def audit(folder: LiveFolder = LIVE_FOLDER) -> None:
    """Check every byte of ledger, catalogue and published forecasts. Exit code 74: something has changed."""
    from fieldcast.pipeline.live.archive import publish as archive
    from fieldcast.pipeline.live.archive.ledger import Ledger
    from fieldcast.pipeline.live.outcomes import ExitCode

    if not (folder / archive.LEDGER).is_file():
        raise typer.BadParameter(f"{folder} holds no ledger: nothing has been issued there", param_hint="--folder")
    with Ledger(folder / archive.LEDGER, read_only=True) as ledger:
        faults = archive.audit(folder, ledger)
    for fault in faults:
        sys.stderr.write(f"fieldcast: {fault}\n")
    Console().print(f"{len(faults)} faults" if faults else "Everything is as it was written.")
    raise typer.Exit(ExitCode.DAMAGED if faults else ExitCode.DONE)


@live.command(rich_help_panel=LIVE, epilog="Example: `fieldcast sync`")
def sync(params: ParamsFile = Path("params.yaml"), folder: LiveFolder = LIVE_FOLDER) -> None:
    """Send MLflow what it missed while it was down; cycles do so by themselves. Exit code 75: it does not answer."""
    from fieldcast.pipeline import config
    from fieldcast.pipeline.live.archive import publish as archive
    from fieldcast.pipeline.live.archive.ledger import Ledger
    from fieldcast.pipeline.live.clock import SystemClock
    from fieldcast.pipeline.live.outcomes import ExitCode
    from fieldcast.pipeline.live.post_cycle import sync as send

    experiment = config.read(params).track.experiment
    if not (folder / archive.LEDGER).is_file():
        raise typer.BadParameter(f"{folder} holds no ledger: nothing has been issued there", param_hint="--folder")
    sent = 0
    while arrived := send(experiment, folder, SystemClock()):
        sent += arrived
    with Ledger(folder / archive.LEDGER, read_only=True) as ledger:
        left = len(ledger.pending())
    Console().print(f"{sent} records sent, {left} left")
    raise typer.Exit(ExitCode.TRY_AGAIN if left else ExitCode.DONE)


@live.command(rich_help_panel=LIVE, epilog="Example: `fieldcast replay raw/radar --format knmi --cycles 288`")
def replay(
    archive: Annotated[Path, typer.Argument(help="A folder of radar files.")],
    kind: Annotated[Literal["bom", "knmi", "fmi"], typer.Option("--format", help="The format of the files.")],
    into: Annotated[Path, typer.Option(help="A folder for all that is written, emptied first.")] = Path("data/replay"),
    model: Annotated[Literal["advection", "persistence"], typer.Option(help="Who forecasts.")] = "persistence",
    coarsen: Annotated[int, typer.Option(min=1, help="Mean over n x n cells.")] = 1,
    history: Annotated[int, typer.Option(min=1, help="Frames that a forecast is made from.")] = 3,
    horizon: Annotated[int, typer.Option(min=1, help="Frames that are forecast.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Draws what goes wrong.")] = 1,
    cycles: Annotated[int | None, typer.Option(min=1, help="Only so many, from the first on.")] = None,
    faults: Annotated[bool, typer.Option("--faults/--no-faults", help="Let feed and machine fail.")] = True,
    as_json: Json = False,
) -> None:
    """Rehearse the schedule on an archive as if it came in live, with faults in feed, disk, clock and processes.

    Frames come late, damaged, twice or never; two schedulers work at once; processes are killed in mid-cycle. Every
    forecast is held against what had arrived by then. Exit code 1: something was missed, doubled, damaged or hidden.
    """
    from fieldcast.pipeline.live.rehearsal import Rehearsal
    from fieldcast.pipeline.live.replay import replay as rehearse

    found = rehearse(Rehearsal(archive, kind, into, model, coarsen, history, horizon, seed, cycles, faults, faults))
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=2) + "\n")
    else:
        Console().print(found.table())
    for name, lines in found.faults().items():
        for line in lines:
            sys.stderr.write(f"fieldcast: {name}: {line}\n")
    raise typer.Exit(1 if any(found.faults().values()) else 0)


def _live_params(path: Path, model: str | None) -> Params:
    """Return the parameters, with the model of the command line."""
    from fieldcast.pipeline import config

    params = config.read(path)
    return (
        params if model is None else params.model_copy(update={"live": params.live.model_copy(update={"model": model})})
    )


def time_of(option: str, text: str) -> datetime:
    """Return the time that `text` of an option names, UTC."""
    from fieldcast.pipeline.live.clock import parse

    try:
        return parse(text)
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is no time, expected one such as 2010-08-26T06:00 (UTC)", param_hint=option
        ) from None


def _tell(outcomes: list[Outcome], as_json: bool, detailed: bool, *, dry_run: bool = False) -> None:
    """Print what became of cycles and exit with the code of the worst of them."""
    from fieldcast.pipeline.live.outcomes import worst
    from fieldcast.pipeline.live.scheduler import announce, describe

    if as_json:
        sys.stdout.write(json.dumps({"cycles": [it.as_dict() for it in outcomes]}, indent=2) + "\n")
    else:
        for it in outcomes:
            sys.stdout.write(f"{announce(it) if dry_run else describe(it)}\n")
        if not outcomes:
            sys.stdout.write("nothing is due\n")
    raise typer.Exit(worst(outcomes, detailed=detailed))


def _log(*, talkative: bool) -> None:
    """Log warnings, or whatever happens as well, to standard error."""
    import logging

    from fieldcast.pipeline.live.monitoring.logs import set_up

    set_up(logging.INFO if talkative else logging.WARNING)
