"""What a network learns of a task in a fixed number of steps."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn import functional

from .backbone import Backbone
from .patterns import EXPLICIT, PATTERNS, Grid, Pattern
from .tasks import TASKS, Questions, Task

HELD_OUT = 10**6  # seeds from here on are for testing


@dataclass(frozen=True)
class Training:
    """The same for every pattern."""

    steps: int = 160
    batch: int = 8  # films a step, never the same twice
    learning_rate: float = 3e-3  # the highest of a one-cycle schedule of AdamW
    dim: int = 64
    heads: int = 4
    seeds: int = 2
    test_films: int = 64
    grid: Grid | None = (2, 8, 16)  # None: the task's own, of 1024 tokens
    tasks: tuple[str, ...] = ("advected",)


FULL = Training(steps=600, grid=None, tasks=tuple(task.name for task in TASKS))


def table(training: Training, device: str) -> dict[str, dict[str, float]]:
    """Accuracy of each pattern in each task, the mean of all seeds; one CPU thread each, as many at once as there are.

    Joint attention that is written out learns what the fused one does, and is left out.
    """
    names = [name for name in PATTERNS if name != EXPLICIT]
    jobs = list(product(names, training.tasks, range(training.seeds)))
    arguments = [(PATTERNS[name], task, training, seed, device) for name, task, seed in jobs]
    if device == "cpu":
        with ProcessPoolExecutor(torch.get_num_threads(), get_context("spawn"), torch.set_num_threads, (1,)) as workers:
            found = list(workers.map(accuracy, *zip(*arguments, strict=True)))
    else:
        found = [accuracy(*it) for it in arguments]
    return {
        task: {name: mean(found[jobs.index((name, task, k))] for k in range(training.seeds)) for name in names}
        for task in training.tasks
    }


def accuracy(pattern: Pattern, task_name: str, training: Training, seed: int, device: str = "cpu") -> float:
    """Share of right answers on held-out films after training; the same seed gives the same on a CPU.

    The global generator of random numbers is left as it was.
    """
    task = next(task for task in TASKS if task.name == task_name)
    grid = training.grid or task.grid
    with torch.random.fork_rng(devices=[] if device == "cpu" else None):
        torch.manual_seed(seed)
        network = Backbone(task.channels, training.dim, pattern.mixers(training.dim, training.heads)).to(device)
        train(network, task, grid, training, seed, device)
    return share_right(network, task, grid, training, device)


def train(network: nn.Module, task: Task, grid: Grid, training: Training, seed: int, device: str) -> None:
    """Train in place on the cross-entropy of the answers that are asked for."""
    rate = training.learning_rate
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=training.steps, pct_start=0.2)
    for k in range(training.steps):
        films, answers = _on(device, task.make(training.batch, grid, seed * training.steps + k))
        asked = answers.isfinite()
        loss = functional.binary_cross_entropy_with_logits(network(films)[asked], answers[asked])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def share_right(network: nn.Module, task: Task, grid: Grid, training: Training, device: str) -> float:
    """Share of right answers on films that no training sees."""
    network.eval()
    right, asked = 0, 0
    for k in range(0, training.test_films, training.batch):
        films, answers = _on(device, task.make(training.batch, grid, HELD_OUT + k))
        with torch.no_grad():
            counts = answers.isfinite()
            right += int(((network(films) > 0) == (answers > 0.5))[counts].sum())
            asked += int(counts.sum())
    return right / asked


def _on(device: str, questions: Questions) -> tuple[Tensor, Tensor]:
    return questions.films.to(device), questions.answers.to(device)
