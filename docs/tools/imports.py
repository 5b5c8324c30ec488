"""Imports between the project's modules and between its packages, read from the source without running it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]

Graph = Mapping[str, set[str]]  # name -> names that it imports


def modules() -> dict[str, Path]:
    """Return every module of the project by dotted name."""
    paths = {}
    for top in ("pipeline", "models"):
        for path in (ROOT / top).rglob("*.py"):
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
    graph, reached, waiting = direct(), set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += graph[name]
            if (package := name.rpartition(".")[0]) in graph:
                waiting.append(package)  # importing a module runs its package
    return reached


def package_of(module: str) -> str | None:
    """Return the package or file of `pipeline/` that a module lies in, or `models`; None for `pipeline` itself."""
    parts = module.split(".")
    if parts[1] == "models":
        return "models"
    return parts[2] if len(parts) > 2 else None


def between_packages(graph: Graph) -> dict[str, set[str]]:
    """Return for each package the others that its modules import, given the imports of modules."""
    packages: dict[str, set[str]] = {}
    for module, others in graph.items():
        if (package := package_of(module)) is not None:
            names = {name for other in others if (name := package_of(other)) is not None}
            packages.setdefault(package, set()).update(names - {package})
    return packages


def levels(graph: Graph) -> dict[str, int]:
    """Return the level of each name: 0 where it imports nothing, else one above the highest that it imports.

    Raises `graphlib.CycleError`, with the circle as its second argument, where names import one another.
    """
    result: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        result[name] = max((result[other] + 1 for other in graph[name]), default=0)
    return result


def reduced(graph: Graph) -> dict[str, set[str]]:
    """Return the graph without imports that follow from others: a -> c is left out where a -> b and b -> ... -> c.

    The graph must be without circles.
    """
    below: dict[str, set[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        below[name] = graph[name].union(*(below[other] for other in graph[name]))
    return {name: {other for other in others if not _implied(other, others, below)} for name, others in graph.items()}


def _implied(name: str, siblings: set[str], below: Graph) -> bool:
    return any(name in below[sibling] for sibling in siblings)
