import re
from dataclasses import replace

import pytest

from fieldcast.pipeline.forecasting.costs import Costs
from fieldcast.pipeline.report import html as report
from fieldcast.pipeline.report.html import Page, Part, Picture
from fieldcast.pipeline.report.tables import (
    Cell,
    Differences,
    Groups,
    Matrix,
    cost_table,
    difference_table,
    group_table,
    matrix_table,
)
from fieldcast.pipeline.verification.scores import Score

NAN = float("nan")
RMSE, CSI = Score("rmse"), Score("csi", 1.0, units="mm h-1")
METRICS = {
    "advection": {RMSE: {5: 0.25, 10: 1.0}, CSI: {5: 0.5, 10: NAN}},
    "convlstm": {RMSE: {5: 0.5, 10: 0.75}, CSI: {5: 0.5, 10: NAN}},
}
PART = Part(
    title="rain rate, mm/h", verdict=["convlstm is better.", "How sure that is."], metrics=METRICS, leading=[RMSE],
    facts={"Init times": "6"}, pictures=[],
)  # fmt: skip
BARE = Page([PART], references=("advection",), settings={"source": {"kind": "<storms>"}})
NAMES = list(METRICS)


def with_part(**changes) -> Page:
    return replace(BARE, parts=[replace(PART, **changes)])


HEADINGS = ("Left out", "Differences from", "Scores against", "Maps", "Cases", "Differences between",
            "Spectra", "Reliability", "Ranks",
            "Coverage of", "Performance", "Scores by group", "Skill and the", "Costs")  # fmt: skip


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "skill.png").write_bytes(b"picture")
    return Picture(tmp_path / "skill.png", "skill & more", "skill")


def headings(html: str) -> list[str]:
    """Return the texts of all headings of sections."""
    return re.findall(r"<h[23][^>]*>([^<]*)</h[23]>", html)


def cells(html: str, name: str) -> list[str]:
    """Return the classes and texts of the first line of a table that is `name`'s."""
    line = html.split(f'<th scope="row">{name}</th>', 1)[1].split("</tr>")[0]
    return [part.split("</td>")[0].strip(">") for part in line.split("<td")[1:]]


def test_it_stands_alone_escapes_and_repeats(picture):
    content = with_part(pictures=[picture])
    html = report.render(content)
    assert "data:image/png;base64,cGljdHVyZQ==" in html
    assert "http" not in html.replace("https://www.w3.org", "")
    assert "<script" not in html
    assert "source.kind</dt><dd>&lt;storms&gt;" in html
    assert "skill &amp; more" in html
    assert html.index("convlstm is better") < html.index("How sure") < html.index("<table")
    assert html == report.render(content)


def test_sections_without_content_are_left_out(picture):
    html = report.render(BARE)
    assert not [heading for heading in HEADINGS if any(name.startswith(heading) for name in headings(html))]
    assert "Scores at each lead time" in headings(html)
    full = with_part(
        pictures=[replace(picture, section=name) for name in report.SECTIONS],
        left_out={"advection": ["other leads", "other cells"]},
    )
    html = report.render(replace(full, costs={"convlstm": Costs(parameters=12_345)}))
    missing = [heading for heading in HEADINGS if not any(name.startswith(heading) for name in headings(html))]
    assert missing == ["Differences from", "Maps", "Differences between", "Scores by group"]
    assert "<td>other leads; other cells</td>" in html


def test_the_best_value_of_each_lead_is_marked():
    html = report.render(BARE)
    assert cells(html, "advection") == [' class="best">0.250', "1.00"]
    assert cells(html, "convlstm") == ["0.500", ' class="best">0.750']


def test_a_model_that_is_left_out_is_not_the_best():
    html = report.render(with_part(left_out={"advection": ["other leads"]}))
    assert '<td class="best">0.500</td><td class="best">0.750</td>' in html
    assert '<td>0.250</td><td>1.00</td>' in html  # fmt: skip


def test_other_scores_have_readable_titles_and_dashes():
    html = report.render(BARE)
    assert "CSI ≥ 1 mm/h, lead time in minutes" in html
    assert "csi_1_mm_h" not in html
    assert '<td class="best">0.500</td><td>–</td>' in html


def test_pairs_say_who_is_better_and_how_sure():
    pairs = {
        ("convlstm", "advection"): Cell("better", -0.123, -0.2, -0.046),
        ("advection", "convlstm"): Cell("worse", 12.34, 2.0, 20.0),
    }
    table = matrix_table(Matrix("RMSE, mm/h", 240, pairs), NAMES, ["advection"])
    assert table.title == "RMSE, mm/h, 4 hours: row less column"
    assert table.columns == ["advection", "convlstm"]
    assert [row.cells for row in table.rows] == [
        [("", ""), ("▼ +12\n+2 to +20", "worse")],
        [("▲ −0.12\n−0.20 to −0.05", "better"), ("", "")],
    ]
    same = Matrix("RMSE", 5, {("convlstm", "advection"): Cell("no difference", 0.0, 0.0, 0.0)})
    assert matrix_table(same, NAMES, []).rows[1].cells[0] == ("= 0\n0 to 0", "no-difference")


def test_differences_name_the_reference_of_each_lead():
    cells = {"advection": {30: Cell("no difference", 0, 0, 0)}, "convlstm": {30: Cell("better", -0.1, -0.2, -0.05)}}
    table = difference_table(Differences("RMSE", cells, {30: "advection"}), ["advection"])
    assert table.columns == ["30\nadvection"]
    assert [row.cells for row in table.rows] == [
        [("reference", "no-difference")],
        [("▲ −0.10\n−0.20 to −0.05", "better")],
    ]


def test_values_that_are_printed_alike_are_marked_alike():
    scores = {"a": {CSI: {5: 1.6601}}, "b": {CSI: {5: 1.6604}}, "c": {CSI: {5: 1.67}}, "d": {CSI: {5: NAN}}}
    html = report.render(with_part(metrics=scores, leading=[CSI]))
    assert [cells(html, name) for name in "abcd"] == [["1.66"], ["1.66"], [' class="best">1.67'], ["–"]]
    low = {model: {RMSE: by[CSI]} for model, by in scores.items()}
    html = report.render(with_part(metrics=low))
    assert [cells(html, name) for name in "ab"] == [[' class="best">1.66']] * 2


def test_two_variables_have_a_part_each_and_one_table_of_contents():
    html = report.render(replace(BARE, parts=[PART, replace(PART, title="wind speed, m/s", verdict=["Other."])]))
    assert headings(html).count("Scores at each lead time") == 2
    assert html.index("rain rate, mm/h</h2>") < html.index("convlstm is better") < html.index("wind speed, m/s</h2>")
    links = re.findall(r'href="#([^"]+)"', html)
    assert len(links) == len(set(links)) == 2 + 2 + 2  # variables, their sections, terms and settings
    assert all(f'id="{link}"' in html for link in links)


def test_groups_mark_their_best_model():
    groups = Groups("RMSE by region", RMSE, {"coast": {"advection": 1.0, "convlstm": 0.5}, "sea": {"advection": NAN}})
    coast, sea = group_table(groups, NAMES).rows
    assert coast.cells == [("1.00", ""), ("0.500", "best")]
    assert sea.cells == [("–", ""), ("–", "")]


def test_costs_that_nobody_measured_are_dashes():
    costs = {"advection": Costs(forecast_milliseconds=7.25), "convlstm": Costs(12_345, 2_500_000, 61.0)}
    first, second = cost_table(costs, ("advection",)).rows
    assert [text for text, _ in first.cells] == ["–", "–", "–", "7.25", "–"]
    assert first.reference
    assert [text for text, _ in second.cells] == ["12,345", "2.50", "61.0", "–", "–"]


def test_runs_are_links_or_commands():
    html = report.render(replace(BARE, runs={"convlstm": "http://tracker/#/runs/1", "advection": "mlflow ui"}))
    assert '<a href="http://tracker/#/runs/1">' in html
    assert "<code>mlflow ui</code>" in html
    assert 'href="javascript' not in report.render(replace(BARE, runs={"convlstm": "javascript:alert(1)"}))
