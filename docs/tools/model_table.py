"""Page of models, `docs/models.md`: variants of networks, their costs and complexity, references, and all options.

`make models` writes it: everything but the times follows from the code, and a test compares the two.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from tqdm import tqdm

from docs.tools.complexity import complexity_of
from fieldcast import models
from fieldcast.models.layers.sizes import Sizes
from fieldcast.models.video_transformer.attention.patterns import ATTENTIONS
from fieldcast.pipeline.forecasting.costs import count_macs, device_name
from fieldcast.pipeline.training.memory import training_memory

PAGE_PATH = Path("docs/models.md")
SIZES: dict[str, Any] = {"channels_in": 1, "channels_out": 1, "history": 6, "horizon": 12, "step_minutes": 5}
SIDES = (32, 128)  # cells of the square fields
REPEATS = 3  # the fastest counts


@dataclass(frozen=True)
class Variant:
    """A kind of learned model with some of its options, and the paper that it comes from."""

    kind: str
    paper: str
    options: dict[str, Any] = field(default_factory=dict)

    def checked_options(self) -> BaseModel:
        """Return the options, checked."""
        return models.OPTIONS[self.kind].model_validate(self.options)

    def in_yaml(self) -> str:
        """Return the options as a line of params.yaml."""
        return "{" + ", ".join(f"{key}: {value}" for key, value in self.options.items()) + "}"


VARIANTS: dict[str, Variant] = {
    "convlstm": Variant("recurrent", "Shi et al. 2015, Convolutional LSTM Network"),
    "convgru": Variant("recurrent", "Ballas et al. 2016, Delving Deeper into ConvNets", {"cell": "convgru"}),
    "trajgru": Variant("recurrent", "Shi et al. 2017, Deep Learning for Precipitation", {"cell": "trajgru"}),
    "attention_in_time": Variant(
        "recurrent", "Vaswani et al. 2017, in the skeleton of the ConvLSTM", {"cell": "attention"}
    ),
    "simvp": Variant("simvp", "Gao et al. 2022, SimVP; Tan et al. 2023, Temporal Attention Unit"),
    "unet": Variant("unet", "Ronneberger et al. 2015, U-Net; Ayzel et al. 2020, RainNet"),
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
    """Cost of a variant on a field of one size, as exact counts."""

    macs: int
    held_mb: float


def parameters_of(variant: Variant) -> int:
    """Return the number of weights."""
    return sum(
        parameter.numel() for parameter in models.build(variant.kind, variant.checked_options(), **SIZES).parameters()
    )


def cost_of(variant: Variant, side: int) -> Cost:
    """Return the multiply-adds of a forecast and the MB that a training sample holds, on `side` x `side` cells."""
    import torch

    options = variant.checked_options()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # what is clustered depends on the weights
        model = models.build(variant.kind, options, **SIZES)
        macs = count_macs(model, (SIZES["history"], SIZES["channels_in"], side, side))
    return Cost(macs, training_memory(variant.kind, options, SIZES, (side, side)).a_sample / 1e6)


def milliseconds_of(variant: Variant, side: int) -> tuple[float, float]:
    """Return the milliseconds of one forecast and of one training step, forward and backward, of one sample."""
    import torch

    torch.manual_seed(0)
    model = models.build(variant.kind, variant.checked_options(), **SIZES)
    history = torch.randn(1, SIZES["history"], SIZES["channels_in"], side, side)

    def forecast() -> None:
        with torch.inference_mode():
            model(history)

    def step() -> None:
        model.zero_grad()
        model(history).square().mean().backward()

    return fastest(model.eval() and forecast), fastest(model.train() and step)


def fastest(work: Callable[[], None]) -> float:
    """Return the milliseconds of the fastest of some repeats, after one to warm up."""
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
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def costs_table(sides: Sequence[int] = SIDES) -> str:
    """Return the table of costs that follow from the code: weights, multiply-adds, memory, options and paper."""
    rows = []
    for name, variant in tqdm(VARIANTS.items(), desc="count", disable=not sys.stderr.isatty()):
        costs = [cost_of(variant, side) for side in sides]
        macs, held = [short(cost.macs / 1e9) for cost in costs], [short(cost.held_mb) for cost in costs]
        weights = f"{parameters_of(variant) / 1e6:.3f}"
        rows.append([name, weights, *macs, *held, f"`{variant.kind}` `{variant.in_yaml()}`", variant.paper])
    grids = [f"{side} x {side}" for side in sides]
    quantities = [f"{quantity} {grid}" for quantity in ("GMAC", "MB") for grid in grids]
    head = ["variant", "weights, M", *quantities, "options", "paper"]
    return table(head, rows)


def complexity_table(sides: Sequence[int] = SIDES) -> str:
    """Return the table of operations in a row and path lengths, which follow from the options."""
    rows = []
    for name, variant in VARIANTS.items():
        complexities = [complexity_of(variant.checked_options(), Sizes(**SIZES), (side, side)) for side in sides]
        first = complexities[0]
        paths = ["never" if one.path is None else str(one.path) for one in complexities]
        rows.append([name, str(first.in_a_row), f"`{first.row_grows}`", *paths, f"`{first.path_grows}`"])
    head = ["variant", "operations in a row", "grow as", *(f"path {side} x {side}" for side in sides), "grows as"]
    return table(head, rows)


def times_table(sides: Sequence[int] = SIDES) -> str:
    """Return the table of times measured on this machine."""
    rows = []
    for name, variant in tqdm(VARIANTS.items(), desc="measure", disable=not sys.stderr.isatty()):
        times = [milliseconds for side in sides for milliseconds in milliseconds_of(variant, side)]
        rows.append([name, *(f"{milliseconds:.0f}" for milliseconds in times)])
    head = [f"{work} {side} x {side}" for side in sides for work in ("forecast, ms", "training step, ms")]
    return table(["variant", *head], rows)


def in_yaml(value: Any) -> str:
    """Return a default as it is written in params.yaml."""
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, BaseModel):
        return "{" + ", ".join(f"{key}: {in_yaml(part)}" for key, part in value.model_dump().items()) + "}"
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


def has_options(kind: str) -> bool:
    """Return whether there is anything to choose for a kind."""
    return bool(models.OPTIONS[kind].model_fields)


def references_table() -> str:
    """Return the references with what each of them is, by its package."""
    rows = []
    for kind in models.REFERENCES:
        text = import_module(f"fieldcast.models.{kind}").__doc__ or ""
        rows.append([f"`{kind}`", " ".join(text.split("\n\n")[0].split()).removesuffix(".")])
    return table(["kind", "what it is"], rows)


def page(costs: str, complexity: str, times: str, machine: str) -> str:
    """Return the whole page."""
    history, horizon = SIZES["history"], SIZES["horizon"]
    kinds = "\n\n".join(f"### `{kind}`\n\n{options_table(kind)}" for kind in models.LEARNED)
    references = "\n\n".join(
        f"### `{kind}`\n\n{options_table(kind)}" for kind in models.REFERENCES if has_options(kind)
    )
    return f"""# The models

This page is written by `make models`. Every variant is a kind of model with some of its options: give it a name under
`models` in params.yaml, and `make repro` trains it and compares it with all others. The networks come first, then the
[references](models.md#references), which need none.

```yaml
models:
  convlstm: {{kind: recurrent}}
  gru: {{kind: recurrent, cell: convgru}}
  windows: {{kind: video_transformer, attention: window, window: [4, 4, 4], global_tokens: 2}}
```

All networks accept missing cells, forecast every lead at once, and equal persistence until they are trained. How good
they are depends on the data: the table of [README](../README.md) and the report of every run say so. What they cost
depends on the size of the field alone.

## What they cost

With default options, {history} frames in and {horizon} out, one variable. GMAC are billions of multiply-adds of one
forecast; MB is what one sample of a training batch holds until its backward pass, in float32. `fieldcast check` says
whether a training fits into memory, and which change would make it fit.

{costs}

The clusters of `clustered` depend on the data: its MB are the worst case, its GMAC those of an empty field.

## Operations in a row, and how far information travels

An operation mixes places or times: a step of a recurrent cell, a sub-layer of attention, a convolution. Operations in a
row are those that must wait for one another, from the first frame to the last lead, however many processors there are.
The path is the fewest of them from a corner of the first frame to the opposite corner at the last lead: where it is
longer than the operations in a row, the forecast at that lead does not depend on that corner. T are the steps of
history and horizon, K the `memory`, n the cells or tokens along the longest axis, r those that one operation reaches.

{complexity}

`trajgru`, `reformer` and `deformable` choose the places that they read: their path is the one to those places.

## How long they take

The fastest of {REPEATS} on {machine}, one sample at a time. Approximations
of attention pay where tokens are many. `make bench` measures how the time and memory of each pattern of attention grow
with the number of tokens, and what it can learn. Video transformers were timed with `stem: patch`: the convolutions of
the default add half as much again to a training step on 64 x 64 cells with `dim: 64`.

{times}

## Their options

{kinds}

## References

Forecasts that every network has to beat, in seconds of work or none. With `output: quantiles` some of them add the
quantiles of their residuals on the validation period, by intensity.

{references_table()}

{references}
"""


def main() -> None:
    """Write the page."""
    import torch

    machine = f"{device_name(learned=False)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    PAGE_PATH.write_text(page(costs_table(), complexity_table(), times_table(), machine))
    sys.stdout.write(f"{PAGE_PATH}\n")


if __name__ == "__main__":
    main()
