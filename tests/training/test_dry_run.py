import pytest
import torch
from torch import nn

from fieldcast.models.recurrent.convlstm import ConvLSTMCell
from fieldcast.models.recurrent.options import RecurrentOptions
from fieldcast.models.recurrent.unroll import unroll
from fieldcast.models.video_transformer.attention.approximate.clustered import Clustered
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes
from fieldcast.models.video_transformer.block import DividedBlock
from fieldcast.models.video_transformer.options import VideoTransformerOptions
from fieldcast.pipeline.forecasting.costs import count_macs
from fieldcast.pipeline.training.dry_run import COPIES, Memory, held_for_backward, training_memory
from tests.campaign import cases
from tests.models.conftest import SMALL, build_small


class Two(nn.Module):
    """Two linear maps with a ReLU between: holds the input, and the output of the ReLU."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, history):
        return self.second(self.first(history.flatten(1)).relu())


def test_what_is_held_by_hand():
    assert held_for_backward(Two(), torch.zeros(2, 5, 1, 1, 1)) == 4 * (2 * 5 + 2 * 7)  # the ReLU's output counts once
    weights = 4 * (5 * 7 + 7 + 7 * 3 + 3)
    assert training_memory(Two, (5, 1, 1, 1)) == Memory(COPIES * weights, 4 * (5 + 7))


ALIKE = {  # others differ from these in sizes, or in what holds nothing for the backward pass
    "convlstm_one_level", "convlstm_strides", "simvp_one_scale", "factorised_patches", "global_tokens",
    "queries_alone", "tubelet", "learned", "no_positions", "rotary3d",
}  # fmt: skip


@pytest.mark.parametrize("case", cases(SMALL, SMALL.keys() - ALIKE))
def test_rehearsal_equals_the_real_thing(case):
    shape = (5, 3, 17, 13)
    real = [held_for_backward(build_small(case), torch.zeros(size, *shape)) for size in (2, 3)]
    found = training_memory(lambda: build_small(case), shape)
    if case == "clustered":  # the data's clusters are fewer than the worst case
        assert found.a_sample > real[1] - real[0]
    else:
        assert found.a_sample == pytest.approx(real[1] - real[0], rel=1e-9)


def test_memory_of_written_out_weights_grows_with_the_square():
    def held(impl, t):
        grid = torch.zeros(1, t, 5, 7, 8)
        return held_for_backward(AlongAxes(8, 2, "J", impl=impl), grid)

    eager, fused = ([held(impl, t) for t in (8, 16, 32)] for impl in ("eager", "sdpa"))
    second = [series[2] - 3 * series[1] + 2 * series[0] for series in (eager, fused)]  # 0 for a straight line
    tokens = [t * 35 for t in (8, 16, 32)]
    heads, float32 = 2, 4
    assert second == [heads * float32 * (tokens[2] ** 2 - 3 * tokens[1] ** 2 + 2 * tokens[0] ** 2), 0]


def test_clusters_count_at_their_worst():
    class Model(nn.Module):
        def __init__(self, mixer):
            super().__init__()
            self.mixer = mixer

        def forward(self, history):
            return self.mixer(history.movedim(2, -1))

    exact = training_memory(lambda: Model(AlongAxes(8, 2, "J", impl="eager")), (3, 8, 5, 7))
    found = training_memory(lambda: Model(Clustered(8, 2)), (3, 8, 5, 7))
    assert found.a_sample == exact.a_sample


def test_largest_batch():
    need = Memory(weights=100, a_sample=30)
    assert need.of_batch(3) == 190
    assert [need.largest_batch(budget) for budget in (190, 189, 50)] == [3, 2, 0]


def test_multiply_adds_of_a_convlstm_step_by_hand():
    """k^2 (c + d) 4 d for each cell of the grid and step."""

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = ConvLSTMCell(2, 3, RecurrentOptions(hidden=(3,), kernel=5))

        def forward(self, history):
            state = history.new_zeros(1, 3, 11, 13), history.new_zeros(1, 3, 11, 13)
            return unroll(self.cell, history.transpose(0, 1), state, 7)

    assert count_macs(Steps(), (7, 2, 11, 13)) == 7 * 5**2 * (2 + 3) * 4 * 3 * 11 * 13


def test_multiply_adds_of_a_divided_block_by_hand():
    """Two attentions of 4 d^2 a token, the linear map after the first, 2 d for each pair of a line, and the MLP."""
    (t, h, w), d = (3, 5, 7), 8
    block = DividedBlock(VideoTransformerOptions(attention="divided", dim=d, heads=2, mlp_ratio=4), 0, 0.0)
    tokens = t * h * w
    assert count_macs(block, (t, h, w, d)) == tokens * (2 * 4 * d**2 + d**2 + 2 * (t + h * w) * d + 3 * d * 4 * d)


def test_weights_and_multiply_adds_of_a_transformer_by_hand():
    """One layer is four sub-layers over all tokens: three frames of 2 x 3 patches, and two to come."""
    d, patch, slots, history, horizon = 8, 4, 2 * 3, 3, 2
    model = build_small("joint", channels=(1, 1), history=history, horizon=horizon, patch=patch, stem="patch")
    tokens, hidden = slots * (history + horizon), 4 * d
    embedding, attention, mlp = 2 * patch**2 * d, 4 * d**2, 3 * d * hidden
    minutes, readout, base = 64 * d + d * d, d * patch**2, history * horizon
    norms, biases = 4 * 2 * 2 * d + 2 * d, d + 4 * 3 * d + 2 * d + patch**2
    weights = embedding + d + 4 * (attention + mlp) + minutes + readout + base + norms + biases
    assert sum(parameter.numel() for parameter in model.parameters()) == weights
    of_tokens = tokens * 4 * (attention + mlp) + 4 * 2 * tokens**2 * d
    of_edges = slots * (history * embedding + horizon * readout) + (history + horizon) * minutes
    assert count_macs(model, (history, 1, 8, 12)) == of_tokens + of_edges + base * 8 * 12
