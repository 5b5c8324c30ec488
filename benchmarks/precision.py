"""Error and speed of networks that learn in bfloat16, relative to float32, after as many steps.

Each learned kind, small, forecasts 20 minutes of simulated rain: 24 x 24 cells, four frames in, four out, ln(1 + R).
`bf16-mixed` computes most of a step in bfloat16 and keeps weights in float32, `bf16-true` keeps weights in it too; both
as `train.precision` has them. Errors are mean squared ones on events that no training sees, relative to float32 with
the same seed; beside them, how much float32 differs from seed to seed, and what forecasts in bfloat16 do to a network
that learned in float32. A processor without bfloat16 emulates it, several times slower.
"""

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from fieldcast import models
from fieldcast.pipeline.config.sources import StormsOptions
from fieldcast.pipeline.sources.storms import simulate

HISTORY, HORIZON, CELLS, EVENTS, HELD_OUT = 4, 4, 24, 40, 10
STEPS, BATCH, SEEDS, LEARNING_RATE = 100, 4, (0, 1), 3e-3
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
NETWORKS = {
    "convlstm": ("recurrent", {"hidden": [24, 24]}),
    "simvp": ("simvp", {"channels": 12, "levels": 1, "hidden": 32, "blocks": 2}),
    "factorised": ("video_transformer", {"dim": 48, "heads": 3, "layers": 1, "patch": 8}),
}


def rain() -> tuple[Tensor, Tensor]:
    """Return events (event, t, y, x) for training, and held-out ones, in ln(1 + mm/h)."""
    options = StormsOptions(cells=CELLS, events=EVENTS + HELD_OUT, event_minutes=120, spacing_km=4.0)
    events = [np.log1p(simulate(options, event)) for event in tqdm(range(options.events), desc="rain", leave=False)]
    everything = torch.from_numpy(np.stack(events))
    return everything[:EVENTS], everything[EVENTS:]


def batches(events: Tensor, seed: int) -> Iterator[Tensor]:
    """Yield (b, t, 1, y, x), drawn anew each time."""
    draws, length = np.random.default_rng(seed), HISTORY + HORIZON
    while True:
        starts = draws.integers(events.shape[1] - length + 1, size=BATCH)
        drawn = zip(draws.integers(len(events), size=BATCH), starts, strict=True)
        films = [events[event, start : start + length] for event, start in drawn]
        yield torch.stack(films)[:, :, None]


def computing(precision: str) -> AbstractContextManager[object]:
    """Return the context in which a step runs."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16-mixed" else nullcontext()


def error(network: nn.Module, films: Tensor, precision: str) -> Tensor:
    """Return the mean squared error of forecasts."""
    history = films[:, :HISTORY]
    with computing(precision):
        forecast: Tensor = network(history.bfloat16() if precision == "bf16-true" else history)
    return functional.mse_loss(forecast.float(), films[:, HISTORY:])


def train(name: str, precision: str, seed: int, events: Tensor) -> tuple[nn.Module, float]:
    """Return a network that has learned, and its seconds a step."""
    torch.manual_seed(seed)
    kind, options = NETWORKS[name]
    network = models.build(
        kind, models.OPTIONS[kind].model_validate(options), channels_in=1, channels_out=1,
        history=HISTORY, horizon=HORIZON, step_minutes=5,
    )  # fmt: skip
    network = network.bfloat16() if precision == "bf16-true" else network
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    started, films = time.perf_counter(), batches(events, seed)
    for _ in range(STEPS):
        optimiser.zero_grad()
        error(network, next(films), precision).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return network, (time.perf_counter() - started) / STEPS


def tested(network: nn.Module, events: Tensor, precision: str) -> float:
    """Return the error on all films of held-out events, one after the other."""
    films = events.unfold(1, HISTORY + HORIZON, HORIZON).movedim(-1, 2).flatten(0, 1)[:, :, None]
    with torch.inference_mode():
        return float(torch.stack([error(network.eval(), part, precision) for part in films.split(10)]).mean())


def compared(name: str, learned: Tensor, unseen: Tensor) -> dict[str, object]:
    """Return errors and times of one network in each precision."""
    errors: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    forecasts = []
    for seed in tqdm(SEEDS, desc=name, leave=False):
        for precision in PRECISIONS:
            network, of_step = train(name, precision, seed, learned)
            errors[precision].append(tested(network, unseen, precision))
            seconds[precision].append(of_step)
            if precision == "32-true":
                forecasts.append(tested(network, unseen, "bf16-mixed") / errors[precision][-1])
    single = np.array(errors["32-true"])
    report: dict[str, object] = {
        "error of 32-true, over seeds": {
            "mean": round(float(single.mean()), 4),
            "deviation": round(float(single.std(ddof=1)), 4),
        },
        "error of learning in 32-true, forecasting in bf16-mixed, relative": [round(ratio, 4) for ratio in forecasts],
    }
    for precision in PRECISIONS[1:]:
        report[f"error of {precision}, relative, each seed"] = [
            round(float(x), 3) for x in np.array(errors[precision]) / single
        ]
        report[f"seconds a step of {precision}, relative"] = round(min(seconds[precision]) / min(seconds["32-true"]), 2)
    return report


def main() -> None:
    """Print one JSON object."""
    learned, unseen = rain()
    films = unseen.unfold(1, HISTORY + HORIZON, HORIZON).movedim(-1, 2).flatten(0, 1)
    still = functional.mse_loss(films[:, HISTORY - 1 : HISTORY].expand(-1, HORIZON, -1, -1), films[:, HISTORY:])
    report: dict[str, object] = {"benchmark": "precision", "error of persistence": round(float(still), 4)}
    report |= {name: compared(name, learned, unseen) for name in NETWORKS}
    report["steps"], report["seeds"] = STEPS, len(SEEDS)
    report["bfloat16 in hardware"] = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    report["threads"], report["torch"] = torch.get_num_threads(), torch.__version__
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
