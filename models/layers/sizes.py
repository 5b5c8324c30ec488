"""Sizes of a learned model's input and output: channels, steps and the length of a step; and its frame."""

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


@dataclass(frozen=True)
class Frame:
    """Frame and base of a network with `variables`, the first `targets` of them forecast, and `planes` beside them.

    `planes` tell time and place. `models.layers.frame` says what a frame does.
    """

    moving: bool
    based: bool  # on a forecast that is given, not on the history's own mixture
    variables: int
    targets: int
    planes: int
    history: int
    horizon: int

    @property
    def steps(self) -> int:
        """Return how many steps of paths it needs: as many as there are leads, or frames before the last one."""
        return max(self.horizon, self.history - 1)

    @property
    def shows_base(self) -> bool:
        """Return whether the base is an input: in the moving frame it follows from the last frames."""
        return self.based and not self.moving

    def sizes(self, step_minutes: float) -> Sizes:
        """Return the sizes of the network inside."""
        shown = -(-self.horizon // self.history) * self.targets if self.shows_base else 0
        channels = self.variables * (1 + self.moving) + shown + self.planes
        return Sizes(channels, self.targets * (1 + self.moving), self.history, self.horizon, step_minutes)
