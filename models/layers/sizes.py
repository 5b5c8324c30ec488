"""Sizes of a learned model's input and output: channels, steps and the length of a step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes of a learned model's input and output; raises ValueError for those that cannot be."""

    channels_in: int
    channels_out: int
    history: int
    horizon: int
    step_minutes: float

    def __post_init__(self) -> None:
        for name in ("channels_in", "channels_out", "history", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.channels_out > self.channels_in:
            raise ValueError(
                f"channels_out must be at most channels_in ({self.channels_in}), got {self.channels_out}: "
                "the targets are the first input channels"
            )
        if not self.step_minutes > 0:
            raise ValueError(f"step_minutes must be above 0, got {self.step_minutes}")

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless `shape` is (b, history, channels_in, h, w)."""
        if len(shape) != 5 or shape[1:3] != (self.history, self.channels_in):
            raise ValueError(f"history must be (b, {self.history}, {self.channels_in}, h, w), got {tuple(shape)}")
