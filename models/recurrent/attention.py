"""A recurrent cell whose memory is attention in time: each cell of the grid looks back at its own last maps.

The convolutions are those of a ConvLSTM. What they give is not gates of a cell state but queries, keys, values and an
output gate, and what a ConvLSTM keeps in its cell state is read from the values of the last maps by multi-head
attention (Vaswani et al. 2017, section 3.2.2), causal because later maps are not there yet. A learned bias for each
head and lag says how far back it looks. The last maps are those of the history first, then also the forecast's own.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from fieldcast.models.recurrent.norms import make_norm
from fieldcast.models.recurrent.options import RecurrentOptions
from fieldcast.models.recurrent.repeated import Repeated
from fieldcast.models.recurrent.unroll import Driven, State, convolved_steps

Maps = Float[Tensor, "b heads d h w"]
Kept = Float[Tensor, "n b heads d h w"]  # the oldest first


def remembered(kept: Kept | None, newest: Maps, memory: int) -> Float[Tensor, "n_kept b heads d h w"]:
    """Return the last `memory` maps with the newest at the end: a ring buffer."""
    if kept is None:
        return newest[None]
    return torch.cat([kept[1:] if len(kept) == memory else kept, newest[None]])


def attend_in_time(query: Maps, keys: Kept, values: Kept, bias: Float[Tensor, "heads n"]) -> Maps:
    """Return for every cell and head the mix of its values by softmax(query key / sqrt(d) + bias).

    The same as `attend` of the video transformer, each cell a sample. As one query looks at few keys, sums over whole
    maps as they lie in memory take a quarter of the time.
    """
    logits = (query * keys).sum(dim=3) * query.shape[2] ** -0.5
    logits = logits + rearrange(bias, "heads n -> n 1 heads 1 1")
    weights = logits.softmax(dim=0).to(values.dtype)
    return torch.sum(weights.unsqueeze(3) * values, dim=0)


class AttentionCell(nn.Module):
    """A convolution of the input (none for `channels_in` 0) and one of the state, then attention in time.

    Its state is (hidden, keys, values). As many weights as a ConvLSTM but for the bias of lags in place of peepholes.
    """

    def __init__(self, channels_in: int, hidden: int, options: RecurrentOptions) -> None:
        super().__init__()
        self.heads, self.memory = options.heads, options.memory
        if channels_in:
            self.input_to_state = nn.Conv2d(channels_in, 4 * hidden, options.kernel, padding="same", bias=False)
        self.state_to_state = nn.Conv2d(hidden, 4 * hidden, options.state_side, padding="same", bias=False)
        self.bias = nn.Parameter(torch.zeros(4 * hidden))  # of queries, keys, values and the output gate
        self.lag = nn.Parameter(torch.zeros(options.heads, options.memory))  # the present map is the last
        self.norm = make_norm(options.norm, 4 * hidden)

    def drive(self, inputs: Float[Tensor, "t b c h w"]) -> list[Driven]:
        """Return the inputs' share of queries, keys, values and gates, and the bias, of each step."""
        return [(share,) for share in convolved_steps(inputs, self.input_to_state.weight, self.bias)]

    def step(self, driven: Driven | None, state: State | None, convolve: Repeated) -> State:
        """Return the next (hidden, keys, values)."""
        hidden, keys, values = (None, None, None) if state is None else state
        pre = self._convolved(driven, hidden, convolve)
        pre = pre if self.norm is None else self.norm(pre)
        query, key, value, gate = rearrange(pre, "b (four heads d) h w -> four b heads d h w", four=4, heads=self.heads)
        keys, values = remembered(keys, key, self.memory), remembered(values, value, self.memory)
        mixed = attend_in_time(query, keys, values, self.lag[:, -len(keys) :])
        return rearrange(torch.sigmoid(gate) * torch.tanh(mixed), "b heads d h w -> b (heads d) h w"), keys, values

    def _convolved(self, driven: Driven | None, hidden: Tensor | None, convolve: Repeated) -> Float[Tensor, "b d4 h w"]:
        if hidden is None:
            assert driven is not None
            return driven[0]  # a zero state needs no convolution
        pre = convolve(hidden, self.bias if driven is None else None)
        return pre if driven is None else pre + driven[0]
