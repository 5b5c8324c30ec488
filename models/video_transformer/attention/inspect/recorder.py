"""The attention weights of a forecast, as it was made: `with record(model) as recording: model(history)`.

Attention that is watched writes its weights out, whatever its `impl`, so recording needs the memory of explicit
attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from fieldcast.models.video_transformer.attention.core import Attention, Weights
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes


@dataclass(frozen=True)
class Call:
    """One call of one attention module; where it ran along axes of a grid, along which, and the grid's (b, t, h, w)."""

    name: str
    weights: Weights
    along: str | None
    grid: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Recording:
    """All calls, in the order in which they were made."""

    calls: list[Call] = field(default_factory=list)


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Yield a recording that fills as the model runs; then restore the model."""
    recording = Recording()
    places: dict[str, tuple[str, tuple[int, int, int, int]]] = {}  # attention -> where it runs now
    before = {module: module.watcher for module in model.modules() if isinstance(module, Attention)}
    hooks = []

    def place(name: str, mixer: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(mixer, AlongAxes)
        b, t, h, w = arguments[0].shape[:4]
        places[name] = (mixer.along, (b, t, h, w))

    def keep(name: str, weights: Tensor) -> None:
        recording.calls.append(Call(name, weights, *places.get(name, (None, None))))

    for name, module in model.named_modules():
        if isinstance(module, AlongAxes):
            inside = f"{name}.attention" if name else "attention"
            hooks.append(module.register_forward_pre_hook(partial(place, inside)))
        elif isinstance(module, Attention):
            module.watcher = partial(keep, name)
    try:
        yield recording
    finally:
        for module, watcher in before.items():
            module.watcher = watcher
        for hook in hooks:
            hook.remove()
