"""Operations in a row and paths against values counted by hand, and against what trained weights could see."""

from typing import Any

import pytest
import torch

from docs.tools.complexity import complexity_of, path_through_windows
from fieldcast import models
from fieldcast.models.layers.sizes import Sizes
from fieldcast.models.video_transformer.attention.patterns import ATTENTIONS
from fieldcast.pipeline.explain.sensitivity import sensitivity

SIZES = Sizes(channels_in=1, channels_out=1, history=3, horizon=2, step_minutes=5)
CELLS = (13, 7)


def counted(kind: str, options: dict[str, Any], cells: tuple[int, int] = CELLS) -> tuple[int, int | None]:
    complexity = complexity_of(models.OPTIONS[kind].model_validate(options), SIZES, cells)
    return complexity.in_a_row, complexity.path


STEPS = {"hidden": [4], "patch": 1}


@pytest.mark.parametrize(
    ("options", "cells", "by_hand"),
    [
        (STEPS, (3, 2), (5, 5)),  # three frames and two leads
        (STEPS, CELLS, (5, 12)),  # twelve cells to go, one a step
        (STEPS | {"kernel": 5}, CELLS, (5, 6)),
        (STEPS | {"kernel": 5, "state_kernel": 3}, CELLS, (5, 11)),  # two cells in the first step, then one each
        (STEPS | {"kernel": 5, "state_kernel": 1}, CELLS, (5, None)),
        (STEPS | {"patch": 4}, CELLS, (5, 5)),  # three patches to go
        (STEPS | {"hidden": [4, 4, 4]}, (3, 2), (9, 5)),  # the path stays on the first level
        (STEPS | {"cell": "convgru"}, CELLS, (5, 12)),
        (STEPS | {"cell": "trajgru"}, CELLS, (5, 5)),  # flows come from anywhere
        (STEPS | {"cell": "attention"}, (3, 2), (5, 2)),  # all five steps are read at once, two cells to go
        (STEPS | {"cell": "attention", "memory": 2}, (3, 2), (5, 3)),  # two steps, two, one
        (STEPS | {"cell": "attention"}, CELLS, (5, 12)),
    ],
)
def test_recurrent_by_hand(options: dict[str, Any], cells: tuple[int, int], by_hand: tuple[int, int | None]) -> None:
    assert counted("recurrent", options, cells) == by_hand


@pytest.mark.parametrize(
    ("options", "cells", "by_hand"),
    [
        ({"levels": 2, "blocks": 1}, (3, 2), (7 + 3, 7)),  # encoder 1 + 2, frames 1, decoder 2 + 1
        ({"levels": 2, "blocks": 1}, CELLS, (7 + 3, 7 + 1)),  # one coarse cell between encoder and decoder: an MLP's
        ({"levels": 2, "blocks": 2}, (61, 5), (7 + 6, 7 + 4)),  # 13 coarse cells: 11 and 2, each two convolutions
        ({"levels": 0, "blocks": 1, "kernel": 3}, CELLS, (3 + 3, 3 + 2)),  # 12 cells, two by the ends, 10 by one branch
    ],
)
def test_convolutions_by_hand(options: dict[str, Any], cells: tuple[int, int], by_hand: tuple[int, int]) -> None:
    assert counted("simvp", options, cells) == by_hand


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_a_u_net_reaches_as_far_as_its_gradients(levels: int) -> None:
    options = models.OPTIONS["unet"].model_validate({"channels": 4, "levels": levels})
    torch.manual_seed(0)
    model = models.build("unet", options, channels_in=1, channels_out=1, history=2, horizon=1, step_minutes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.1, 1)
    history = torch.rand(1, 2, 1, 1, 64, requires_grad=True)
    seen = [torch.autograd.grad(model(history)[..., 0, x].sum(), history)[0][..., 0].abs().sum() > 0 for x in range(64)]
    reached = max(x for x, sees in enumerate(seen) if sees)
    complexity = [complexity_of(options, SIZES, (1, reached + 1 + beyond)) for beyond in (0, 1)]
    assert [one.path for one in complexity] == [2 + 4 * levels, None]
    assert complexity[0].in_a_row == 2 + 4 * levels


PATTERNS = {  # five steps of 7 x 4 tokens; four sub-layers, or two of a divided block
    **dict.fromkeys(ATTENTIONS, (4, 1)),
    "factorised": (4, 2),
    "divided": (2, 2),
    "axial": (4, 3),
    "window": (4, 4),  # rows 0 to 2, 3 with shifted windows, 5, 6; steps 0 to 1, 2, 3, 4; columns at once
}


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_patterns_of_attention_by_hand(attention: str) -> None:
    window = {"window": (2, 3, 4)} if attention == "window" else {}
    assert (
        counted("video_transformer", {"attention": attention, "patch": 2, "stem": "patch", **window})
        == PATTERNS[attention]
    )


@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({"attention": "joint", "layers": 3}, (12, 1)),
        ({"order": "THW"}, (3, 3)),
        ({"order": "TSHW"}, (4, 2)),
        ({"order": "TH"}, (2, None)),
        ({"order": "TH", "global_tokens": 1}, (4, 2)),  # gathered, then spread
        ({"attention": "joint", "global_tokens": 1}, (8, 1)),
        ({"attention": "window", "window": (1, 7, 4)}, (4, None)),
        ({"stem": "conv"}, (4 + 3, 2 + 3)),  # two convolutions to 7 x 4 patches, one back
        ({"stem": "conv", "patch": 4}, (4 + 5, 2 + 5)),
        ({"stem": "conv", "order": "TH", "patch": 4}, (2 + 5, 1 + 1 + 5)),  # the readout spans two columns of patches
        ({"stem": "conv", "arch": "encoder_decoder"}, (4 + 2 * 3 + 3, 1 + 3)),
        ({"stem": "conv", "arch": "encoder_decoder", "decode": "autoregressive"}, (4 + 2 * 2 * 2 + 2 * 3, 1 + 3)),
        ({"arch": "encoder_decoder"}, (4 + 2 * 3, 1)),
        ({"arch": "encoder_decoder", "query_attention": "none"}, (4 + 2, 1)),
        ({"arch": "encoder_decoder", "decode": "autoregressive"}, (4 + 2 * 2 * 2, 1)),  # two leads, two layers
    ],
)
def test_video_transformer_by_hand(options: dict[str, Any], by_hand: tuple[int, int | None]) -> None:
    assert counted("video_transformer", {"patch": 2, "stem": "patch", **options}) == by_hand


def test_one_patch_needs_attention_in_time_alone() -> None:
    assert counted("video_transformer", {"patch": 16, "order": "TS", "stem": "patch"}) == (2, 1)


@pytest.mark.parametrize(
    ("kind", "change", "row", "path"),
    [
        ("recurrent", {"cell": "convlstm"}, "O(T)", "O(T + n/r)"),
        ("recurrent", {"cell": "attention"}, "O(T)", "O(T/K + n/r)"),
        ("simvp", {}, "O(1)", "O(n/r)"),
        ("video_transformer", {"attention": "axial"}, "O(1)", "O(1)"),
        ("video_transformer", {"attention": "window"}, "O(1)", "O(n/r)"),
        ("video_transformer", {"arch": "encoder_decoder", "decode": "autoregressive"}, "O(T)", "O(1)"),
    ],
)
def test_growth_is_that_with_longer_histories_and_larger_fields(
    kind: str, change: dict[str, Any], row: str, path: str
) -> None:
    by_patches = {"stem": "patch"} if kind == "video_transformer" else {}
    options = models.OPTIONS[kind].model_validate({**change, **by_patches})
    short, long = (Sizes(1, 1, steps, steps, 5) for steps in (30, 60))
    small, late, wide = (
        complexity_of(options, sizes, (side, side)) for sizes, side in ((short, 16), (long, 16), (short, 1024))
    )
    assert (small.row_grows, small.path_grows) == (row, path)
    assert (late.in_a_row > small.in_a_row) == ("T" in row)
    assert wide.in_a_row == small.in_a_row
    assert small.path is not None
    assert late.path is not None
    assert wide.path is not None
    assert (late.path > small.path) == ("T" in path or change == {"attention": "window"})  # windows cut time as well
    assert (wide.path > small.path) == ("n/r" in path)


TINY = {"dim": 8, "heads": 2, "patch": 2, "stem": "patch"}
OVERLAPPING = TINY | {"stem": "conv", "channels": 3}


@pytest.mark.parametrize(
    ("kind", "options", "cells"),
    [
        ("recurrent", STEPS, (6, 5)),
        ("recurrent", STEPS, (7, 5)),
        ("recurrent", STEPS | {"hidden": [4, 4]}, (8, 5)),
        ("recurrent", STEPS | {"hidden": [4, 4]}, (9, 5)),
        ("recurrent", STEPS | {"cell": "convgru"}, (7, 5)),
        ("recurrent", STEPS | {"cell": "attention"}, (6, 5)),
        ("recurrent", STEPS | {"cell": "attention"}, (7, 5)),
        ("simvp", {"levels": 0, "blocks": 1, "kernel": 3, "channels": 4, "hidden": 8}, (14, 5)),
        ("simvp", {"levels": 0, "blocks": 1, "kernel": 3, "channels": 4, "hidden": 8}, (15, 5)),
        ("simvp", {"levels": 2, "blocks": 1, "channels": 4, "hidden": 8}, (14 * 4 + 1, 5)),
        ("simvp", {"levels": 2, "blocks": 1, "channels": 4, "hidden": 8}, (14 * 4 + 2, 5)),
        ("video_transformer", TINY | {"attention": "joint"}, CELLS),
        ("video_transformer", TINY | {"order": "TH"}, CELLS),
        ("video_transformer", TINY | {"order": "TH", "global_tokens": 1}, CELLS),
        ("video_transformer", TINY | {"attention": "axial"}, CELLS),
        ("video_transformer", TINY | {"attention": "window", "window": (5, 4, 4)}, (16, 7)),
        ("video_transformer", TINY | {"attention": "window", "window": (5, 4, 4)}, (24, 7)),
        ("video_transformer", TINY | {"arch": "encoder_decoder", "order": "T"}, CELLS),
        ("video_transformer", OVERLAPPING, CELLS),
        ("video_transformer", OVERLAPPING | {"order": "TH"}, CELLS),
        ("video_transformer", OVERLAPPING | {"order": "TH", "patch": 4}, (29, 8)),
        ("video_transformer", OVERLAPPING | {"order": "TH", "patch": 4}, (29, 12)),
        ("video_transformer", OVERLAPPING | {"attention": "window", "window": (5, 4, 4)}, (16, 7)),
        ("video_transformer", OVERLAPPING | {"attention": "window", "window": (5, 4, 4)}, (26, 7)),
        ("video_transformer", OVERLAPPING | {"arch": "encoder_decoder", "order": "T"}, CELLS),
    ],
)
def test_the_last_lead_sees_all_of_the_first_frame_where_the_path_fits(
    kind: str, options: dict[str, Any], cells: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    stated = models.OPTIONS[kind].model_validate(options)
    sizes = {"channels_in": 1, "channels_out": 1, "history": 3, "horizon": 2, "step_minutes": 5}
    model = models.build(kind, stated, **sizes).double().eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # the readout starts at 0
    seen = []
    for here, there in ((0, -1), (-1, 0)):
        corner = torch.zeros(cells, dtype=torch.bool)
        corner[here, here] = True
        gradient = sensitivity(model, torch.randn(1, 3, 1, *cells, dtype=torch.float64), 1, corner)
        seen.append(bool(gradient[0, 0, there, there] != 0))
    in_a_row, path = counted(kind, options, cells)
    assert all(seen) == (path is not None and path <= in_a_row)


@pytest.mark.parametrize("part", [2, 3, 4, 5])
def test_windows_against_a_walk(part: int) -> None:
    """From place 0, to the end of its window, with windows that lie half a window later in every second sub-layer."""
    place, passed = 0, 0
    while place < 40:
        shift = part // 2 * (passed % 2)
        place, passed = (place - shift) // part * part + shift + part - 1, passed + 1
        if (place + 1) % part == 0:  # the end of an axis that windows divide
            assert path_through_windows((part, 1, 1), (place + 1, 1, 1)) == passed


def test_strides_and_references_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strides must be null, got \(1,\)"):
        counted("recurrent", {"hidden": [4], "strides": [1]})
    with pytest.raises(ValueError, match="options must be of a learned model, got PersistenceOptions"):
        counted("persistence", {})
