"""Imports between the project's modules, read from the source without running it."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules() -> dict[str, Path]:
    """Return every module of the project by dotted name."""
    paths = {}
    for package in ("pipeline", "models"):
        for path in (ROOT / package).rglob("*.py"):
            parts = ("fieldcast", *path.relative_to(ROOT).with_suffix("").parts)
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


@cache
def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere, functions included; names may be objects of modules."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@cache
def direct() -> dict[str, set[str]]:
    """Return for each module the modules of the project that it imports."""
    paths = modules()
    return {
        name: {other for other in imported(path) if other in paths and other != name} for name, path in paths.items()
    }


def closure(start: str) -> set[str]:
    """Return `start` and all modules of the project that it imports, directly or through others."""
    edges, reached, waiting = direct(), set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += edges[name]
            if (package := name.rpartition(".")[0]) in edges:
                waiting.append(package)  # importing a module runs its package
    return reached
