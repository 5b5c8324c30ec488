"""Figures of the code: lines, functions, docstrings, look-alike lines and entries of folders.

`make house` prints them; `python -m docs.tools.house ROOT` those of another checkout.
"""

from __future__ import annotations

import ast
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from keyword import iskeyword
from pathlib import Path
from statistics import median

import numpy as np

PRODUCT = ("pipeline", "models")
RUN = 6  # lines that look alike
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


@dataclass(frozen=True)
class Function:
    """A function or method: lines of its body without the docstring, and how it presents itself."""

    body_lines: int
    public: bool
    documented: bool


def sources(root: Path) -> dict[str, list[Path]]:
    """Return the Python files of each package of the product, by its folder below `root`.

    Raises ValueError where there are none.
    """
    packages: dict[str, list[Path]] = defaultdict(list)
    for top in PRODUCT:
        for path in sorted((root / top).rglob("*.py")):
            packages["/".join(path.relative_to(root).parent.parts[:2])].append(path)
    if not packages:
        raise ValueError(f"expected Python files in pipeline/ or models/ of {root}, found none")
    return dict(packages)


def functions(path: Path) -> list[Function]:
    """Return all functions of a file; private are those with a leading underscore, and those within functions."""
    tree = ast.parse(path.read_text())
    inner = {
        node
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(outer)
        if node is not outer
    }
    return [
        Function(_body_lines(node), not node.name.startswith("_") and node not in inner, bool(ast.get_docstring(node)))
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def look_alikes(paths: Iterable[Path], *, names: bool = True) -> int:
    """Return the number of pairs of places with six lines in a row that look alike.

    Literals are equal to one another, and identifiers as well unless `names`. Imports, docstrings, comments and lines
    without an identifier do not count as lines.
    """
    places: Counter[tuple[str, ...]] = Counter()
    for path in paths:
        lines = _shapes(path, names)
        places.update(tuple(lines[start : start + RUN]) for start in range(len(lines) - RUN + 1))
    return sum(count * (count - 1) // 2 for count in places.values())


def entries(root: Path) -> dict[str, int]:
    """Return the number of files and folders in each folder of the product, `__init__.py` left out."""
    folders = [path for top in PRODUCT for path in ((root / top), *(root / top).rglob("*")) if path.is_dir()]
    return {
        folder.relative_to(root).as_posix(): sum(
            one.name not in {"__init__.py", "__pycache__"} for one in folder.iterdir()
        )
        for folder in sorted(folders)
        if folder.name != "__pycache__"
    }


def figures(root: Path) -> str:
    """Return the text of all figures."""
    packages = sources(root)
    paths = [path for group in packages.values() for path in group]
    everything = [function for path in paths for function in functions(path)]
    public = [function for function in everything if function.public]
    lengths = [function.body_lines for function in everything]
    lines = {package: sum(_lines(path) for path in group) for package, group in packages.items()}
    folder_sizes = entries(root)
    fullest = sorted(folder_sizes, key=lambda folder: -folder_sizes[folder])[:5]
    return "\n".join(
        [
            f"{'lines':>7}  package",
            *(f"{lines[package]:7}  {package}" for package in lines),
            f"{sum(lines.values()):7}  in all, in {len(paths)} files",
            f"functions: {len(everything)}, body lines median {median(lengths):.0f},"
            f" 90th percentile {np.percentile(lengths, 90):.0f}, longest {max(lengths)}",
            f"public functions: {_documented(public, True)} with a docstring, {_documented(public, False)} without",
            f"look-alike pairs of {RUN} lines: {look_alikes(paths)}, with other names"
            f" {look_alikes(paths, names=False)}",
            f"entries a folder: median {median(folder_sizes.values()):.0f}, most in "
            + ", ".join(f"{folder} {folder_sizes[folder]}" for folder in fullest),
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Print the figures of the checkout that the first argument names, or of this one."""
    root = Path(arguments[0]) if arguments else Path(__file__).parents[2]
    sys.stdout.write(figures(root) + "\n")


def _documented(group: Iterable[Function], wanted: bool) -> int:
    return sum(function.documented is wanted for function in group)


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def _shapes(path: Path, names: bool) -> list[str]:
    """Return the lines of a file as tokens."""
    text = path.read_text()
    skipped = set()
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            skipped |= set(range(node.lineno, (node.end_lineno or 0) + 1))  # type: ignore[attr-defined]
    lines: dict[int, list[str]] = defaultdict(list)
    identifiers = set()  # line numbers
    for token in tokenize.generate_tokens(StringIO(text).readline):
        number, is_name = token.start[0], token.type == tokenize.NAME and not iskeyword(token.string)
        if token.type in LAYOUT or number in skipped:
            continue
        if is_name:
            identifiers.add(number)
        literal = token.type in (tokenize.STRING, tokenize.NUMBER)
        lines[number].append("0" if literal else "x" if is_name and not names else token.string)
    return [" ".join(lines[number]) for number in sorted(identifiers)]


if __name__ == "__main__":
    main(sys.argv[1:])
