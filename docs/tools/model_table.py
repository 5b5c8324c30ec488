"""The catalogue of learned models, `docs/models.md`: what each variant is, what it costs, and what it can be told.

`make models` writes it anew: everything but the seconds follows from the code, and a test holds the two together.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from tqdm import tqdm

from docs.tools.complexity import theory_of
from fieldcast import models
from fieldcast.models.layers.sizes import Sizes
from fieldcast.models.video_transformer.attention.patterns import ATTENTIONS
from fieldcast.pipeline.forecasting.costs import count_macs, device_name
from fieldcast.pipeline.training.memory import training_memory

PAGE = Path("docs/models.md")
SIZES: dict[str, Any] = {"channels_in": 1, "channels_out": 1, "history": 6, "horizon": 12, "step_minutes": 5}
SIDES = (32, 128)  # cells of the square fields
REPEATS = 3  # the fastest counts


@dataclass(frozen=True)
class Variant:
    """A learned model by its kind, the options that make it what it is, and where it comes from."""

    kind: str
    paper: str
    options: dict[str, Any] = field(default_factory=dict)

    def stated(self) -> BaseModel:
        """Return its options, checked."""
        return models.OPTIONS[self.kind].model_validate(self.options)

    def in_yaml(self) -> str:
        """Return its options as a line of params.yaml."""
        return "{" + ", ".join(f"{key}: {value}" for key, value in self.options.items()) + "}"


VARIANTS: dict[str, Variant] = {
    "convlstm": Variant("recurrent", "Shi et al. 2015, Convolutional LSTM Network"),
    "convgru": Variant("recurrent", "Ballas et al. 2016, Delving Deeper into ConvNets", {"cell": "convgru"}),
    "trajgru": Variant("recurrent", "Shi et al. 2017, Deep Learning for Precipitation", {"cell": "trajgru"}),
    "attention_in_time": Variant(
        "recurrent", "Vaswani et al. 2017, in the skeleton of the ConvLSTM", {"cell": "attention"}
    ),
    "simvp": Variant("simvp", "Gao et al. 2022, SimVP; Tan et al. 2023, Temporal Attention Unit"),
    **{
        name: Variant("video_transformer", choice.paper, {"attention": name} if name != "factorised" else {})
        for name, choice in ATTENTIONS.items()
    },
    "encoder_decoder": Variant(
        "video_transformer", "Carion et al. 2020, DETR: queries that read the past", {"arch": "encoder_decoder"}
    ),
    "autoregressive": Variant(
        "video_transformer",
        "Vaswani et al. 2017, one lead after the other",
        {"arch": "encoder_decoder", "decode": "autoregressive"},
    ),
}


@dataclass(frozen=True)
class Cost:
    """What a variant costs on a field of one size: exact counts, and seconds where they were measured."""

    macs: int
    held_mb: float


def parameters_of(variant: Variant) -> int:
    """Return the number of weights."""
    return sum(parameter.numel() for parameter in models.build(variant.kind, variant.stated(), **SIZES).parameters())


def cost_of(variant: Variant, side: int) -> Cost:
    """Return the multiply-adds of a forecast and the MB that a training sample holds, on `side` x `side` cells."""
    import torch

    options = variant.stated()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # what is clustered depends on the weights
        model = models.build(variant.kind, options, **SIZES)
        macs = count_macs(model, (SIZES["history"], SIZES["channels_in"], side, side))
    return Cost(macs, training_memory(variant.kind, options, SIZES, (side, side)).a_sample / 1e6)


def milliseconds_of(variant: Variant, side: int) -> tuple[float, float]:
    """Return the milliseconds of one forecast and of one training step, forward and backward, of one sample."""
    import torch

    torch.manual_seed(0)
    model = models.build(variant.kind, variant.stated(), **SIZES)
    history = torch.randn(1, SIZES["history"], SIZES["channels_in"], side, side)

    def forecast() -> None:
        with torch.inference_mode():
            model(history)

    def step() -> None:
        model.zero_grad()
        model(history).square().mean().backward()

    return fastest(model.eval() and forecast), fastest(model.train() and step)


def fastest(work: Callable[[], None]) -> float:
    """Return the milliseconds of the fastest of some repeats, after one that does not count."""
    seconds = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds[1:])


def short(value: float) -> str:
    """Return a number with three figures, or whole where it has more before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first and the last two are numbers."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def costs_table(sides: Sequence[int] = SIDES) -> str:
    """Return the table of what follows from the code: weights, multiply-adds, memory, options and paper."""
    rows = []
    for name, variant in tqdm(VARIANTS.items(), desc="count", disable=not sys.stderr.isatty()):
        found = [cost_of(variant, side) for side in sides]
        macs, held = [short(cost.macs / 1e9) for cost in found], [short(cost.held_mb) for cost in found]
        weights = f"{parameters_of(variant) / 1e6:.3f}"
        rows.append([name, weights, *macs, *held, f"`{variant.kind}` `{variant.in_yaml()}`", variant.paper])
    named = [f"{side} x {side}" for side in sides]
    head = ["variant", "weights, M", *(f"GMAC {it}" for it in named), *(f"MB {it}" for it in named), "options", "paper"]
    return table(head, rows)


def theory_table(sides: Sequence[int] = SIDES) -> str:
    """Return the table of what must wait and how far information travels, which follows from the options."""
    rows = []
    for name, variant in VARIANTS.items():
        found = [theory_of(variant.stated(), Sizes(**SIZES), (side, side)) for side in sides]
        paths = ["never" if theory.path is None else str(theory.path) for theory in found]
        rows.append([name, str(found[0].in_a_row), f"`{found[0].row_grows}`", *paths, f"`{found[0].path_grows}`"])
    head = ["variant", "operations in a row", "grow as", *(f"path {side} x {side}" for side in sides), "grows as"]
    return table(head, rows)


def seconds_table(sides: Sequence[int] = SIDES) -> str:
    """Return the table of what was measured on this machine."""
    rows = []
    for name, variant in tqdm(VARIANTS.items(), desc="measure", disable=not sys.stderr.isatty()):
        times = [milliseconds for side in sides for milliseconds in milliseconds_of(variant, side)]
        rows.append([name, *(f"{milliseconds:.0f}" for milliseconds in times)])
    head = [f"{work} {side} x {side}" for side in sides for work in ("forecast, ms", "training step, ms")]
    return table(["variant", *head], rows)


def in_yaml(value: Any) -> str:
    """Return a default as params.yaml would have it."""
    words = {None: "null", True: "true", False: "false"}
    return (
        words[value]
        if value is None or isinstance(value, bool)
        else str(list(value) if isinstance(value, tuple) else value)
    )


def options_table(kind: str) -> str:
    """Return the options of a kind with their defaults and meaning."""
    rows = []
    for name, option in models.OPTIONS[kind].model_fields.items():
        rows.append([f"`{name}`", f"`{in_yaml(option.default)}`", option.description or ""])
    return table(["option", "default", "meaning"], rows)


def page(costs: str, theory: str, seconds: str, machine: str) -> str:
    """Return the whole page."""
    history, horizon = SIZES["history"], SIZES["horizon"]
    kinds = "\n\n".join(f"### `{kind}`\n\n{options_table(kind)}" for kind in models.LEARNED)
    return f"""# The learned models

This page is written by `make models`. Every variant is a kind of model with some of its options: give it a name under
`models` in params.yaml, and `make repro` trains it and compares it with all others.

```yaml
models:
  convlstm: {{kind: recurrent}}
  gru: {{kind: recurrent, cell: convgru}}
  windows: {{kind: video_transformer, attention: window, window: [4, 4, 4], global_tokens: 2}}
```

All of them read a history with gaps, give every lead at once, and are persistence until they are trained. How good
they are depends on the data: the table of [README](../README.md) and the report of every run say so. What they cost
depends on the size of the field alone.

## What they cost

With default options, {history} frames in and {horizon} out, one variable. GMAC are billions of multiply-adds of one
forecast; MB is what one sample of a training batch holds until its backward pass, in float32. `fieldcast check` says
whether a training fits into memory, and what would.

{costs}

The clusters of `clustered` depend on the data: its MB are the worst case, its GMAC those of an empty field.

## What waits, and how far information travels

An operation mixes places or times: a step of a recurrent cell, a sub-layer of attention, a convolution. Operations in a
row are those that must wait for one another, from the first frame to the last lead, however many processors there are.
The path is the fewest of them from a corner of the first frame to the opposite corner at the last lead: where it is
longer than the operations in a row, that lead does not see that corner. T are the steps of history and horizon, K the
`memory`, n the cells or tokens along the longest axis, r those that one operation reaches.

{theory}

`trajgru`, `reformer` and `deformable` choose where they look: theirs is the path to the places that they choose.

## How long they take

The fastest of {REPEATS} on {machine}, one sample at a time. Approximations
of attention pay where tokens are many. `make bench` measures how the time and memory of each pattern of attention grow
with the number of tokens, and what it can learn.

{seconds}

## What they can be told

{kinds}
"""


def main() -> None:
    """Write the page."""
    import torch

    machine = f"{device_name(learned=False)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    PAGE.write_text(page(costs_table(), theory_table(), seconds_table(), machine))
    sys.stdout.write(f"{PAGE}\n")


if __name__ == "__main__":
    main()
