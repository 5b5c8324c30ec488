"""Small learned models that the tests share: every kind, quick to build and run."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fieldcast import models

TINY = {"dim": 8, "heads": 2, "layers": 1}
SMALL = {
    "convlstm": ("recurrent", {"hidden": [5, 3], "kernel": 3, "patch": 4}),
    "convlstm_one_level": ("recurrent", {"hidden": [7], "kernel": 1, "patch": 2}),
    "factorised": ("video_transformer", TINY),
    "factorised_patches": ("video_transformer", TINY | {"order": "ST", "stem": "patch"}),
    "joint": ("video_transformer", TINY | {"attention": "joint"}),
    "divided": ("video_transformer", {"dim": 8, "heads": 2, "layers": 2, "attention": "divided"}),
    "convgru": ("recurrent", {"hidden": [5, 3], "cell": "convgru"}),
    "trajgru": ("recurrent", {"hidden": [5, 3], "cell": "trajgru", "flows": 2}),
    "attention_in_time": ("recurrent", {"hidden": [6, 4], "cell": "attention", "heads": 2, "memory": 3}),
    "convlstm_strides": ("recurrent", {"hidden": [5, 3], "strides": [1, 2], "stem": 4, "patch": 2, "norm": "group"}),
    "simvp": ("simvp", {"channels": 4, "levels": 2, "hidden": 8, "blocks": 1}),
    "simvp_one_scale": ("simvp", {"channels": 3, "levels": 0, "hidden": 6, "blocks": 1, "kernel": 3}),
    "axial": ("video_transformer", TINY | {"attention": "axial"}),
    "window": ("video_transformer", TINY | {"attention": "window", "window": [8, 2, 2]}),
    "linear": ("video_transformer", TINY | {"attention": "linear"}),
    "performer": ("video_transformer", TINY | {"attention": "performer", "features": 8}),
    "linformer": ("video_transformer", TINY | {"attention": "linformer", "keys": 5}),
    "nystrom": ("video_transformer", TINY | {"attention": "nystrom", "landmarks": 6}),
    "pooled": ("video_transformer", TINY | {"attention": "pooled"}),
    "reformer": (
        "video_transformer",
        TINY | {"attention": "reformer", "chunk": 8, "rounds": 2},
    ),
    "clustered": ("video_transformer", TINY | {"attention": "clustered"}),
    "deformable": ("video_transformer", TINY | {"attention": "deformable", "points": 2}),
    "global_tokens": ("video_transformer", TINY | {"global_tokens": 3}),
    "encoder_decoder": ("video_transformer", TINY | {"arch": "encoder_decoder"}),
    "queries_alone": (
        "video_transformer",
        TINY | {"arch": "encoder_decoder", "query_attention": "none"},
    ),
    "autoregressive": (
        "video_transformer",
        TINY | {"arch": "encoder_decoder", "decode": "autoregressive"},
    ),
    "tubelet": ("video_transformer", TINY | {"tubelet": 2}),
    "learned": ("video_transformer", TINY | {"positions": "learned"}),
    "no_positions": ("video_transformer", TINY | {"positions": "none"}),
    "rotary3d": ("video_transformer", {"dim": 12, "heads": 2, "layers": 1, "positions": "rotary3d"}),
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


class CountCalls(TorchDispatchMode):
    """Counts the operations that run one after the other."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def count_operations(work, *given) -> int:
    with torch.no_grad(), CountCalls() as counted:
        work(*given)
    return counted.calls


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


@pytest.fixture(name="count_operations")
def count_operations_fixture():
    return count_operations


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors here are tiny: a second thread only waits, for long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
