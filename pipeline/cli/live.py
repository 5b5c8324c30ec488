"""The commands of scheduled forecasts, under `fieldcast`; heavy imports wait for their command."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from fieldcast.pipeline.config import Params
    from fieldcast.pipeline.live.clock import Clock
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done and write nothing.")] = False,
    supersede: Annotated[
        bool, typer.Option("--supersede", help="Issue a revision where another forecast is published.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for missing frames until their deadline.")] = False,
    detailed: Detailed = False,
    as_json: Json = False,
) -> None:
    """Issue the forecast that is due: fetch observations, forecast, publish, record; a second run changes nothing.

    Exit codes: 0 done or nothing to do, 2 wrong input, 73 cannot write, 74 a damaged file, 75 data not there yet or
    another process at work: try again.
    """
    from fieldcast.pipeline.live import waking
    from fieldcast.pipeline.live.clock import SystemClock

    init_times = None if at == "latest" else [time_of("--at", at)]
    if supersede and init_times is None:
        raise typer.BadParameter("needs --at: which init time?", param_hint="--supersede")
    _log(verbose=False)
    clock = SystemClock()
    if init_times is None and model is None and not dry_run:
        look: Callable[[], list[Outcome]] = partial(
            waking.wake, lambda: _live_params(params), folder, clock, waking.key_of(params)
        )
    else:
        look = _look(_live_params(params, model), folder, clock, init_times, supersede=supersede, dry=dry_run)
    outcomes = waking.until_complete(look, clock) if wait and not dry_run else look()
    _print(outcomes, as_json, detailed, dry_run=dry_run)


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
    from fieldcast.pipeline.live.pending import run_pending

    _log(verbose=False)
    first, last = time_of("--from", start), time_of("--to", end)
    work = partial(issue, start=first, end=last)
    _print(run_pending(_live_params(params, model), folder, SystemClock(), work), as_json, detailed)


@live.command(rich_help_panel=LIVE, epilog="Example: `fieldcast serve` in a terminal, or as a service: see deploy/")
def serve(params: ParamsFile = Path("params.yaml"), folder: LiveFolder = LIVE_FOLDER, model: ModelName = None) -> None:
    """Issue forecasts on the schedule of `live.schedule` until stopped (Ctrl-C, SIGTERM); the model stays loaded."""
    from fieldcast.pipeline.live import waking
    from fieldcast.pipeline.live.context import LiveContext
    from fieldcast.pipeline.live.monitoring.notify import check
    from fieldcast.pipeline.live.scheduler import Server

    _log(verbose=True)
    values = _live_params(params, model)
    server = Server(values, folder, key=waking.key_of(params) if model is None else "")
    LiveContext(values, folder)  # an error of model or feed stops the start, not a cycle in the night
    check(values.live.notify)
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
    from fieldcast.pipeline.live.monitoring.status import headline, read_status, table

    current = read_status(config.read(params), folder, SystemClock(), cycles)
    if folder.is_dir():
        from fieldcast.pipeline.live.monitoring.metrics import METRICS, write_metrics
        from fieldcast.pipeline.live.monitoring.page import write_page

        write_metrics(current, folder / METRICS)
        write_page(current, folder, folder / "status.html")
    if as_json:
        sys.stdout.write(json.dumps(current.as_dict(), indent=2) + "\n")
    else:
        Console().print(Text(headline(current)), table(current))
        for word, lines in (("late", current.late), ("damaged", current.faults), ("alarm", current.alarms)):
            for line in lines:
                Console().print(Text(f"{word}: ", "bold red"), line, sep="", markup=False)
        for line in current.refused:
            Console().print(Text("refused: ", "yellow"), line, sep="", markup=False)
    raise typer.Exit(current.exit_code())


@live.command(rich_help_panel=LIVE, epilog="Example: `fieldcast places`, after `dvc repro` and for each new model")
def places(
    params: ParamsFile = Path("params.yaml"),
    folder: LiveFolder = LIVE_FOLDER,
    model: ModelName = None,
    as_json: Json = False,
) -> None:
    """Calibrate the ranges of `live.places` on the validation period, and show how they do on the test period.

    Needs the observations and init times of `dvc repro`; the next cycle uses what is found. Exit code 2: wrong input.
    """
    from dataclasses import asdict

    from fieldcast.pipeline.datasets.atomic import make_folder, replace_durable
    from fieldcast.pipeline.live.deployed_model import resolve_model
    from fieldcast.pipeline.live.places import held_out, ranges
    from fieldcast.pipeline.live.places.areas import read_places

    values = _live_params(params, model)
    if values.live.places is None:
        raise typer.BadParameter(f"{params} has no live.places: name a GeoJSON file there", param_hint="--params")
    make_folder(folder)
    deployed = resolve_model(values, folder)
    areas = read_places(values.live.places, deployed.config.signature)
    fitted = held_out.fit(deployed, areas)
    replace_durable(folder / ranges.FILE, ranges.packed(fitted))
    measured = held_out.measure(deployed, areas, fitted)
    if as_json:
        sys.stdout.write(json.dumps([asdict(row) for row in measured], indent=2) + "\n")
    else:
        Console().print(held_out.table(measured))
        Console().print(f"Ranges: {folder / ranges.FILE}", highlight=False)


@live.command(rich_help_panel=LIVE, epilog="Example: `fieldcast audit`")
def audit(folder: LiveFolder = LIVE_FOLDER) -> None:
    """Check every byte of ledger, catalogue and published forecasts. Exit code 74: something has changed."""
    from fieldcast.pipeline.live.archive import publish
    from fieldcast.pipeline.live.archive.ledger import Ledger
    from fieldcast.pipeline.live.outcomes import ExitCode

    with Ledger(_ledger_path(folder), read_only=True) as ledger:
        faults = publish.audit(folder, ledger)
    for fault in faults:
        sys.stderr.write(f"fieldcast: {fault}\n")
    Console().print(f"{len(faults)} faults" if faults else "Everything is as it was written.")
    raise typer.Exit(ExitCode.DAMAGED if faults else ExitCode.DONE)


@live.command(rich_help_panel=LIVE, epilog="Example: `fieldcast trace data/live/copies/20261130T184500Z.nc`")
def trace(
    file: Annotated[Path, typer.Argument(help="A published store, or its copy as NetCDF or GeoTIFF.")],
    params: ParamsFile = Path("params.yaml"),
    folder: LiveFolder = LIVE_FOLDER,
    as_json: Json = False,
) -> None:
    """Follow an issued forecast back to model, MLflow run, code and data; compute each link again.

    Links that can't be checked here say why. Exit codes: 2 no issued forecast, 74 a link is broken.
    """
    from fieldcast.pipeline import config
    from fieldcast.pipeline.live.outcomes import ExitCode
    from fieldcast.pipeline.provenance.link import State
    from fieldcast.pipeline.provenance.trace import trace as follow

    links = follow(file, folder, config.read(params).track.experiment)
    if as_json:
        sys.stdout.write(json.dumps({"links": [vars(link) for link in links]}, indent=2) + "\n")
    else:
        styles = {State.WHOLE: "green", State.BROKEN: "bold red", State.UNCHECKED: "yellow"}
        for link in links:
            line = Text.assemble((f"{link.state:<9}", styles[link.state]), f"  {link.name}: {link.says}")
            Console().print(line, soft_wrap=True)
    raise typer.Exit(ExitCode.DAMAGED if any(link.state is State.BROKEN for link in links) else ExitCode.DONE)


@live.command(rich_help_panel=LIVE, epilog="Example: `fieldcast notify`")
def notify(params: ParamsFile = Path("params.yaml")) -> None:
    """Send a test to the webhook and the command of `live.notify`, which tell people what the schedule comes to.

    Exit codes: 2 none is set, or one cannot work, 75 one does not take it.
    """
    from fieldcast.pipeline import config
    from fieldcast.pipeline.live.clock import SystemClock
    from fieldcast.pipeline.live.monitoring import notify as notifying
    from fieldcast.pipeline.live.outcomes import ExitCode

    faults = notifying.send_test(config.read(params), SystemClock())
    for channel, fault in faults.items():
        sys.stdout.write(f"{fault or f'{channel}: taken'}\n")
    raise typer.Exit(ExitCode.TRY_AGAIN if any(faults.values()) else ExitCode.DONE)


@live.command(rich_help_panel=LIVE, epilog="Example: `fieldcast sync`")
def sync(params: ParamsFile = Path("params.yaml"), folder: LiveFolder = LIVE_FOLDER) -> None:
    """Send MLflow the records of trainings, comparisons and cycles that it missed while it was down.

    Exit code 75: it does not answer.
    """
    from fieldcast.pipeline import config
    from fieldcast.pipeline.live.archive.ledger import LEDGER
    from fieldcast.pipeline.live.outcomes import ExitCode
    from fieldcast.pipeline.tracking import outbox, patience

    experiment = config.read(params).track.experiment
    waiting = outbox.pending(patience.OUTBOX)
    sent, left = _sync_runs() if waiting else (0, 0)
    if not waiting or (folder / LEDGER).is_file():
        of_cycles = _sync_cycles(experiment, folder)
        sent, left = sent + of_cycles[0], left + of_cycles[1]
    Console().print(f"{sent} records sent, {left} left")
    raise typer.Exit(ExitCode.TRY_AGAIN if left else ExitCode.DONE)


def _sync_runs() -> tuple[int, int]:
    """Return how many records of trainings and comparisons have arrived, and how many are left."""
    from fieldcast.pipeline.tracking import patience, runs

    patience.forget_mark()
    delivery = runs.deliver()
    return delivery.sent, delivery.left


def _sync_cycles(experiment: str, folder: Path) -> tuple[int, int]:
    """Return how many records of cycles have arrived, and how many are left."""
    from fieldcast.pipeline.live import post_cycle
    from fieldcast.pipeline.live.archive.ledger import Ledger
    from fieldcast.pipeline.live.clock import SystemClock

    path, sent = _ledger_path(folder), 0
    while arrived := post_cycle.sync(experiment, folder, SystemClock()):
        sent += arrived
    with Ledger(path, read_only=True) as ledger:
        return sent, len(ledger.pending())


def _look(
    params: Params, folder: Path, clock: Clock, init_times: list[datetime] | None, *, supersede: bool, dry: bool
) -> Callable[[], list[Outcome]]:
    """Return a look for what is due, or these init times, with the wishes of the command line."""
    from fieldcast.pipeline.live import cycle as cycles
    from fieldcast.pipeline.live.context import LiveContext
    from fieldcast.pipeline.live.pending import run_pending

    work = partial(cycles.run, init_times=init_times, supersede=supersede, dry=dry)
    if dry:
        return lambda: work(LiveContext(params, folder, clock))
    return partial(run_pending, params, folder, clock, work)


def time_of(option: str, text: str) -> datetime:
    """Return the time that `text` of an option names, UTC."""
    from fieldcast.pipeline.live.clock import parse

    try:
        return parse(text)
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is no time, expected one such as 2010-08-26T06:00 (UTC)", param_hint=option
        ) from None


def _live_params(path: Path, model: str | None = None) -> Params:
    """Return the parameters, with the model of the command line."""
    from fieldcast.pipeline import config

    params = config.read(path)
    if model is None:
        return params
    return params.model_copy(update={"live": params.live.model_copy(update={"model": model})})


def _ledger_path(folder: Path) -> Path:
    from fieldcast.pipeline.live.archive.ledger import LEDGER

    if not (folder / LEDGER).is_file():
        raise typer.BadParameter(f"{folder} holds no ledger: nothing has been issued there", param_hint="--folder")
    return folder / LEDGER


def _print(outcomes: list[Outcome], as_json: bool, detailed: bool, *, dry_run: bool = False) -> None:
    """Print the outcomes of cycles and exit with the code of the worst of them."""
    from fieldcast.pipeline.live.outcomes import describe, describe_dry, worst

    if as_json:
        sys.stdout.write(json.dumps({"cycles": [outcome.as_dict() for outcome in outcomes]}, indent=2) + "\n")
    else:
        for outcome in outcomes:
            sys.stdout.write(f"{describe_dry(outcome) if dry_run else describe(outcome)}\n")
        if not outcomes:
            sys.stdout.write("nothing is due\n")
    raise typer.Exit(worst(outcomes, detailed=detailed))


def _log(*, verbose: bool) -> None:
    """Log warnings, or with `verbose` all messages, to standard error."""
    import logging

    from fieldcast.pipeline.live.monitoring.logs import set_up

    set_up(logging.INFO if verbose else logging.WARNING)
