"""Digest of source code, by which a stage knows what it depends on where `dvc.yaml` cannot name it."""

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[2]


def code_digest(places: Iterable[str]) -> str:
    """Return a digest of the Python files in `places`, files and folders such as `models/layers`."""
    digest = sha256()
    for place in places:
        path = ROOT / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()
