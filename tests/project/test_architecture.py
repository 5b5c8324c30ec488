"""Imports point one way, and one module owns each heavy dependency."""

import ast

import pytest

from docs.tools.imports import ROOT, direct, imported, modules, package_of

PIPELINE = "fieldcast.pipeline"
STAGES = {f"{PIPELINE}.{name}" for name in ("check", "ingest", "prepare", "train", "forecast", "verify", "compare")}
LAYERS = (  # a package imports those of lower layers; within a layer nothing
    {"models", "errors"},
    {"config"},
    {"datasets"},
    {"sources", "verification", "forecasting"},
    {"tracking"},
    {"evaluation", "training", "proposal", "storms"},
    {"report"},
    {"explain"},
    {"check", "ingest", "prepare", "train", "forecast", "verify", "compare"},
    {"live"},
    {"provenance"},
    {"api"},
    {"cli"},
)
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}
OWNERS = {
    "yaml": {"pipeline.config.yaml_file"},
    "zarr": {"pipeline.datasets.store"},
    "mlflow": {
        "pipeline.tracking.runs",
        "pipeline.tracking.records",
        "pipeline.tracking.outbox",
        "pipeline.tracking.registry",
        "pipeline.tracking.pyfunc",  # runs inside MLflow
        "pipeline.live.mlflow_sync",
    },
    "lightning": {
        "pipeline.training.fit",
        "pipeline.training.lightning_module",
        "pipeline.training.checkpoint_files",
    },
    "pysteps": {"models.layers.cascade"},
    "rioxarray": {"pipeline.live.archive.exports"},
    "typer": {"pipeline.cli.main", "pipeline.cli.live"},
}


def test_packages_import_those_of_lower_layers_alone() -> None:
    for name, others in direct().items():
        here = package_of(name)
        for there in {package_of(other) for other in others} - {here, None}:
            assert LEVEL[str(there)] < LEVEL[str(here)], f"{name} imports {there}"


def test_every_package_says_what_comes_in_and_what_goes_out() -> None:
    for package in sorted({path.parent for path in modules().values()} - {ROOT / "pipeline", ROOT / "models"}):
        text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
        if package.parent == ROOT / "pipeline":
            assert all(part in text for part in ("In: ", "Out: ", "May import: ")), package


def test_models_import_nothing_of_the_pipeline() -> None:
    for name, others in direct().items():
        if package_of(name) == "models":
            assert {package_of(other) for other in others} <= {"models"}, name


def test_no_stage_imports_a_stage_and_no_library_does() -> None:
    for name, others in direct().items():
        assert not others & STAGES, name


def test_nothing_is_imported_by_the_names_of_the_folders() -> None:
    for path in [*modules().values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        assert not {name for name in imported(path) if name.split(".")[0] in ("pipeline", "models")}, path


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_one_module_owns_it(library: str) -> None:
    users = {
        name.removeprefix("fieldcast.")
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
