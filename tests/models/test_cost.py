import pytest
import torch
from torch import nn

from models.attention.axes import AlongAxes
from models.attention.clustered import Clustered
from models.cost import COPIES, Memory, held_for_backward, training_memory


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


def test_rehearsal_equals_the_real_thing(case, small):
    shape = (5, 3, 17, 13)
    real = [held_for_backward(small(case), torch.zeros(size, *shape)) for size in (1, 2, 3)]
    found = training_memory(lambda: small(case), shape)
    if case == "clustered":  # the data's clusters are fewer than the worst case
        assert found.a_sample > real[2] - real[1]
    else:
        assert found.a_sample == pytest.approx(real[2] - real[1], rel=1e-9)


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
