"""Imports point one way, and one module owns each heavy dependency."""

import ast

import pytest

from tests.imports import ROOT, direct, imported, modules

STAGES = {f"pipeline.{name}" for name in ("ingest", "prepare", "train", "forecast", "verify", "compare")}
OWNERS = {
    "yaml": {"pipeline.config"},
    "zarr": {"pipeline.store"},
    "mlflow": {
        "pipeline.tracking",
        "pipeline.registry",
        "pipeline.served",
        "pipeline.live.tracker",
    },  # served runs inside MLflow
    "lightning": {"pipeline.fit", "pipeline.module"},
    "pysteps": {"models.motion", "models.steps.forecast"},
    "rioxarray": {"pipeline.live.copies"},
    "typer": {"pipeline.cli", "pipeline.live_cli"},
}


def test_models_import_nothing_of_the_pipeline() -> None:
    for name, others in direct().items():
        if name.startswith("models"):
            assert not {other for other in others if other.startswith("pipeline")}, name


def test_no_stage_imports_a_stage_and_no_library_does() -> None:
    for name, others in direct().items():
        assert not others & STAGES, name


def test_schema_imports_nothing_and_config_only_options() -> None:
    assert direct()["pipeline.schema"] == set()
    assert direct()["pipeline.config"] == {
        "models",
        "pipeline.schema",
        "pipeline.source_options",
        "pipeline.train_options",
    }


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_one_module_owns_it(library: str) -> None:
    users = {
        name
        for name, path in modules().items()
        if any(other == library or other.startswith(f"{library}.") for other in imported(path))
    }
    assert users == OWNERS[library]


def test_only_mains_read_the_parameters() -> None:
    """`config.load` is called in the main function of stages."""
    callers = set()
    for name, path in modules().items():
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and "config.load(" in ast.unparse(function):
                callers.add(f"{name}.{function.name}")
    allowed = {f"{stage}.main" for stage in STAGES}
    assert callers == allowed


def test_functions_and_files_stay_readable() -> None:
    long = []
    for name, path in modules().items():
        text = path.read_text()
        assert text.count("\n") <= 400, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                if lines > 60:
                    long.append(f"{name}.{node.name}: {lines}")
    assert not long


def test_the_project_speaks_of_itself_alone() -> None:
    words = ("/wo" + "rk/", "/op" + "t/wheels", "pypi" + ".org/simple")
    for path in ROOT.rglob("*"):
        hidden = any(part in {".venv", ".git", "data", "mlartifacts"} or part.endswith("cache") for part in path.parts)
        if not hidden and path.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".j2"} and path.is_file():
            text = path.read_text()
            assert not [word for word in words if word in text], path
