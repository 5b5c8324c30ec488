"""The `fieldcast` command: a thin layer over the functions of this package; heavy imports wait for their command."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fieldcast.pipeline.cli.live import ParamsFile, live, time_of
from fieldcast.pipeline.errors import run_stage

app = typer.Typer(
    help="From gridded observations to compared, tracked and scheduled forecasts. `dvc repro` runs the pipeline; this "
    "command checks its parameters, compares and explains its models, and issues forecasts.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"fieldcast {metadata.version('fieldcast')}\n")
        raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take options that are of no command; make every function below one, even if there is only one."""


@app.command(epilog="Example: `fieldcast check --params examples/knmi-radar.yaml`")
def check(
    params: ParamsFile = Path("params.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Validate a parameters file and its source; print data, samples and memory of a run.

    Settings that don't fit the data are warnings. Exit code 2: wrong input.
    """
    from fieldcast.pipeline.cli.check import facts_of

    facts = facts_of(params)
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2, default=str) + "\n")
        return
    warnings = facts.pop("warnings")
    table = Table("", escape(str(params)), show_header=True, header_style="bold")
    for name, value in facts.items():
        table.add_row(Text(name), Text(str(value)))
    Console().print(table)
    for warning in warnings:
        Console(stderr=True, soft_wrap=True).print(Text(f"warning: {params}: {warning}", style="yellow"))


@app.command(epilog="Example: `fieldcast init 'archive/2024/*.nc'`")
def init(
    source: Annotated[
        str | None, typer.Argument(help="A file, folder, glob or URL; without it, simulated rain.", show_default=False)
    ] = None,
) -> None:
    """Make the working directory a project: propose all settings for an archive, and start git and DVC.

    Nothing that is there is overwritten. Exit code 2: the archive cannot be read, or a project is there already.
    """
    from fieldcast.pipeline.cli.init import init_project

    init_project(Path(), source)


@app.command(epilog="Example: `fieldcast schema`")
def schema() -> None:
    """Print the JSON schema of a parameters file, by which editors complete and check it."""
    from fieldcast.pipeline.cli.schema import schema as json_schema

    sys.stdout.write(json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n")


@app.command(epilog="Example: `fieldcast ui --port 5001`")
def ui(
    params: ParamsFile = Path("params.yaml"),
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's need a login, see MLflow.")
    ] = "127.0.0.1",
) -> None:
    """Open MLflow on the comparison of all models; stop it with Ctrl-C."""
    from fieldcast.pipeline import config
    from fieldcast.pipeline.errors import redacted
    from fieldcast.pipeline.tracking import patience, runs

    experiment, uri = config.read(params).track.experiment, patience.tracking_uri(Path())
    remote = uri.startswith("http")
    address = redacted(runs.experiment_url(uri.rstrip("/") if remote else f"http://{host}:{port}", experiment))
    Console().print(f"Comparison of all models: [link={address}]{address}[/link]", soft_wrap=True)
    if remote:  # MLFLOW_TRACKING_URI names a server that runs already
        return
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    os.execv(sys.executable, [*command, "--host", host, "--port", str(port), "--workers", "1"])  # noqa: S606


@app.command(epilog="Example: `fieldcast compare convlstm video_transformer champion`")
def compare(
    runs: Annotated[list[str], typer.Argument(help="Runs in MLflow: ids, names (the newest of that name) or aliases.")],
    params: ParamsFile = Path("params.yaml"),
    out: Annotated[Path, typer.Option(help="A folder for report, pictures and scores.")] = Path("data/compared"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as one JSON object.")] = False,
) -> None:
    """Compare verified runs of the experiment that learned from the same data, with a report of their own.

    Exit codes: 2 wrong input, 75 MLflow does not answer.
    """
    from fieldcast.pipeline import config
    from fieldcast.pipeline.evaluation import past_runs
    from fieldcast.pipeline.report import write as report
    from fieldcast.pipeline.report.terminal import print_comparisons, terminal
    from fieldcast.pipeline.tracking.registry import Registry

    settings = config.read(params)
    report.check_folder(out)
    comparisons = past_runs.compare_runs(runs, settings.compare, Registry(settings.track.experiment))
    about = report.About(settings.track.experiment, {"Runs": ", ".join(runs)})
    report.write_report(comparisons, out, {"compare": settings.compare.model_dump(mode="json")}, about=about)
    if as_json:
        sys.stdout.write((out / report.ALL_SCORES).read_text())
        return
    console = terminal()
    print_comparisons(console, comparisons)
    console.print(f"Report: {out / 'report.html'}", highlight=False, markup=False)


@app.command(epilog="Example: `fieldcast explain data/checkpoints/convlstm --at 2024-06-13T20:00 --lead 30`")
def explain(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder of a learned model.")],
    at: Annotated[str, typer.Option(help="Init time (UTC) in data/observations.zarr.")],
    lead: Annotated[int, typer.Option(help="Minutes from there to the forecast.")],
    cell: Annotated[str | None, typer.Option(help="ROW,COLUMN in the middle of 5 x 5; by default the largest.")] = None,
    how: Annotated[Literal["gradient", "rollout"], typer.Option(help="rollout: video transformers.")] = "gradient",
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("data/explained.png"),
) -> None:
    """Show which parts of the history the forecast of a place depends on, as a table and a picture.

    Exit code 2: wrong input.
    """
    from fieldcast.pipeline.explain import attribution, figure

    figure.check_picture(out)
    question = attribution.question_of(time_of("--at", at), lead, cell, how)
    explanation = attribution.explain(checkpoint, question)
    figure.write_picture(explanation, out)
    sys.stdout.write(f"{explanation.text()}Picture: {out}\n")


@app.command(epilog="Example: `fieldcast cells data/forecasts/unet.zarr --at 2010-08-26T06:00 --out cells.geojson`")
def cells(
    forecasts: Annotated[Path, typer.Argument(help="A store of forecasts, or the folder of scheduled ones.")],
    at: Annotated[str | None, typer.Option(help="Init time (UTC); by default the newest.")] = None,
    out: Annotated[Path, typer.Option(help="The GeoJSON file.")] = Path("data/cells.geojson"),
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Write the storm cells of a forecast as GeoJSON: outlines at each lead, numbered, with their speed.

    `verify.storm_cells` says what a storm cell is. Exit code 2: wrong input.
    """
    from fieldcast.pipeline import config
    from fieldcast.pipeline.cli.cells import write_cells

    written = write_cells(forecasts, None if at is None else time_of("--at", at), config.read(params).verify, out)
    Console().print(f"{written}: {out}", highlight=False, markup=False)


@app.command(epilog="Example: `fieldcast cluster data/checkpoints/joint --rounds 8 --ratio 2`")
def cluster(
    checkpoint: Annotated[Path, typer.Argument(help="A folder with a video_transformer that has attention: joint.")],
    rounds: Annotated[int, typer.Option(min=1, help="Random projections; more make clusters smaller.")] = 8,
    ratio: Annotated[float, typer.Option(help="Width of a bin by the median distance of queries; more: larger.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="The new checkpoint; by default CHECKPOINT_clustered.")] = None,
) -> None:
    """Let queries that are alike share a result in a trained transformer; show the change of cost and error.

    Needs the data of `dvc repro`. Exit code 2: wrong input.
    """
    from fieldcast.pipeline.training import cluster_queries

    out = out or checkpoint.with_name(f"{checkpoint.name}_clustered")
    sys.stdout.write(f"{cluster_queries.cluster(checkpoint, rounds, ratio, out).text()}Checkpoint: {out}\n")


@app.command(epilog="Example: `fieldcast promote convlstm --dry-run`")
def promote(
    run: Annotated[str, typer.Argument(help="A run in MLflow: id, name or alias.")] = "challenger",
    params: ParamsFile = Path("params.yaml"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the evidence and change nothing.")] = False,
) -> None:
    """Make a registered model the champion by hand, after its comparison with the present one.

    Exit codes: 1 not confirmed, 2 wrong input, 75 MLflow does not answer.
    """
    from fieldcast.pipeline import config
    from fieldcast.pipeline.evaluation.champion import propose
    from fieldcast.pipeline.report.terminal import print_comparisons, terminal
    from fieldcast.pipeline.tracking.registry import CHAMPION, Registry

    settings = config.read(params)
    registry = Registry(settings.track.experiment)
    proposal = propose(run, settings, registry)
    console = terminal()
    print_comparisons(console, proposal.comparisons, verdict=proposal.decision is not None)
    console.print(f"The rule says: {proposal.reason}.", highlight=False, markup=False)
    if dry_run:
        return
    if not yes:
        typer.confirm(f"Make version {proposal.version.number} ({proposal.version.model}) the champion?", abort=True)
    registry.appoint(proposal.version, CHAMPION, f"by hand; {proposal.reason}")
    console.print(
        f"champion: {proposal.version.model}, version {proposal.version.number}.", highlight=False, markup=False
    )


app.add_typer(live)


def main() -> None:
    """Run the command; an error that a user can correct ends in one line and its own exit code."""
    run_stage(app)
