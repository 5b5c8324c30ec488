"""Take each guard away in a copy and run the test that must notice it: `python -m tests.mutations [words]`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import ROOT
from tests.mutations.guards import MUTATIONS
from tests.mutations.mutation import Mutation

COPIED = (
    "pipeline",
    "models",
    "fieldcast",
    "tests",
    "docs",
    "examples",
    "deploy",
    "pyproject.toml",
    "params.yaml",
    "dvc.yaml",
)
WORKERS = int(os.environ.get("WORKERS", "2"))
SECONDS = 600


def is_killed(mutation: Mutation) -> bool:
    """Return whether the named test fails without the guard; raise RuntimeError where it cannot run."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in COPIED:
            place = ROOT / name
            if place.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(place, folder / name, symlinks=True, ignore=ignored)
            else:
                shutil.copy(place, folder / name)
        mutate(folder / mutation.file, mutation)
        return _fails(folder, mutation.test)


def mutate(path: Path, mutation: Mutation) -> None:
    """Put the new text in the place of the old one, which must stand in the file once."""
    text = path.read_text("utf-8")
    if text.count(mutation.old) != 1:
        raise RuntimeError(f"{mutation.file}: {text.count(mutation.old)} times {mutation.old!r}, expected once")
    path.write_text(text.replace(mutation.old, mutation.new), "utf-8")


def _fails(folder: Path, test: str) -> bool:
    file, _, name = test.partition("::")
    chosen = ["-k", name] if name else []
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file, *chosen]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    data = ROOT.parent / "shared" / "data"
    environment.setdefault("FIELDCAST_TEST_DATA", str(data))
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    if process.returncode not in (0, 1):
        raise RuntimeError(f"{test}: pytest ended with {process.returncode}: {process.stdout[-500:]}")
    return process.returncode == 1


def main() -> None:
    """Print a line for each mutation, and how many were noticed; end with 1 where one was not."""
    words = sys.argv[1:]
    chosen = [each for each in MUTATIONS if all(word in f"{each.file} {each.old} {each.test}" for word in words)]
    with ThreadPoolExecutor(WORKERS) as pool:
        results = list(zip(chosen, pool.map(is_killed, chosen), strict=True))
    for mutation, killed in results:
        print(
            f"{'killed  ' if killed else 'SURVIVED'} {mutation.file}: {mutation.old.strip()[:70]}  <- {mutation.test}"
        )
    killed = sum(killed for _, killed in results)
    print(f"{killed} of {len(results)} mutations killed")
    sys.exit(killed < len(results))


if __name__ == "__main__":
    main()
