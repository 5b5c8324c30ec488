"""The page of models tells the truth: all that follows from the code is compared with it."""

import re

import pytest

from docs.tools import model_table as catalogue
from docs.tools.imports import ROOT
from docs.tools.model_table import SIDES, VARIANTS, cost_of, options_table, parameters_of, short, theory_table
from fieldcast import models
from fieldcast.models.video_transformer.attention.choices import ATTENTIONS

PAGE = (ROOT / catalogue.PAGE).read_text()


def rows(heading: str) -> dict[str, list[str]]:
    """Return the cells of the first table below a heading, by their first cell."""
    table = PAGE.split(heading)[1].split("\n\n| ")[1].split("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]
    return {cells[0]: cells[1:] for cells in lines}


def test_every_attention_and_mixer_is_a_variant() -> None:
    stated = [variant.stated() for variant in VARIANTS.values()]
    assert {getattr(it, "attention", None) for it in stated} >= set(ATTENTIONS)
    assert {getattr(it, "temporal_mixer", None) for it in stated} >= {"convlstm", "convgru", "trajgru", "attention"}
    assert {variant.kind for variant in VARIANTS.values()} == set(models.LEARNED)


@pytest.mark.parametrize("name", VARIANTS)
def test_costs_are_those_of_the_code(name: str) -> None:
    variant, cells = VARIANTS[name], rows("## What they cost")[name]
    found = cost_of(variant, SIDES[0])
    assert cells[0] == f"{parameters_of(variant) / 1e6:.3f}"
    assert cells[1] == short(found.macs / 1e9)
    assert cells[1 + len(SIDES)] == short(found.held_mb)
    assert cells[-2] == f"`{variant.kind}` `{variant.in_yaml()}`"
    assert cells[-1] == variant.paper


def test_theory_is_that_of_the_code() -> None:
    assert theory_table() in PAGE


def test_every_variant_was_timed() -> None:
    timed = rows("## How long they take")
    assert list(timed) == list(VARIANTS)
    assert all(re.fullmatch(r"\d+", cell) for cells in timed.values() for cell in cells)


@pytest.mark.parametrize("kind", models.LEARNED)
def test_options_are_those_of_the_code(kind: str) -> None:
    assert options_table(kind) in PAGE
