"""Small learned models that the tests share: every kind, quick to build and run."""

import pytest
import torch
from torch import Tensor, nn

import models

SMALL = {
    "convlstm": ("convlstm", {"hidden": [5, 3], "kernel": 3, "patch": 4}),
    "convlstm_one_level": ("convlstm", {"hidden": [7], "kernel": 1, "patch": 2}),
    "factorised": ("video_transformer", {"dim": 8, "heads": 2, "layers": 1}),
    "factorised_smooth": ("video_transformer", {"dim": 8, "heads": 2, "layers": 1, "order": "ST", "smooth": True}),
    "joint": ("video_transformer", {"dim": 8, "heads": 2, "layers": 1, "attention": "joint"}),
    "divided": ("video_transformer", {"dim": 8, "heads": 2, "layers": 2, "attention": "divided"}),
}


def build_small(case: str, *, channels=(3, 2), history=5, horizon=7, seed=0, **changes) -> nn.Module:
    name, options = SMALL[case]
    torch.manual_seed(seed)
    return models.build(
        name,
        models.OPTIONS[name].model_validate({**options, **changes}),
        channels_in=channels[0],
        channels_out=channels[1],
        history=history,
        horizon=horizon,
        step_minutes=5,
    )


def shake(model: nn.Module, seed: int = 1) -> nn.Module:
    """The model with random weights everywhere, as if it were trained."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_history(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    history = torch.randn(*shape, generator=generator)
    history[torch.rand(*shape, generator=generator) < 0.3] = torch.nan
    return history


@pytest.fixture(params=SMALL)
def case(request):
    """Name of a small learned model."""
    return request.param


@pytest.fixture(name="small")
def small_fixture():
    return build_small


@pytest.fixture(name="shaken")
def shaken_fixture():
    return shake


@pytest.fixture(name="history_with_gaps")
def history_with_gaps_fixture():
    return make_history


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors here are tiny: a second thread only waits, for long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
