from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fieldcast import models
from fieldcast.pipeline.cli.main import app
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.paths import OBSERVATIONS
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.explain.attribution import Question, explain, question_of, seam_ratio
from fieldcast.pipeline.explain.figure import check_picture, levels_of, write_picture
from fieldcast.pipeline.forecasting import checkpoint
from fieldcast.pipeline.live.clock import parse
from tests.checkpoints import untrained

AT = np.datetime64("2024-06-02T06:30", "ns")  # rain is simulated from 06:00 on


def test_persistence_comes_from_the_last_frame_of_the_same_place(project: Path) -> None:
    folder = untrained(project, "recurrent")
    observed = store.open_observations(OBSERVATIONS)["rain_rate"]
    frame = observed.sel(time=AT).values
    row, column = np.unravel_index(np.argmax(frame[3:-3, 3:-3]), (18, 18))
    cell = int(row) + 3, int(column) + 3
    explained = explain(folder, Question(AT, 10, cell))
    near = np.zeros((3, 24, 24), dtype=bool)
    near[2, cell[0] - 2 : cell[0] + 3, cell[1] - 2 : cell[1] + 3] = True
    np.testing.assert_array_equal(explained.shares > 0, near & (frame > 0))
    assert explained.shares.sum() == pytest.approx(1)
    transformed = np.log1p(frame / 2)  # what a cell adds, in the values that the network sees
    expected = np.where(near[2], transformed, 0) / transformed[near[2]].sum()
    np.testing.assert_allclose(explained.shares[2], expected, atol=1e-6)
    last = explained.frames()[2]
    rows, columns = np.indices(frame.shape)
    assert last["minutes"] == 0
    assert last["share"] == pytest.approx(1)
    assert (last["row"], last["column"]) == pytest.approx([(expected * rows).sum(), (expected * columns).sum()])
    assert np.isnan(explained.frames()[0]["row"])
    np.testing.assert_allclose(explained.forecast, frame, rtol=1e-4, atol=1e-4)
    assert explained.observed is not None
    np.testing.assert_array_equal(explained.observed, observed.sel(time=AT + np.timedelta64(10, "m")))
    place = f"mine, row {cell[0]}, column {cell[1]}, 2024-06-02T06:40 UTC"
    text = explained.text()
    assert text.startswith(f"{place}: {frame[cell]:.3g} mm/h\n")
    assert "    -10     0%\n" in text  # a frame without a share has no centre
    assert "nan" not in text
    gone = explained.history.copy()
    gone[0] = np.nan
    assert "    -10  missing\n" in replace(explained, history=gone).text()


def test_without_a_cell_it_is_the_strongest(project: Path) -> None:
    explained = explain(untrained(project, "recurrent", 0.05), Question(AT, 20))
    assert explained.forecast.values[explained.cell] == explained.forecast.max()


@pytest.mark.parametrize("kind", models.LEARNED)
@pytest.mark.parametrize("output", ["point", "quantiles", "ensemble"])
def test_every_learned_model_can_be_explained(project: Path, kind: str, output: str) -> None:
    folder = untrained(project, kind, 0.05, output=output)
    explained = explain(folder, Question(AT, 20, (12, 11)))
    assert explained.shares.sum() == pytest.approx(1)
    assert (explained.shares.sum(axis=(1, 2)) > 0).all()
    np.testing.assert_array_equal(explain(folder, Question(AT, 20, (12, 11))).shares, explained.shares)
    assert (explained.seams is None) == (kind in ("simvp", "unet"))


def test_rollout_of_a_transformer(project: Path) -> None:
    folder = untrained(project, "video_transformer", 0.05)
    explained = explain(folder, Question(AT, 5, (3, 8), "rollout"))
    assert explained.shares.sum() == pytest.approx(1)
    patches = explained.shares.reshape(3, 4, 6, 4, 6)
    np.testing.assert_allclose(patches, patches[:, :, :1, :, :1].repeat(6, 2).repeat(6, 4))  # even inside a patch
    of_patches = patches.sum(axis=(0, 2, 4))
    assert np.unravel_index(of_patches.argmax(), (4, 4)) == (0, 1)  # that of the cell
    folder = untrained(project, "video_transformer", 0.05, attention="linear")
    with pytest.raises(InputError, match=r"--how is rollout, but rollout needs attention: .*, got linear in mine"):
        explain(folder, Question(AT, 5, (3, 8), "rollout"))


def test_a_crop_sees_what_is_around_the_cell(project: Path) -> None:
    folder = untrained(project, "simvp", 0.05, crop=12)
    for cell, rows, columns in (((2, 13), (0, 12), (7, 19)), ((23, 20), (12, 24), (12, 24))):
        seen = explain(folder, Question(AT, 5, cell)).shares
        inside = seen[:, slice(*rows), slice(*columns)]
        assert inside.sum() == pytest.approx(1)
        assert (seen > 0).sum() == (inside > 0).sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lead_minutes": 12}, "--lead is 12, mine forecasts 5 to 20 minutes, every 5"),
        ({"lead_minutes": 0}, "--lead is 0, mine forecasts 5 to 20"),
        ({"lead_minutes": 25}, "--lead is 25, mine forecasts 5 to 20"),
        (
            {"init_time": AT + np.timedelta64(1, "m")},
            "--at is 2024-06-02T06:31, .* init times from 2024-06-01T00:10",
        ),
        ({"init_time": np.datetime64("2024-06-01T00:05", "ns")}, "--at is 2024-06-01T00:05, .* from 2024-06-01T00:10"),
        ({"init_time": np.datetime64("2025-06-01T00:05", "ns")}, "--at is 2025-06-01T00:05"),
        ({"init_time": np.datetime64("2024-06-01T04:00", "ns")}, "no valid value in the history"),
        ({"cell": (24, 0)}, "--cell is 24,0, the grid has rows 0 to 23 and columns 0 to 23"),
        ({"cell": (0, -1)}, "--cell is 0,-1, the grid"),
        ({"how": "rollout"}, "--how is rollout, but rollout needs a video_transformer, got a recurrent in mine"),
    ],
)
def test_what_cannot_be_explained_is_refused(project: Path, changes: dict[str, Any], message: str) -> None:
    folder = untrained(project, "recurrent")
    with pytest.raises(InputError, match=message):
        explain(folder, replace(Question(AT, 10, (3, 4)), **changes))


def test_other_checkpoints_are_refused(project: Path) -> None:
    folder = untrained(project, "recurrent")
    description = checkpoint.read_config(folder)
    checkpoint.save_checkpoint(folder, replace(description, kind="persistence", options={}), {}, "")
    with pytest.raises(InputError, match="mine is a persistence, which learns nothing that could be explained"):
        explain(folder, Question(AT, 10))
    signature = replace(description.signature, units={"rain_rate": "mm"})
    checkpoint.save_checkpoint(folder, replace(description, signature=signature), {}, "")
    with pytest.raises(InputError, match="units of rain_rate are 'mm h-1', expected 'mm', as mine was trained"):
        explain(folder, Question(AT, 10))


def test_seams_by_hand() -> None:
    field = np.array([[0.0, 1, 4, 5], [0, 1, 4, 5], [0, 1, 4, 5]])
    # along x: steps 1, 3, 1, the second across; along y: 0, the second across
    assert seam_ratio(field, 2) == pytest.approx((3 * 9 + 4 * 0) / (3 + 4) / ((6 * 1 + 4 * 0) / (6 + 4)))
    assert seam_ratio(field, 8) is None
    assert seam_ratio(field, 1) is None
    assert seam_ratio(np.zeros((4, 4)), 2) is None
    noise = np.random.default_rng(0).normal(size=(20, 60, 64))
    assert seam_ratio(noise, 4) == pytest.approx(1, abs=0.05)


def test_cells_as_a_user_writes_them() -> None:
    at = parse("2024-06-02T06:30")
    assert question_of(at, 10, "3,17", "gradient") == Question(AT, 10, (3, 17))
    assert question_of(at, 10, None, "rollout") == Question(AT, 10, None, "rollout")
    for text in ("3", "3;4", "a,b", "1,2,3"):
        with pytest.raises(InputError, match=f"--cell is '{text}', expected ROW,COLUMN such as 12,40"):
            question_of(at, 10, text, "gradient")


def test_levels_hold_half_and_nine_tenths() -> None:
    shares = np.array([[0.3, 0.05, 0.25], [0.3, 0.04, 0.06]])
    assert levels_of(shares) == pytest.approx([0.06, 0.3])


def test_pictures_are_equal_and_in_any_folder(project: Path) -> None:
    explained = explain(untrained(project, "simvp", 0.05), Question(AT, 10, (1, 22)))
    paths = project / "some" / "where.png", project / "again.png"
    for path in paths:
        write_picture(explained, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    unseen = replace(explained, observed=None)
    write_picture(unseen, paths[1])
    assert paths[0].read_bytes() != paths[1].read_bytes()
    for wrong in (Path("picture.jpg"), Path("data")):
        with pytest.raises(InputError, match=f"--out is {wrong}, expected a file that ends in .png"):
            check_picture(wrong)


def test_the_command(project: Path) -> None:
    folder = untrained(project, "recurrent")
    result = CliRunner().invoke(app, ["explain", str(folder), "--at", "2024-06-02T06:30", "--lead", "10"])
    assert result.exit_code == 0, result.output
    assert result.output.endswith("Picture: data/explained.png\n")
    assert Path("data/explained.png").is_file()
    wrong = CliRunner().invoke(app, ["explain", str(folder), "--at", "yesterday", "--lead", "10"])
    assert wrong.exit_code == 2
    assert "Example: fieldcast explain" in CliRunner().invoke(app, ["explain", "--help"]).output.replace("`", "")
