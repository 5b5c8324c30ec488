"""Video transformer: forecasting as filling in the future part of a space-time grid of patches.

History patches are tokens, every future patch is one learned query with its position; a trunk of attention fills the
queries in, and a zero-initialised linear map reads increments to persistence. No mask: queries hold no truth. In an
ensemble one more block modulates the filled queries by each member's noise.

As an encoder-decoder the trunk sees the history alone, and a decoder reads it: for all leads at once with the same
queries, or for one lead after the other from its own forecast of the last.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fieldcast.models.layers.members import NoisyBlock, members_apart
from fieldcast.models.layers.missing import LinearBaseline, fill_and_mask
from fieldcast.models.layers.sizes import Sizes
from fieldcast.models.video_transformer.attention.interface import Grid
from fieldcast.models.video_transformer.block import Trunk, Turns
from fieldcast.models.video_transformer.frames import FrameDecoder
from fieldcast.models.video_transformer.options import VideoTransformerOptions
from fieldcast.models.video_transformer.positions import POSITIONS, Minutes, minutes_from_init, turns
from fieldcast.models.video_transformer.queries import Positions, QueryDecoder
from fieldcast.models.video_transformer.tokens import Queries, Seen, readout_of, stem_of

Frames = Float[Tensor, "b f c_out h w"]
Leads = Float[Tensor, "b f h w d"]  # tokens of the future


class VideoTransformer(nn.Module):
    """Forecasts by attention over patches of history and future; untrained it is persistence.

    With `supports_teacher_forcing`, targets may be given in training: the next lead is fed these frames instead of the
    forecast.
    """

    minutes: Tensor

    def __init__(self, options: VideoTransformerOptions, sizes: Sizes) -> None:
        super().__init__()
        if options.future == "direct" and sizes.history != sizes.horizon:
            raise ValueError(
                f"future: direct needs as many history steps as leads ({sizes.horizon}), got {sizes.history}"
            )
        self.options, self.sizes, self.supports_teacher_forcing = options, sizes, options.autoregressive
        self.stem = stem_of(sizes.channels_in + 1, options, tubelet=options.tubelet)  # + 1: the valid mask
        asks = options.future == "queries" and not options.autoregressive
        self.queries = Queries(options.dim) if asks else None
        minutes = minutes_from_init(sizes.history, sizes.horizon, sizes.step_minutes, options.tubelet)
        self.slots = len(minutes) - sizes.horizon  # of the history
        minutes = minutes[: self.slots] if options.future == "direct" else minutes
        self.register_buffer("minutes", minutes, persistent=False)
        made = POSITIONS.get(options.positions)
        self.positions = None if made is None else made(options, minutes, sizes.step_minutes)
        self.trunk = Trunk(options)
        self.decoder = build_decoder(options, sizes.channels_out)
        self.base = LinearBaseline(sizes.history, sizes.horizon, sizes.channels_out)
        self.readout = readout_of(options.values * sizes.channels_out, sizes.history, options)
        self.noisy = NoisyBlock(options.dim, options.members or 1) if options.output == "ensemble" else None

    def forward(
        self,
        history: Float[Tensor, "b t c_in h w"],
        noise: Float[Tensor, "b m k"] | None = None,
        *,
        target: Frames | None = None,
        truth: Bool[Tensor, "b f"] | None = None,
    ) -> Float[Tensor, "layers_b *m f c_out h w"]:
        """Return forecasts of the first c_out channels for all leads, in normalised values; NaN is a missing cell.

        There are members unless its output is point; an ensemble's `noise` is drawn where none is given. In training,
        the next lead is fed the `target` where `truth` says so (everywhere by default) instead of the own forecast; and
        with deep supervision there is a batch of forecasts after every decoder layer, the last layer's last.
        Raises ValueError when steps or channels are not those it was built for, or for a target that nothing is fed.
        """
        self.sizes.check(history.shape)
        if target is not None and not self.supports_teacher_forcing:
            raise ValueError("a target is fed to decode: autoregressive only")
        tokens, seen = self.stem(fill_and_mask(history))
        if isinstance(self.decoder, FrameDecoder):
            increment = self._increments_in_turn(tokens, seen, history, target if self.training else None, truth)
        elif self.training and self.options.deep_supervision:
            futures = self._decoded(tokens, self.minutes[self.slots :])
            increment = torch.cat([self._read(future, seen, noise, history) for future in futures])
            history = torch.cat([history] * len(futures))
        else:
            future = (
                self.filled_in(tokens) if self.decoder is None else self.at_leads(tokens, self.minutes[self.slots :])
            )
            increment = self._read(future, seen, noise, history)
        forecast: Tensor = self.base(members_apart(increment, self.options), history)
        return forecast

    def filled_in(self, tokens: Grid) -> Leads:
        """Return tokens of all leads, from one grid of history and future."""
        if self.queries is not None:
            tokens = torch.cat([tokens, self.queries(tokens, self.sizes.horizon)], dim=1)
        filled = self._encoded(tokens, self.minutes)
        return filled if self.queries is None else filled[:, self.slots :]

    def at_leads(self, tokens: Grid, minutes: Float[Tensor, " f"]) -> Leads:
        """Return tokens of leads at any `minutes` from init_time, in any order, which read the encoded history."""
        return self._decoded(tokens, minutes)[-1]

    def _decoded(self, tokens: Grid, minutes: Float[Tensor, " f"]) -> list[Leads]:
        """Return tokens of leads after each decoder layer.

        A query starts from what is known of its own patch at init_time: cross-attention alone finds it hundreds of
        training steps later.
        """
        assert isinstance(self.decoder, QueryDecoder)
        assert self.queries is not None
        memory, (before, after) = self._remembered(tokens, minutes)
        queries = self.queries(memory, len(minutes)) + memory[:, -1:]
        decoded: list[Grid] = self.decoder(placed(queries, after), memory, after, before)
        return decoded

    def _read(
        self,
        future: Leads,
        seen: Seen,
        noise: Float[Tensor, "b m k"] | None,
        history: Float[Tensor, "b t c_in height width"],
    ) -> Float[Tensor, "b_m f m_c height width"]:
        increment: Tensor = self.readout(self._with_noise(future, noise), seen, *history.shape[-2:])
        return increment

    def _increments_in_turn(
        self,
        tokens: Float[Tensor, "b s rows columns d"],
        seen: Seen,
        history: Float[Tensor, "b t c_in h w"],
        target: Frames | None,
        truth: Bool[Tensor, "b f"] | None,
    ) -> Frames:
        decoder, known = self.decoder, (seen, *history.shape[-2:])
        assert isinstance(decoder, FrameDecoder)
        memory, (before, after) = self._remembered(tokens, self.minutes[self.slots :])
        cache = decoder.start(memory, before)
        frame = history[:, -1:, : self.sizes.channels_out]
        if target is not None and truth is None:
            all_at_once: Frames = self.readout(decoder(torch.cat([frame, target[:, :-1]], dim=1), cache, after), *known)
            return all_at_once
        base = self.base(history.new_zeros(len(history), self.sizes.horizon, *frame.shape[2:]), history)
        increments: list[Frames] = []
        for lead in range(self.sizes.horizon):
            here = slice(lead, lead + 1)
            increments.append(self.readout(decoder(frame, cache, None if after is None else after[here]), *known))
            frame = base[:, here] + increments[-1].to(base.dtype)
            if target is not None and truth is not None:
                frame = torch.where(truth[:, here, None, None, None], target[:, here], frame)
        return torch.cat(increments, dim=1)

    def _remembered(
        self, tokens: Grid, minutes: Float[Tensor, " f"]
    ) -> tuple[Grid, tuple[Positions | None, Float[Tensor, "f h w d"] | None]]:
        past = self.minutes[: self.slots]
        memory = self._encoded(tokens, past)
        return memory, (self._positions(past, memory), self._positions(minutes, memory))

    def _encoded(self, tokens: Grid, minutes: Minutes) -> Grid:
        _, _, rows, columns, d = tokens.shape
        turned: Turns | None = None
        if self.options.positions == "rotary3d":
            turned = turns(minutes / self.sizes.step_minutes, rows, columns, d // self.options.heads)
        encoded: Grid = self.trunk(placed(tokens, self._positions(minutes, tokens)), turned)
        return encoded

    def _positions(self, minutes: Minutes, like: Float[Tensor, "b s h w d"]) -> Positions | None:
        if self.positions is None:
            return None
        positions: Positions = self.positions(minutes, *like.shape[2:4])
        return positions.to(like.dtype)

    def _with_noise(self, future: Leads, noise: Float[Tensor, "b m k"] | None) -> Float[Tensor, "b_m f h w d"]:
        if self.noisy is None:
            return future
        h = future.shape[2]
        decoded = self.noisy(rearrange(future, "b f h w d -> b f (h w) d"), noise)
        members: Grid = rearrange(decoded, "b f (h w) d -> b f h w d", h=h)
        return members


def placed(tokens: Grid, positions: Positions | None) -> Grid:
    """Return tokens with their positions added, if any."""
    return tokens if positions is None else tokens + positions


def build_decoder(options: VideoTransformerOptions, channels: int) -> QueryDecoder | FrameDecoder | None:
    """Return the decoder of an encoder-decoder for frames of so many channels."""
    if options.arch == "fill_in":
        return None
    return FrameDecoder(options, channels) if options.autoregressive else QueryDecoder(options)
