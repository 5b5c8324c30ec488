"""Files of a project outside the repository, and git and DVC in its folder; nothing that is there is overwritten."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from fieldcast.pipeline.datasets.code import ROOT
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.files import is_url

STAGES = "stages.yaml"  # a link to dvc.yaml by a name under which DVC does not take it for one more
OURS = ("params.yaml", "dvc.yaml")  # refused where they are there
CODE = re.compile(r"^( +- )((?:pipeline|models)/\S+)$", re.MULTILINE)  # a dependency on the package's code
RAW = re.compile(r"^( +- )data/raw\n", re.MULTILINE)
HEAD = """\
# Written by `fieldcast init`: the stages of the installed package. `check` runs at each `dvc repro` and leaves a digest
# of each part of the package's code under data/checked/code; a stage runs again where that of one of its parts changes.
"""
GITIGNORE = """\
# by fieldcast: environments, trackers, and what scheduled runs write; DVC adds its own lines
.venv/
__pycache__/
/mlflow.db*
/mlartifacts/
/mlruns/
/data/resume/
/data/live/
/data/compared/
/data/outbox/
/dvc_plots/
.*.partial
.*.partial-old
"""
DVCIGNORE = """\
# by fieldcast: nothing here may change what DVC thinks of data
__pycache__/
mlflow.db*
mlruns/
mlartifacts/
data/resume/
data/live/
data/compared/
data/outbox/
"""


def require_room(folder: Path) -> None:
    """Raise `InputError` where a project is there already, the folder is the repository, or git is not installed."""
    if (folder / "pipeline").is_dir() and (folder / "fieldcast").is_dir():
        raise InputError(f"{folder.resolve()} is fieldcast's repository, a project already: choose an empty folder")
    for name in OURS:
        if (folder / name).exists():
            raise InputError(f"{name} is there already and stays: choose an empty folder, or remove it")
    if shutil.which("git") is None:
        raise InputError("git is not installed, and DVC needs it: install git")


def dvc_text(source: str | None) -> str:
    """Return dvc.yaml of a project: the repository's, whose dependencies on code are digests that `check` leaves.

    `source` is the archive that `ingest` depends on, None for one that no file is; neither is a URL.
    """
    text = (ROOT / STAGES).read_text()
    stages = text[text.index("stages:\n") :]
    raw = None if source is None or is_url(source) else _watched(source)
    stages = RAW.sub("" if raw is None else lambda found: f"{found[1]}{raw}\n", stages)
    checked, others = stages.split("\n  ingest:\n")
    checked = re.sub(r"    deps:\n(?: {6}- .*\n)+", "    always_changed: true\n", checked)
    return HEAD + checked + "\n  ingest:\n" + CODE.sub(r"\1data/checked/code/\2", others)


def default_params() -> str:
    """Return params.yaml of the default project, simulated rain."""
    return (ROOT / "params.yaml").read_text()


def write_project(folder: Path, params: str, source: str | None) -> list[str]:
    """Write the files, and start git and DVC where they are not at work; return what was done, a line each."""
    import dvc.repo
    import git  # asks for the program when it is imported

    texts = {"params.yaml": params, "dvc.yaml": dvc_text(source), ".gitignore": GITIGNORE, ".dvcignore": DVCIGNORE}
    done = []
    if not _in_git(folder):
        git.Repo.init(folder)
        done.append("git init")
    if not (folder / ".dvc").is_dir():
        logging.getLogger("dvc").setLevel(logging.WARNING)  # it says what to do next, and so do we
        started = dvc.repo.Repo.init(str(folder), subdir=not (folder / ".git").exists())
        with started.config.edit("repo") as settings:
            settings["core"]["analytics"] = False
        started.close()
        done.append("dvc init")
        (folder / ".dvcignore").unlink(missing_ok=True)  # DVC's own: comments alone
    for name, text in texts.items():
        if (folder / name).exists():
            done.append(f"{name} was there and stays; {_lacking(folder / name, text)}")
        else:
            (folder / name).write_text(text)
            done.append(name)
    return done


def experiment_of(folder: Path) -> str:
    """Return the name of an MLflow experiment for the folder."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-.")[:100]
    return name or "forecasts"


def _watched(source: str) -> str:
    """Return the path that DVC watches for the archive: of a glob the folder above its first wildcard."""
    parts = Path(source).parts
    wild = next((i for i, part in enumerate(parts) if any(letter in part for letter in "*?[")), len(parts))
    return str(Path(*parts[:wild])) if wild else "."


def _in_git(folder: Path) -> bool:
    import git

    try:
        git.Repo(folder, search_parent_directories=True).close()
    except git.InvalidGitRepositoryError:
        return False
    return True


def _lacking(path: Path, text: str) -> str:
    present = set(path.read_text().splitlines())
    missing = [line for line in text.splitlines() if line not in present and not line.startswith("#")]
    return f"add {' '.join(missing)}" if missing else "it has all lines"
