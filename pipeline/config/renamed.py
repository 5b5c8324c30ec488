"""Keys of older params files, and what became of them: one line says all that is to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

RENAMED = {  # dotted path -> its last key now; '*' is any model's name
    "train.teacher": "scheduled_sampling",
    "train.rollout.until": "ramp_fraction",
    "models.*.temporal_mixer": "cell",
}

GONE = {"models.*.smooth": "convolutions join the patches of a video_transformer (stem: conv, the default)"}


def outdated(content: Mapping[str, Any]) -> list[str]:
    """Return what to change in the content of a params file of an older version, one sentence a key; empty if nothing.

    Keys that no version had are left to the check of each section.
    """
    changes = []
    kinds = content.get("kinds")
    if isinstance(kinds, Mapping) and kinds:
        name, kind = next(iter(kinds.items()))
        changes.append(
            "the section kinds is gone; state each model's kind with its options, such as "
            f"models: {{{name}: {{kind: {kind}}}}}"
        )
    for path, key in RENAMED.items():
        changes += [f"{old} is called {key} now" for old in _matching(content, path.split("."))]
    for path, instead in GONE.items():
        changes += [f"{old} is gone: {instead}; remove it" for old in _matching(content, path.split("."))]
    return changes


def _matching(content: Any, path: list[str], above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the dotted paths in `content` that `path` matches."""
    if not path:
        yield ".".join(above)
    elif isinstance(content, Mapping):
        for key in content if path[0] == "*" else [key for key in content if key == path[0]]:
            yield from _matching(content[key], path[1:], (*above, str(key)))
