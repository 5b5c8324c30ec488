"""Video transformer: forecasting as filling in the future part of a space-time grid of patches.

History patches are tokens, every future patch is one learned query with its position; a trunk of attention fills the
queries in, and a zero-initialised linear map reads increments to persistence. No mask: queries hold no truth. In an
ensemble one more block modulates the filled queries by each member's noise.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.gaps import HistoryBase, fill_and_mask
from models.members import NoisyBlock, members_apart
from models.sizes import Sizes
from models.video_transformer.block import TRUNKS
from models.video_transformer.options import VideoTransformerOptions
from models.video_transformer.positions import TimePositions, minutes_from_init, space_positions
from models.video_transformer.tokens import Embedding, Readout


class VideoTransformer(nn.Module):
    """Forecasts by attention over patches of history and future; untrained it is persistence."""

    minutes: Tensor

    def __init__(self, options: VideoTransformerOptions, sizes: Sizes) -> None:
        super().__init__()
        self.options, self.sizes = options, sizes
        self.embedding = Embedding(sizes.channels_in + 1, sizes.horizon, options.patch, options.dim)  # + 1: valid mask
        self.time_positions = TimePositions(options.dim)
        minutes = minutes_from_init(sizes.history, sizes.horizon, sizes.step_minutes)
        self.register_buffer("minutes", minutes, persistent=False)
        self.trunk = TRUNKS[options.attention](options)
        self.base = HistoryBase(sizes.history, sizes.horizon, sizes.channels_out)
        self.readout = Readout(options.values * sizes.channels_out, options.patch, options.dim, smooth=options.smooth)
        self.noisy = NoisyBlock(options.dim, options.members or 1) if options.output == "ensemble" else None

    def forward(
        self, history: Float[Tensor, "b t c_in h w"], noise: Float[Tensor, "b m k"] | None = None
    ) -> Float[Tensor, "b *m f c_out h w"]:
        """Forecasts of the first c_out channels for all leads, in normalised values; NaN in the history is a gap.

        There are members unless its output is point; an ensemble's `noise` is drawn where none is given. Raises
        ValueError when steps or channels are not those it was built for.
        """
        self.sizes.check(history.shape)
        tokens, rows, columns = self.embedding(fill_and_mask(history))
        tokens = self.trunk(tokens + self._positions(rows, columns).to(tokens.dtype))
        future = tokens[:, self.sizes.history :]
        if self.noisy is not None:
            future = self.noisy(future, noise)
        increment = self.readout(future, rows, columns, *history.shape[-2:])
        forecast: Tensor = self.base(members_apart(increment, self.options), history)
        return forecast

    def _positions(self, rows: int, columns: int) -> Float[Tensor, "t n d"]:
        space = space_positions(rows, columns, self.options.dim, self.minutes.device)
        times: Float[Tensor, "t d"] = self.time_positions(self.minutes)
        return torch.add(times[:, None], space[None])
