"""`extends` of a params file: all that it leaves out comes from a file below `examples/`.

`models` is a list of one's own: DVC makes a stage of each name there before any of our code runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fieldcast.pipeline.config.renamed import outdated
from fieldcast.pipeline.config.yaml_file import read_yaml
from fieldcast.pipeline.errors import InputError

EXTENDS, MODELS = "extends", "models"
EXAMPLE = re.compile(r"examples/[A-Za-z0-9_-]+\.yaml")
INSTALLED = Path(__file__).parents[2]  # has the examples of the package
Places = dict[tuple[str, ...], Path]  # path of a key -> the file that it is from


def read_extended(path: Path) -> tuple[dict[str, Any], Places]:
    """Return the content of a params file with what it inherits, and which file each inherited key is from.

    A mapping is joined with the one that it changes, key by key, unless it says another `kind`; anything else takes its
    place. Raise `InputError` for a file that is no mapping, has keys of an older version, or extends what it cannot.
    """
    return _read(path, ())


def file_of(places: Places, keys: Sequence[str], otherwise: Path) -> Path:
    """Return the file that a key is from, by its path."""
    for length in range(len(keys), 0, -1):
        if (found := places.get(tuple(keys[:length]))) is not None:
            return found
    return otherwise


def _read(path: Path, below: tuple[Path, ...]) -> tuple[dict[str, Any], Places]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected sections such as source: and train:, found {type(content).__name__}")
    if changes := outdated(content):
        raise InputError(f"{path}: {'; '.join(changes)}")
    if EXTENDS not in content:
        return content, {}
    base_path = _base(path, content.pop(EXTENDS))
    if base_path.resolve() in [each.resolve() for each in (*below, path)]:
        raise InputError(f"{path}: extends {base_path}, which extends it in turn: remove one of the two lines")
    base, places = _read(base_path, (*below, path))
    base.pop(MODELS, None)
    if MODELS not in content and not below:
        raise InputError(
            f"{path}: models is missing; it is not inherited from {base_path}, since DVC makes a stage of each name in "
            f"{path.name}: copy those to compare"
        )
    inherited: Places = {}
    merged = _merged(base, content, (), inherited, places, base_path)
    return merged, inherited


def _base(path: Path, named: Any) -> Path:
    """Return the file that `extends` names: beside the folder of the params file, or in the package."""
    if not isinstance(named, str) or not EXAMPLE.fullmatch(named):
        raise InputError(
            f"{path}: extends is {named!r}, expected a file below examples/, which DVC watches, such as "
            "examples/knmi-radar.yaml"
        )
    own = path.parent.parent if path.parent.name == "examples" else path.parent
    for root in (own, INSTALLED):
        if (root / named).is_file():
            return root / named
    known = ", ".join(sorted(each.name for each in (INSTALLED / "examples").glob("*.yaml")))
    raise InputError(f"{path}: extends is '{named}': no such file below {own}; fieldcast itself has {known}")


def _merged(
    base: Mapping[str, Any],
    own: Mapping[str, Any],
    above: tuple[str, ...],
    inherited: Places,
    earlier: Places,
    base_path: Path,
) -> dict[str, Any]:
    """Return `base` changed by `own`; the keys of `base` that stay go to `inherited` with their file."""
    result = dict(own)
    for key, value in base.items():
        place = (*above, key)
        if key not in own:
            result[key] = value
            inherited[place] = base_path
            inherited |= {keys: file for keys, file in earlier.items() if keys[: len(place)] == place}
        elif _joined(value, own[key]):
            result[key] = _merged(value, own[key], place, inherited, earlier, base_path)
    return result


def _joined(base: Any, own: Any) -> bool:
    if not isinstance(base, Mapping) or not isinstance(own, Mapping):
        return False
    return "kind" not in own or own["kind"] == base.get("kind")
