"""Generated parts of `docs/architecture.md`: the drawing of imports between packages, and the tables of packages.

`make architecture` writes them; a test compares them with the code.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from docs.tools.drawing import svg
from docs.tools.imports import ROOT, Graph, between_packages, direct, reduced

PAGE = ROOT / "docs" / "architecture.md"
DRAWING = ROOT / "docs" / "architecture.svg"
STAGES = ("check", "ingest", "prepare", "train", "forecast", "verify", "compare")
SECTION = r"In: (.*?)\. Out: (.*?)\.\nMay import: (.*?)\.(?:\n|$)"


def drawing(graph: Graph) -> str:
    """Return the picture of imports that no other import implies, stages highlighted."""
    return svg(reduced(graph), STAGES, "Imports between the packages of fieldcast")


def caption(graph: Graph) -> str:
    """Return a sentence with the numbers of boxes and arrows."""
    drawn, total = (sum(map(len, edges.values())) for edges in (reduced(graph), graph))
    return (
        f"{len(graph)} packages and stages import one another {total} times, never in a circle. {drawn} of these "
        "imports are drawn as arrows; each of the others goes where a path of arrows goes."
    )


def stages_table(graph: Graph) -> str:
    """Return what each stage imports, in the order of the flow."""
    rows = [(f"`pipeline/{stage}.py`", ", ".join(sorted(graph[stage]))) for stage in STAGES]
    return _table(("stage", "imports"), rows)


def packages_table(graph: Graph) -> str:
    """Return what each package of `pipeline/` is, what comes in, what goes out and what it imports."""
    rows = []
    for init in sorted((ROOT / "pipeline").rglob("*/__init__.py")):
        text = docstring(init)
        comes_in, goes_out, _ = sections(text)
        package = init.parent.relative_to(ROOT / "pipeline")
        imports = ", ".join(sorted(graph[package.name])) if package.name in graph else f"part of `{package.parent}`"
        rows.append((f"`{package}/`", _title(text), comes_in, goes_out, imports))
    return _table(("package", "what it is", "in", "out", "imports"), rows)


def models_table() -> str:
    """Return what each folder of `models/` is."""
    inits = sorted((ROOT / "models").rglob("*/__init__.py"))
    rows = [(f"`{init.parent.relative_to(ROOT).as_posix()}/`", _title(docstring(init))) for init in inits]
    return _table(("folder", "what it is"), rows)


def docstring(path: Path) -> str:
    """Return the docstring of a module."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def sections(text: str) -> tuple[str, str, str]:
    """Return the parts In, Out and May import of a package's docstring; raise ValueError where one is missing."""
    match = re.search(SECTION, text, re.DOTALL)
    if match is None:
        raise ValueError(f"a docstring must have 'In: ... . Out: ... .' and a line 'May import: ... .', got {text!r}")
    comes_in, goes_out, may_import = (" ".join(part.split()) for part in match.groups())
    return comes_in, goes_out, may_import


def written(page: str, graph: Graph) -> str:
    """Return the page with its generated parts as the code has them now."""
    parts = {
        "caption": caption(graph),
        "stages": stages_table(graph),
        "packages": packages_table(graph),
        "models": models_table(),
    }
    for name, part in parts.items():
        start, end = f"<!-- {name}: make architecture -->", f"<!-- end of {name} -->"
        before, _, rest = page.partition(start)
        page = f"{before}{start}\n{part}\n{end}{rest.partition(end)[2]}"
    return page


def main() -> None:
    """Write the drawing and the page."""
    graph = between_packages(direct())
    DRAWING.write_text(drawing(graph))
    PAGE.write_text(written(PAGE.read_text(), graph))
    sys.stdout.write(f"{DRAWING}\n{PAGE}\n")


def _title(text: str) -> str:
    """Return the first sentence of a docstring, its full stop left out."""
    return " ".join(text.split("\n\n")[0].split()).removesuffix(".")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
