"""Variables that belong together."""

from collections.abc import Sequence


def vector_pairs(names: Sequence[str]) -> list[tuple[int, int]]:
    """Return the positions of components of winds and currents among variables, as u and v, u10 and v10."""
    return [
        (i, names.index(f"v{name[1:]}"))
        for i, name in enumerate(names)
        if name.startswith("u") and f"v{name[1:]}" in names
    ]
