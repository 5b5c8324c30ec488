"""Convolutional model without recurrence: every frame encoded by itself, all steps translated at once, leads decoded.

Gao et al. 2022, "SimVP: Simpler yet Better Video Prediction", with the gated translator of its successors (Tan et al.
2023). There the output has as many frames as the input; here the translator's last map makes as many as there are
leads, and the decoder's fine detail comes from the last frame. It reads increments to the history's mixture.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from fieldcast.models.layers.members import NoisyBlock, members_apart
from fieldcast.models.layers.missing import LinearBaseline, fill_and_mask
from fieldcast.models.layers.patches import crop, pad_to_multiple
from fieldcast.models.layers.sizes import Sizes
from fieldcast.models.simvp.layers import Decoder, Encoder, GatedBlock
from fieldcast.models.simvp.options import SimVPOptions


class SimVP(nn.Module):
    """Forecasts by convolution over stacked frames; untrained it is persistence."""

    def __init__(self, options: SimVPOptions, sizes: Sizes) -> None:
        super().__init__()
        self.options, self.sizes = options, sizes
        channels, hidden = options.channels, options.hidden
        self.encoder = Encoder(sizes.channels_in + 1, channels, options.levels)  # + 1: the valid mask
        self.translator = nn.Sequential(
            nn.Conv2d(sizes.history * channels, hidden, 1),
            *(GatedBlock(hidden, options.kernel, options.mlp_ratio, options.dropout) for _ in range(options.blocks)),
            nn.Conv2d(hidden, sizes.horizon * channels, 1),
        )
        self.decoder = Decoder(channels, options.levels)
        self.base = LinearBaseline(sizes.history, sizes.horizon, sizes.channels_out)
        self.readout = nn.Conv2d(channels, options.values * sizes.channels_out, 1)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)  # type: ignore[arg-type]
        self.noisy = NoisyBlock(channels, options.members or 1) if options.output == "ensemble" else None

    def forward(
        self, history: Float[Tensor, "b t c_in h w"], noise: Float[Tensor, "b m k"] | None = None
    ) -> Float[Tensor, "b *m f c_out h w"]:
        """Return forecasts of the first c_out channels for all leads, in normalised values; NaN is a missing cell.

        There are members unless its output is point; an ensemble's `noise` is drawn where none is given. Raises
        ValueError when steps or channels are not those it was built for.
        """
        self.sizes.check(history.shape)
        height, width = history.shape[-2:]
        frames = pad_to_multiple(fill_and_mask(history), 2**self.options.levels)
        fields = crop(self._read(self._decode(frames), noise), height, width)
        forecast: Tensor = self.base(members_apart(fields, self.options), history)
        return forecast

    def _decode(self, frames: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b f d h w"]:
        fine, coarse = self.encoder(rearrange(frames, "b t c h w -> (b t) c h w"))
        steps = self.translator(rearrange(coarse, "(b t) d h w -> b (t d) h w", b=len(frames)))
        last = rearrange(fine, "(b t) d h w -> b t d h w", b=len(frames))[:, -1]
        leads = rearrange(steps, "b (f d) h w -> b f d h w", f=self.sizes.horizon)
        decoded: Tensor = self.decoder(leads, last)
        return decoded

    def _read(self, maps: Float[Tensor, "b f d h w"], noise: Tensor | None) -> Float[Tensor, "b_m f c h w"]:
        if self.noisy is not None:
            height = maps.shape[-2]
            cells = self.noisy(rearrange(maps, "b f d h w -> b f (h w) d"), noise)
            maps = rearrange(cells, "b f (h w) d -> b f d h w", h=height)
        flat: Tensor = self.readout(rearrange(maps, "b f d h w -> (b f) d h w"))
        return rearrange(flat, "(b f) c h w -> b f c h w", b=len(maps))
