"""The `fieldcast` command: a thin layer over the functions of this package; heavy imports wait for their command."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="From gridded observations to compared, tracked forecasts. `dvc repro` runs the pipeline; this looks at it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

ParamsFile = Annotated[Path, typer.Option("--params", "-p", help="The parameters to read.")]


@app.callback()
def _commands() -> None:
    """Make every function below a command, even if there is but one."""


@app.command(epilog="Example: `fieldcast check --params examples/knmi-radar.yaml`")
def check(
    params: ParamsFile = Path("params.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Validate a parameters file, look at its source, and print what a run would work on. Exit code 2: wrong input."""
    from pipeline.inspection import inspect

    facts = inspect(params)
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2, default=str) + "\n")
        return
    table = Table("", str(params), show_header=True, header_style="bold")
    for name, value in facts.items():
        table.add_row(name, str(value))
    Console().print(table)


@app.command(epilog="Example: `fieldcast ui --port 5001`")
def ui(
    params: ParamsFile = Path("params.yaml"),
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's need a login, see MLflow.")
    ] = "127.0.0.1",
) -> None:
    """Open MLflow on the comparison of all models; stop it with Ctrl-C."""
    from pipeline import config, tracking

    experiment, uri = config.read(params).track.experiment, tracking.tracking_uri(Path())
    remote = uri.startswith("http")
    address = tracking.experiment_url(uri.rstrip("/") if remote else f"http://{host}:{port}", experiment)
    Console().print(f"Comparison of all models: [link={address}]{address}[/link]", soft_wrap=True)
    if remote:  # MLFLOW_TRACKING_URI names a server that runs already
        return
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    os.execv(sys.executable, [*command, "--host", host, "--port", str(port), "--workers", "1"])


def main() -> None:
    """Run the command; wrong input ends in one line and exit code 2."""
    from pipeline import config

    config.run_stage(app)
