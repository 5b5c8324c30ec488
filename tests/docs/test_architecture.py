"""The drawing of imports is that of the code, and has no circle."""

import itertools
from graphlib import CycleError

import pytest

from docs.tools import architecture
from docs.tools.drawing import arranged, crossings, spread, svg
from docs.tools.imports import ROOT, between_packages, direct, levels, reduced

GRAPH = between_packages(direct())


def test_the_page_is_fresh() -> None:
    page = architecture.PAGE.read_text()
    assert architecture.written(page, GRAPH) == page, "run make architecture"
    assert architecture.DRAWING.read_text() == architecture.drawing(GRAPH), "run make architecture"


def test_a_changed_import_changes_page_and_drawing() -> None:
    changed = GRAPH | {"verification": GRAPH["verification"] | {"sources"}}
    page = architecture.PAGE.read_text()
    assert architecture.written(page, changed) != page
    assert architecture.drawing(changed) != architecture.drawing(GRAPH)


def test_packages_import_one_another_without_a_circle() -> None:
    level_of = levels(GRAPH)
    assert all(level_of[other] < level_of[name] for name, others in GRAPH.items() for other in others)
    with pytest.raises(CycleError):
        levels(GRAPH | {"errors": {"cli"}})


def test_every_package_imports_what_it_says() -> None:
    for package, others in GRAPH.items():
        init = ROOT / "pipeline" / package / "__init__.py"
        if init.is_file():
            allowed = set(
                architecture.sections(architecture.docstring(init))[2].replace("`", "").split("; ")[0].split(", ")
            )
            assert others <= allowed, f"{package}: its docstring leaves out {others - allowed}"


def test_a_docstring_without_its_sections_is_refused() -> None:
    with pytest.raises(ValueError, match="May import"):
        architecture.sections("Scores.\n\nIn: forecasts. Out: scores.\n")


def test_implied_imports_are_left_out() -> None:
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set(), "d": set()}
    assert reduced(graph) == {"a": {"b", "d"}, "b": {"c"}, "c": set(), "d": set()}


def test_what_is_left_out_follows_from_the_rest() -> None:
    def reach(graph: dict[str, set[str]], name: str) -> set[str]:
        return graph[name].union(*(reach(graph, other) for other in graph[name]))

    for name in GRAPH:
        assert reach(GRAPH, name) == reach(reduced(GRAPH), name)


def test_boxes_of_a_level_do_not_overlap_and_arrows_go_down() -> None:
    layout = arranged(reduced(GRAPH))
    for row in layout.rows:
        boxes = [layout.x[place] for place in row if len(place) == 1]
        assert all(right - left >= 124 for left, right in itertools.pairwise(boxes))
    level_of = {place: level for level, row in enumerate(layout.rows) for place in row}
    assert all(level_of[lower] == level_of[upper] - 1 for upper, lowers in layout.below.items() for lower in lowers)


def test_crossings_are_counted_and_avoided() -> None:
    crossed = {"a": {"d"}, "b": {"c"}, "c": set(), "d": set()}  # by name a is left of b, c left of d
    assert crossings(arranged(crossed)) == 0
    complete = {"a": {"c", "d"}, "b": {"c", "d"}, "c": set(), "d": set()}
    assert crossings(arranged(complete)) == 1


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([0.0, 10.0], [0.0, 10.0]),
        ([0.0, 0.0], [-2.0, 2.0]),  # as near as 4 apart allows
        ([6.0, 0.0, 30.0], [1.0, 5.0, 30.0]),
    ],
)
def test_positions_keep_their_distances(wanted: list[float], expected: list[float]) -> None:
    assert spread(wanted, [4.0] * (len(wanted) - 1)) == pytest.approx(expected)


def test_every_box_has_its_name_in_the_drawing() -> None:
    picture = svg(GRAPH, (), "imports")
    assert all(f">{name}</text>" in picture for name in GRAPH)
    assert picture.count("marker-end") == sum(map(len, GRAPH.values()))
