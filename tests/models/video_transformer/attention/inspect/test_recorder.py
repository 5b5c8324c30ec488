import pytest
import torch
from torch import nn

from fieldcast.models.video_transformer.attention.core import Attention
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes
from fieldcast.models.video_transformer.attention.inspect.recorder import record


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
def test_recording_of_a_stack(impl, shaken):
    b, layers, heads, n, d = 2, 3, 5, 7, 10
    stack = shaken(nn.Sequential(*(Attention(d, heads, impl=impl) for _ in range(layers))))
    tokens = torch.randn(b, n, d)
    with record(stack) as recording:
        watched = stack(tokens)
    weights = torch.stack([call.weights for call in recording.calls], dim=1)
    assert weights.shape == (b, layers, heads, n, n)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(b, layers, heads, n), rtol=0, atol=1e-6)
    torch.testing.assert_close(watched, stack(tokens), rtol=0, atol=1e-6)
    first = stack[0]
    query, key = (linear(tokens).reshape(b, n, heads, 2).transpose(1, 2) for linear in (first.query, first.key))
    expected = (query @ key.transpose(-1, -2) / 2**0.5).softmax(dim=-1)
    torch.testing.assert_close(weights[:, 0], expected, rtol=0, atol=1e-6)
    assert [call.name for call in recording.calls] == ["0", "1", "2"]


def test_masked_keys_weigh_nothing(shaken):
    model = shaken(AlongAxes(6, 2, "T"))
    valid = torch.ones(1, 5, 2, 3, dtype=torch.bool)
    valid[0, 1, 0, 2] = False
    with record(model) as recording:
        model(torch.randn(1, 5, 2, 3, 6), valid)
    weights = recording.calls[0].weights.reshape(2, 3, 2, 5, 5)  # h w heads n m
    assert (weights[0, 2, :, :, 1] == 0).all()
    assert (weights[0, 1, :, :, 1] > 0).all()


def test_calls_know_their_axes_and_grid(shaken):
    model = shaken(nn.Sequential(AlongAxes(6, 2, "T"), AlongAxes(6, 3, "S")))
    with record(model) as recording:
        model(torch.randn(2, 5, 3, 7, 6))
    assert [(call.name, call.along, call.grid) for call in recording.calls] == [
        ("0.attention", "T", (2, 5, 3, 7)),
        ("1.attention", "S", (2, 5, 3, 7)),
    ]
    assert [tuple(call.weights.shape) for call in recording.calls] == [(2 * 21, 2, 5, 5), (2 * 5, 3, 21, 21)]


def test_the_model_is_left_as_it_was(shaken):
    model = shaken(nn.Sequential(AlongAxes(6, 2, "T"), AlongAxes(6, 3, "S")))
    seen = []
    model[0].attention.watcher = seen.append

    def fail():
        with record(model):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model[1].attention.watcher is None
    model(torch.randn(2, 5, 3, 7, 6))
    assert len(seen) == 1
    assert not any(module._forward_pre_hooks for module in model.modules())
