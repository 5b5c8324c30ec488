"""A new project in the working directory: its settings proposed, checked, written and explained."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from fieldcast.pipeline.cli.check import facts_of
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.proposal import project
from fieldcast.pipeline.proposal.choices import choose
from fieldcast.pipeline.proposal.survey import Survey, survey
from fieldcast.pipeline.proposal.text import params_text

SHOWN = ("variables", "grid", "time", "frames", "init times")  # facts about the archive


def init_project(folder: Path, source: str | None) -> None:
    """Write a project for `source`, or the default one; raise `InputError` before anything is written."""
    project.require_room(folder)
    found: Survey | None = None
    params = project.default_params()
    if source is not None:
        found = survey(source)
        params = params_text(found, choose(found), project.experiment_of(folder))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "params.yaml"
        path.write_text(params)
        try:
            facts = facts_of(path)
        except InputError as error:
            raise InputError(
                f"{source or 'the default project'}: what is proposed for it is refused, {error}: correct the archive "
                "or its units, or write params.yaml by hand"
            ) from None
    done = project.write_project(folder, params, getattr(found.options, "path", None) if found else None)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for name in SHOWN:
        console.print(f"{name}: {facts[name]}")
    for warning in facts["warnings"]:
        console.print(f"warning: {warning}")
    console.print(f"Written: {', '.join(done)}.")
    console.print("Settings and their reasons are in params.yaml. Now:\n")
    console.print("  fieldcast check    # what a run would do and need")
    console.print("  dvc repro          # all stages, to a table of models and data/comparison/report.html")
