import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fieldcast.pipeline.datasets.labels import without_mathematics
from fieldcast.pipeline.report.style import pixels, write_png

ODD = ["rain in $", "$x_1$ rain", "$\\frac{$", "a $5 to $9 [/h]"]  # formulas, broken ones, and none


def figure_of(text: str) -> Figure:
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_title(text)
    left.set_title(text, loc="left")
    left.set_xlabel(text)
    left.text(0.5, 0.5, text)
    right.plot([1, 100], [1, 1000], label=text)
    right.set_yscale("log")
    right.legend(title=text)
    figure.colorbar(left.imshow(np.eye(3)), ax=left).set_label(text)
    figure.suptitle(text)
    figure.legend(title=text)
    return figure


@pytest.mark.parametrize("text", ODD)
def test_no_name_is_a_formula(text, tmp_path):
    pixels(FigureCanvasAgg(figure_of(text)))
    write_png(figure_of(text), tmp_path / "a.png")


def test_a_name_is_drawn_as_it_is_written():
    plain, same = (Figure(figsize=(3, 1)) for _ in range(2))
    plain.text(0.1, 0.5, "$x_1$ rain", parse_math=False)
    same.text(0.1, 0.5, "$x_1$ rain")
    np.testing.assert_array_equal(pixels(FigureCanvasAgg(same)), pixels(FigureCanvasAgg(plain)))


def test_numbers_along_logarithmic_axes_stay_formulas():
    figure = figure_of("rain")
    without_mathematics(figure)
    figure.canvas.draw()
    labels = figure.axes[1].yaxis.get_ticklabels()
    assert any("mathdefault" in label.get_text() for label in labels)
    assert all(label.get_parse_math() for label in labels)
