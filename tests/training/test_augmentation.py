"""Flips and turns of training samples: fields, their vectors and their flow turn together."""

import pytest
import torch

from fieldcast.models.layers.motion import departures, moved
from fieldcast.pipeline.datasets.channels import vector_pairs
from fieldcast.pipeline.training.augmentation import Turning

TURNS = [(flip, quarters) for flip in (False, True) for quarters in range(4)]


def batch_of(height: int = 17, width: int = 17) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    flow = torch.tensor([2.0, -1.0])[None, :, None, None].expand(3, 2, height, width).clone()
    return {
        "history": torch.randn(3, 4, 1, height, width),
        "target": torch.randn(3, 5, 1, height, width),
        "flow": flow,
        "base": torch.randn(3, 5, 1, height, width),
        "init_time": torch.arange(3),
        "origin": torch.zeros(3, 2, dtype=torch.long),
    }


@pytest.mark.parametrize(("flip", "quarters"), TURNS)
def test_moving_then_turning_is_turning_then_moving(flip: bool, quarters: int) -> None:
    batch = batch_of()
    turned = Turning(True, (), -1.0).turned(batch, flip=flip, quarters=quarters)
    field = {"base": moved(batch["history"][:, -1], departures(batch["flow"], 1))}
    expected = Turning(True, (), -1.0).turned({**batch, **field}, flip=flip, quarters=quarters)["base"]
    found = moved(turned["history"][:, -1], departures(turned["flow"], 1))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("up", [1.0, -1.0])
@pytest.mark.parametrize(("flip", "quarters"), TURNS)
def test_winds_blow_along_with_the_field(flip: bool, quarters: int, up: float) -> None:
    batch = batch_of()
    u, v = batch["flow"][:, :1], up * batch["flow"][:, 1:]  # the flow's rows count downwards
    batch["history"] = torch.stack([batch["history"][:, :, 0], *(w.expand(3, 4, 17, 17) for w in (u, v))], dim=2)
    turned = Turning(True, [(1, 2)], up).turned(batch, flip=flip, quarters=quarters)
    torch.testing.assert_close(turned["history"][:, 0, 1], turned["flow"][:, 0])
    torch.testing.assert_close(turned["history"][:, 0, 2], up * turned["flow"][:, 1])


def test_four_quarters_and_two_flips_are_nothing() -> None:
    batch = batch_of()
    turning = Turning(True, (), 1.0)
    around = batch
    for _ in range(4):
        around = turning.turned(around, flip=False, quarters=1)
    twice = turning.turned(turning.turned(batch, flip=True, quarters=0), flip=True, quarters=0)
    for name, field in batch.items():
        assert torch.equal(around[name], field)
        assert torch.equal(twice[name], field)


def test_a_field_that_is_not_square_keeps_its_sides() -> None:
    batch = batch_of(11, 17)
    torch.manual_seed(4)
    seen = [Turning(True, (), 1.0).draw(batch) for _ in range(20)]
    assert {turned["history"].shape[-2:] for turned in seen} == {(11, 17)}
    assert len({turned["history"].sum(dim=(0, 1, 2)).flatten()[0].item() for turned in seen}) == 4


def test_flips_alone_do_not_turn_by_a_quarter() -> None:
    batch = batch_of()
    batch["flow"][:, 1] = 0
    torch.manual_seed(4)
    assert all(Turning(False, (), 1.0).draw(batch)["flow"][:, 1].abs().max() == 0 for _ in range(20))


def test_components_of_vectors_are_found_by_name() -> None:
    assert vector_pairs(["t2m", "u10", "v10", "u850", "v850", "uv"]) == [(1, 2), (3, 4)]
