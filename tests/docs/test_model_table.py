"""All parts of the page of models that follow from the code are those of the code."""

import re

import pytest

from docs.tools.imports import ROOT
from docs.tools.model_table import (
    PAGE_PATH,
    SIDES,
    VARIANTS,
    complexity_table,
    cost_of,
    has_options,
    options_table,
    page,
    parameters_of,
    short,
)
from fieldcast import models
from fieldcast.models.video_transformer.attention.patterns import ATTENTIONS
from tests.campaign import cases

PAGE = (ROOT / PAGE_PATH).read_text()


def rows(heading: str) -> dict[str, list[str]]:
    """Return the cells of the first table below a heading, by their first cell."""
    table = PAGE.split(heading)[1].split("\n\n| ")[1].split("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]
    return {cells[0]: cells[1:] for cells in lines}


def test_every_attention_and_mixer_is_a_variant() -> None:
    options = [variant.checked_options() for variant in VARIANTS.values()]
    assert {getattr(one, "attention", None) for one in options} >= set(ATTENTIONS)
    assert {getattr(one, "cell", None) for one in options} >= {"convlstm", "convgru", "trajgru", "attention"}
    assert {variant.kind for variant in VARIANTS.values()} == set(models.LEARNED)


@pytest.mark.parametrize("name", cases(VARIANTS, VARIANTS.keys() - {"autoregressive", "deformable"}))  # the slowest
def test_costs_are_those_of_the_code(name: str) -> None:
    variant, cells = VARIANTS[name], rows("## What they cost")[name]
    cost = cost_of(variant, SIDES[0])
    assert cells[0] == f"{parameters_of(variant) / 1e6:.3f}"
    assert cells[1] == short(cost.macs / 1e9)
    assert cells[1 + len(SIDES)] == short(cost.held_mb)
    assert cells[-2] == f"`{variant.kind}` `{variant.in_yaml()}`"
    assert cells[-1] == variant.paper


def test_complexity_is_that_of_the_code() -> None:
    assert complexity_table() in PAGE


def test_text_is_that_of_the_code() -> None:
    for part in page("<part>", "<part>", "<part>", "<part>").split("<part>"):
        assert part in PAGE


def test_every_variant_was_timed() -> None:
    timed = rows("## How long they take")
    assert list(timed) == list(VARIANTS)
    assert all(re.fullmatch(r"\d+", cell) for cells in timed.values() for cell in cells)


def test_every_reference_is_described() -> None:
    described = rows("## References")
    assert list(described) == [f"`{kind}`" for kind in models.REFERENCES]
    assert described["`linear`"] == [
        "Linear regression from principal components of the latest fields, on top of damped persistence"
    ]


@pytest.mark.parametrize("kind", [*models.LEARNED, *filter(has_options, models.REFERENCES)])
def test_options_are_those_of_the_code(kind: str) -> None:
    assert options_table(kind) in PAGE
