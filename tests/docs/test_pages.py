"""Links, paths and names in the pages of the project lead somewhere."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from docs.tools.imports import ROOT, modules

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (ROOT, ROOT / "data" / "raw", ROOT / "deploy", ROOT / "docs", ROOT / "docs" / "decisions")
    for path in folder.glob("*.md")
)
FOLDERS = "pipeline|models|tests|docs|examples|deploy|benchmarks|fieldcast"


def missing_links(text: str, folder: Path) -> list[str]:
    """Return the relative links of a page in `folder` whose file or heading does not exist."""
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        path = folder / target
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            missing.append(link)
    return missing


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_paths(text: str) -> list[str]:
    """Return the paths in backquotes that begin with a folder of the project and do not exist."""
    paths = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text)
    return [path for path in paths if not (ROOT / path).exists()]


def missing_names(text: str) -> list[str]:
    """Return the dotted names in backquotes that are neither a module nor a name in one."""
    names = re.findall(r"`(fieldcast\.(?:pipeline|models)[\w.]*)(?:\(\))?`", text)
    known = {"fieldcast.pipeline", "fieldcast.models", *modules()}
    return [
        name
        for name in names
        if name not in known
        and not (
            name.rpartition(".")[0] in known
            and hasattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2])
        )
    ]


@pytest.mark.parametrize("page", PAGES)
def test_everything_that_a_page_names_exists(page: str) -> None:
    path = ROOT / page
    text = path.read_text()
    assert missing_links(text, path.parent) == []
    assert missing_paths(text) == []
    assert missing_names(text) == []


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in (ROOT / page).read_text()])
def test_imports_of_examples_work(page: str) -> None:
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_what_does_not_exist_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A title, long\n")
    text = "[a](other.md) [b](gone.md) [c](other.md#a-title-long) [d](other.md#none) [e](https://example.org/x)"
    assert missing_links(text, tmp_path) == ["gone.md", "other.md#none"]
    assert missing_paths("`pipeline/ingest.py` `pipeline/gone.py` `models/<kind>/`") == ["pipeline/gone.py"]
    assert missing_names("`fieldcast.pipeline.errors.InputError` `fieldcast.pipeline.errors.Gone`") == [
        "fieldcast.pipeline.errors.Gone"
    ]
