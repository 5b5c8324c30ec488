"""Digest of source code, by which a stage knows what it depends on where `dvc.yaml` cannot name it."""

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOPS = ("pipeline", "models")


def parts_of_code(project: Path) -> list[str]:
    """Return the parts of the code that stages of a project depend on, such as `pipeline/config` and `models/unet`.

    There are none where the code is the project's own, as in the repository: DVC watches its files.
    """
    if (project / TOPS[0]).resolve() == (ROOT / TOPS[0]).resolve():
        return []
    parts = (path for top in TOPS for path in (ROOT / top).iterdir())
    code = (path for path in parts if path.name != "__init__.py" and _is_code(path))
    return sorted(path.relative_to(ROOT).as_posix() for path in code)


def _is_code(path: Path) -> bool:
    return path.suffix == ".py" or (path / "__init__.py").is_file()


def code_digest(places: Iterable[str]) -> str:
    """Return a digest of the code and templates in `places`, files and folders such as `models/layers`."""
    digest = sha256()
    for place in places:
        path = ROOT / place
        for file in sorted([*path.rglob("*.py"), *path.rglob("*.j2")]) if path.is_dir() else [path]:
            digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()
