"""A GRU cell whose state is moved along learned flows before it is read: recurrent connections follow the motion.

Shi et al. 2017, "Deep Learning for Precipitation Nowcasting", equations 4 and 5. Flows are in cells of the level's
grid, x first; a flow of (1, 0) moves what the state holds by one cell towards larger x. Beyond the edge it is zero.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.recurrent.convgru import SLOPE, GatedUpdate
from fieldcast.models.recurrent.options import RecurrentOptions
from fieldcast.models.recurrent.repeated import Repeated
from fieldcast.models.recurrent.unroll import Driven, State, convolved_steps

FEATURES = 32  # between the two convolutions that give the flows


def moved(state: Float[Tensor, "b d h w"], flows: Float[Tensor, "b flows_2 h w"]) -> Float[Tensor, "b flows_d h w"]:
    """Return the state moved along each flow: cell (x, y) gets the value at (x - u, y - v), bilinear, 0 outside."""
    height, width = state.shape[-2:]
    rows = torch.arange(height, device=flows.device, dtype=flows.dtype)[:, None]
    columns = torch.arange(width, device=flows.device, dtype=flows.dtype)
    u, v = rearrange(flows, "b (l xy) h w -> xy b (l h) w", xy=2)
    count = flows.shape[1] // 2
    x, y = columns - u, rows.repeat(count, 1) - v
    # grid_sample without aligned corners counts half a cell beyond the first and last centres: also right for one row
    places = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    sampled = functional.grid_sample(state, places, mode="bilinear", padding_mode="zeros", align_corners=False)
    return rearrange(sampled, "b d (l h) w -> b (l d) h w", l=count)


class TrajGRUCell(nn.Module):
    """A network for flows, then a 1x1 convolution of all moved states; its state is (hidden,)."""

    def __init__(self, channels_in: int, hidden: int, options: RecurrentOptions) -> None:
        super().__init__()
        side = options.state_side
        if channels_in:
            self.input_to_state = nn.Conv2d(channels_in, 3 * hidden, options.kernel, padding="same", bias=False)
            self.input_to_flow = nn.Conv2d(channels_in, FEATURES, side, padding="same", bias=False)
        self.state_to_flow = nn.Conv2d(hidden, FEATURES, side, padding="same")
        self.flow = nn.Conv2d(FEATURES, 2 * options.flows, side, padding="same")
        nn.init.zeros_(self.flow.weight)  # at first the state stays where it is
        nn.init.zeros_(self.flow.bias)  # type: ignore[arg-type]
        self.state_to_state = nn.Conv2d(options.flows * hidden, 3 * hidden, 1, bias=False)
        self.update = GatedUpdate(hidden, options)

    def drive(self, inputs: Float[Tensor, "t b c h w"]) -> list[Driven]:
        """Return the inputs' share of gates and candidate with the bias, and of the flows, of each step."""
        gates = convolved_steps(inputs, self.input_to_state.weight, self.update.bias)
        return list(zip(gates, convolved_steps(inputs, self.input_to_flow.weight, None), strict=True))

    def step(self, driven: Driven | None, state: State | None, convolve: Repeated) -> State:
        """Return the next (hidden,)."""
        of_input, of_flow = (None, None) if driven is None else driven
        if state is None:  # zeros are zeros wherever they move
            return (self.update(of_input, None, None),)
        (hidden,) = state
        moving = self.state_to_flow(hidden)
        moving = moving if of_flow is None else moving + of_flow
        flows = self.flow(functional.leaky_relu(moving, SLOPE)).to(hidden.dtype)
        return (self.update(of_input, convolve(moved(hidden, flows)), hidden),)
