"""Mutations of what guards a first hour: forecasts of foreign datasets, new projects, inherited parameters."""

from tests.mutations.mutation import Mutation

M = Mutation
API, INIT, EXTENDS = "tests/test_api.py", "tests/proposal/test_init.py", "tests/config/test_extends.py"
PROJECTS = (
    M(
        "pipeline/forecasting/dataset.py",
        "if difference := compare",
        "if False and compare",
        f"{API}::test_what_does_not",
    ),
    M("pipeline/forecasting/dataset.py", "        if missing.size:", "        if False:", f"{API}::test_what_does_not"),
    M("pipeline/forecasting/dataset.py", "if width > 0 and not", "if False and not", f"{API}::test_what_does_not"),
    M("pipeline/api.py", "    if difference := compare", "    if False and compare", f"{API}::test_observations_that"),
    M(
        "pipeline/proposal/project.py",
        "(folder / name).exists():\n            raise",
        "False:\n            raise",
        INIT,
    ),
    M(
        "pipeline/proposal/choices.py",
        "later = places[places >= train[-1] + gap]",
        "later = places[places > train[-1]]",
        INIT,
    ),
    M("pipeline/config/extends.py", "    base.pop(MODELS, None)", "", f"{EXTENDS}::test_what_is_left_out"),
    M("pipeline/check.py", "content = public(", "content = dict(", f"{EXTENDS}::test_dvc_sees"),
)
