from dataclasses import replace

import pytest

from fieldcast.pipeline.forecasting.costs import Costs
from fieldcast.pipeline.report import html as report
from fieldcast.pipeline.report.html import Cell, Groups, Matrix, Page, Picture
from fieldcast.pipeline.verification.scores import Score

NAN = float("nan")
RMSE, CSI = Score("rmse"), Score("csi", 1.0, units="mm h-1")
METRICS = {
    "advection": {RMSE: {5: 0.25, 10: 1.0}, CSI: {5: 0.5, 10: NAN}},
    "convlstm": {RMSE: {5: 0.5, 10: 0.75}, CSI: {5: 0.5, 10: NAN}},
}
BARE = Page(
    verdict=["convlstm is better.", "How sure that is."], metrics=METRICS, leading=[RMSE],
    references=("advection",), facts={"Init times": "6"}, pictures=[], settings={"source": {"kind": "<storms>"}},
)  # fmt: skip
HEADINGS = ("Left out", "Scores against", "Which differences", "Maps", "Cases", "Spectra", "Reliability", "Ranks",
            "Coverage of", "Performance", "Scores by group", "Costs")  # fmt: skip


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "skill.png").write_bytes(b"picture")
    return Picture(tmp_path / "skill.png", "skill & more", "skill")


def cells(html: str, name: str) -> list[str]:
    """Return the classes and texts of the first line of a table that is `name`'s."""
    line = html.split(f'<th scope="row">{name}</th>', 1)[1].split("</tr>")[0]
    return [part.split("</td>")[0].strip(">") for part in line.split("<td")[1:]]


def test_it_stands_alone_escapes_and_repeats(picture):
    content = replace(BARE, pictures=[picture])
    html = report.render(content)
    assert "data:image/png;base64,cGljdHVyZQ==" in html
    assert "http" not in html
    assert "<script" not in html
    assert "source.kind</dt><dd>&lt;storms&gt;" in html
    assert "skill &amp; more" in html
    assert html.index("convlstm is better") < html.index("How sure") < html.index("<table")
    assert html == report.render(content)


def test_sections_without_content_are_left_out(picture):
    html = report.render(BARE)
    assert not [heading for heading in HEADINGS if f"<h2>{heading}" in html]
    assert "<h2>Scores at each lead time" in html
    html = report.render(
        replace(
            BARE,
            pictures=[replace(picture, section=name) for name in report.SECTIONS],
            left_out={"advection": ["other leads", "other cells"]},
            costs={"convlstm": Costs(parameters=12_345)},
        )
    )
    missing = [heading for heading in HEADINGS if f"<h2>{heading}" not in html]
    assert missing == ["Which differences", "Maps", "Scores by group"]
    assert "<td>other leads; other cells</td>" in html


def test_the_best_value_of_each_lead_is_marked():
    html = report.render(BARE)
    assert cells(html, "advection") == [' class="best">0.250', "1.00"]
    assert cells(html, "convlstm") == ["0.500", ' class="best">0.750']


def test_a_model_that_is_left_out_is_not_the_best():
    html = report.render(replace(BARE, left_out={"advection": ["other leads"]}))
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
    table = report.matrix_table(Matrix("RMSE, mm/h", 240, pairs), BARE)
    assert table.title == "RMSE, mm/h, 4 hours: row less column"
    assert table.columns == ["advection", "convlstm"]
    assert [row.cells for row in table.rows] == [
        [("", ""), ("▼ +12\n+2 to +20", "worse")],
        [("▲ −0.12\n−0.20 to −0.05", "better"), ("", "")],
    ]
    same = Matrix("RMSE", 5, {("convlstm", "advection"): Cell("no difference", 0.0, 0.0, 0.0)})
    assert report.matrix_table(same, BARE).rows[1].cells[0] == ("= 0\n0 to 0", "no-difference")


def test_groups_mark_their_best_model():
    groups = Groups("RMSE by region", RMSE, {"coast": {"advection": 1.0, "convlstm": 0.5}, "sea": {"advection": NAN}})
    coast, sea = report.group_table(groups, BARE).rows
    assert coast.cells == [("1.00", ""), ("0.500", "best")]
    assert sea.cells == [("–", ""), ("–", "")]


def test_costs_that_nobody_measured_are_dashes():
    costs = {"advection": Costs(forecast_milliseconds=7.25), "convlstm": Costs(12_345, 2_500_000, 61.0)}
    first, second = report.cost_table(costs, ("advection",)).rows
    assert [text for text, _ in first.cells] == ["–", "–", "–", "7.25", "–"]
    assert first.reference
    assert [text for text, _ in second.cells] == ["12,345", "2.50", "61.0", "–", "–"]


def test_runs_are_links_or_commands():
    html = report.render(replace(BARE, runs={"convlstm": "http://tracker/#/runs/1", "advection": "mlflow ui"}))
    assert '<a href="http://tracker/#/runs/1">' in html
    assert "<code>mlflow ui</code>" in html
    assert "href" not in report.render(replace(BARE, runs={"convlstm": "javascript:alert(1)"}))
