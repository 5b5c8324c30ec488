"""Our ConvLSTM against a plain one in PyTorch of the same size and weights, in one process, as ratios of times.

The plain one is written as most are: float32, channels first, and at every step of every layer a convolution of the
input and one of the state. History 10, horizon 10, 64 x 64 cells in patches of 4, kernels of 5 x 5, two layers of 64
channels and the two of 128 of Shi et al. 2015. A training step is forward and backward; forecasts are of one sample, of
four and of sixteen. Interleaved, the best of three. bfloat16 only where the processor has it.
"""

import json
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fieldcast import models
from fieldcast.models.layers.missing import fill_and_mask
from fieldcast.models.layers.patches import patchify, unpatchify

STEPS, CELLS, PATCH, KERNEL, RUNS = 10, 64, 4, 5, 3
SIZES = ((64, 64), (128, 128))  # channels of the layers
BATCHES, SAMPLES = (4, 16), (1, 4, 16)  # of a training step, of a forecast
AREA = PATCH**2
HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


class PlainCell(nn.Module):
    """A ConvLSTM cell without peepholes."""

    def __init__(self, channels_in: int, hidden: int) -> None:
        super().__init__()
        self.of_state = nn.Conv2d(hidden, 4 * hidden, KERNEL, padding=KERNEL // 2)
        self.of_input = nn.Conv2d(channels_in, 4 * hidden, KERNEL, padding=KERNEL // 2, bias=False)

    def forward(self, inputs: Tensor | None, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next hidden and cell state; a forecaster's first layer has no input."""
        gates = self.of_state(hidden) if inputs is None else self.of_input(inputs) + self.of_state(hidden)
        i, f, g, o = torch.chunk(gates, 4, dim=1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell


class Plain(nn.Module):
    """Encoder and forecaster, step by step through all layers, and a 1x1 convolution of all hidden states."""

    def __init__(self, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.hidden, down = hidden, hidden[::-1]
        self.encoder = nn.ModuleList(
            PlainCell(*channels) for channels in zip((2 * AREA, *hidden[:-1]), hidden, strict=True)
        )
        self.forecaster = nn.ModuleList(PlainCell(*channels) for channels in zip((1, *down[:-1]), down, strict=True))
        self.readout = nn.Conv2d(sum(hidden), AREA, 1)

    def forward(self, history: Tensor) -> Tensor:
        """Return the forecast (b, horizon, 1, h, w), persistence plus increments."""
        patches = patchify(fill_and_mask(history), PATCH)
        b, _, _, h, w = patches.shape
        states = [(patches.new_zeros(b, d, h, w), patches.new_zeros(b, d, h, w)) for d in self.hidden]
        for inputs in patches.unbind(1):
            below = inputs
            for level, cell in enumerate(self.encoder):
                states[level] = cell(below, *states[level])
                below = states[level][0]
        states = states[::-1]
        increments = []
        for _ in range(STEPS):
            above = None
            for level, cell in enumerate(self.forecaster):
                states[level] = cell(above, *states[level])
                above = states[level][0]
            increments.append(self.readout(torch.cat([hidden for hidden, _ in states], dim=1)))
        return history[:, -1:] + unpatchify(torch.stack(increments, dim=1), PATCH)


def make_ours(hidden: tuple[int, ...]) -> nn.Module:
    """Return our model of the same size with random weights everywhere."""
    options = models.OPTIONS["recurrent"].model_validate(
        {"hidden": hidden, "kernel": KERNEL, "patch": PATCH, "peephole": "none"}
    )
    sizes = {"channels_in": 1, "channels_out": 1, "history": STEPS, "horizon": STEPS}
    ours = models.build("recurrent", options, **sizes, step_minutes=5)
    nn.init.normal_(ours.readout.weight, std=0.1)
    return ours


def copy_weights(ours: nn.Module, plain: Plain) -> None:
    """Give the plain model the weights of ours."""
    with torch.no_grad():
        for mine, theirs in zip([*ours.encoder, *ours.forecaster], [*plain.encoder, *plain.forecaster], strict=True):
            theirs.of_state.weight.copy_(mine.state_to_state.weight)
            theirs.of_state.bias.copy_(mine.bias)
            if hasattr(mine, "input_to_state"):
                theirs.of_input.weight.copy_(mine.input_to_state.weight)
        # ours reads the deepest level first, as the plain one does
        plain.readout.weight.copy_(ours.readout.weight)
        plain.readout.bias.copy_(ours.readout.bias)


def train_step(model: nn.Module, history: Tensor, *, bf16: bool) -> None:
    """Run forward and backward."""
    model.zero_grad()
    forecast(model, history, bf16=bf16).square().mean().backward()


def forecast(model: nn.Module, history: Tensor, *, bf16: bool) -> Tensor:
    """Return the forecast, in bfloat16 where torch thinks it safe."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        result: Tensor = model(history)
    return result


def best_times(tasks: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the shortest of some runs of each task in seconds, all tasks in turn."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(RUNS + 1):  # the first run warms up
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - started)
    return {name: min(values[1:]) for name, values in times.items()}


def compared(act: Callable[..., object], plain: Plain, ours: nn.Module, history: Tensor) -> dict[str, object]:
    """Return times, and how many times faster ours is."""
    tasks: dict[str, Callable[[], object]] = {
        "plain float32": lambda: act(plain, history, bf16=False),
        "ours float32": lambda: act(ours, history, bf16=False),
    }
    if HAS_BF16:
        tasks["ours bfloat16"] = lambda: act(ours, history, bf16=True)
    seconds = best_times(tasks)
    ratios = {name: round(seconds["plain float32"] / value, 2) for name, value in seconds.items() if "ours" in name}
    return {"seconds": {name: round(value, 4) for name, value in seconds.items()}, "times faster": ratios}


def at_size(hidden: tuple[int, ...]) -> dict[str, object]:
    """Return the comparison of two networks with the same weights, and how far their forecasts and gradients differ."""
    ours, plain = make_ours(hidden), Plain(hidden)
    copy_weights(ours, plain)
    history = torch.randn(max(BATCHES), STEPS, 1, CELLS, CELLS)
    report: dict[str, object] = {"weights": sum(parameter.numel() for parameter in ours.parameters())}
    for batch in BATCHES:
        report[f"training step of {batch}"] = compared(train_step, plain, ours, history[:batch])
    with torch.inference_mode():
        for samples in SAMPLES:
            report[f"forecast of {samples}"] = compared(forecast, plain, ours, history[:samples])
    return report | differences(plain, ours, history[: max(SAMPLES)])


def differences(plain: Plain, ours: nn.Module, history: Tensor) -> dict[str, float]:
    """Return how far forecasts and gradients of the same weights are from the plain ones."""
    with torch.inference_mode():
        reference = forecast(plain, history, bf16=False)
        change = (reference - history[:, -1:]).norm()
        error = forecast(ours, history, bf16=False) - reference
        errors = {"largest difference, float32": error.abs().max().item()}
        errors["relative error, float32"] = (error.norm() / change).item()
        if HAS_BF16:
            rounded = forecast(ours, history, bf16=True) - reference
            errors["relative error, bfloat16"] = (rounded.norm() / change).item()
    for model in (plain, ours):
        train_step(model, history, bf16=False)
    readouts = [model.readout.weight.grad for model in (plain, ours)]
    kernels = [plain.encoder[0].of_state.weight.grad, ours.encoder[0].state_to_state.weight.grad]
    for name, (theirs, mine) in (("readout", readouts), ("first kernel of a state", kernels)):
        errors[f"relative error of the gradient, {name}"] = ((mine - theirs).norm() / theirs.norm()).item()
    return errors


def main() -> None:
    """Print one JSON object."""
    torch.manual_seed(1)
    report: dict[str, object] = {"benchmark": "recurrent"}
    for hidden in SIZES:
        report["-".join(map(str, hidden))] = at_size(hidden)
    report["threads"], report["isa"] = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    report["amx"] = torch.cpu._is_amx_tile_supported()
    report["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
