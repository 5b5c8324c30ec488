"""Skill of a network in a task after a fixed number of steps."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import product
from multiprocessing import get_context
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from .backbone import Backbone
from .patterns import EXPLICIT, PATTERNS, Grid, Pattern
from .tasks import TASKS, Questions, Task

HELD_OUT = 10**6  # seeds from here on are for testing
Job = tuple[str, str, int]  # pattern, task, seed


@dataclass(frozen=True)
class Lesson:
    """Steps and samples of a training on a task: the same for every pattern."""

    grid: Grid
    steps: int
    batch: int  # films a step, never the same twice


SHORT = {  # a few steps more than joint attention needs for 95 % of right answers
    "recall": Lesson((4, 8, 8), steps=80, batch=4),
    "advected": Lesson((2, 8, 16), steps=100, batch=4),
    "first": Lesson((2, 8, 8), steps=160, batch=8),
}
LONG = {task.name: Lesson(task.grid, steps=600, batch=8) for task in TASKS}


@dataclass(frozen=True)
class Training:
    """Settings that are the same for every pattern and task, and a lesson for each task."""

    lessons: Mapping[str, Lesson] = field(default_factory=lambda: SHORT)
    learning_rate: float = 6e-3  # the highest of a one-cycle schedule of AdamW
    dim: int = 64
    heads: int = 4
    seeds: int = 2
    test_films: int = 64


FULL = Training(LONG)


def table(training: Training, device: str) -> dict[str, dict[str, float]]:
    """Return the accuracy of each pattern in each task, the mean of all seeds.

    On a CPU each training has one thread, and as many run at once as there are threads.

    Joint attention that is written out learns what the fused one does, and is left out.
    """
    names = [name for name in PATTERNS if name != EXPLICIT]
    jobs: list[Job] = list(product(names, training.lessons, range(training.seeds)))
    found = dict(tqdm(_answered(jobs, training, device), "quality", len(jobs), unit="training", smoothing=0))
    return {
        task: {name: mean(found[name, task, seed] for seed in range(training.seeds)) for name in names}
        for task in training.lessons
    }


def _answered(jobs: list[Job], training: Training, device: str) -> Iterator[tuple[Job, float]]:
    """Yield jobs with their accuracy, in the order in which they are done."""
    if device != "cpu":
        for name, task, seed in jobs:
            yield (name, task, seed), accuracy(PATTERNS[name], task, training, seed, device)
        return
    with ProcessPoolExecutor(torch.get_num_threads(), get_context("spawn"), torch.set_num_threads, (1,)) as workers:
        running: dict[Future[float], Job] = {
            workers.submit(accuracy, PATTERNS[name], task, training, seed): (name, task, seed)
            for name, task, seed in jobs
        }
        for done in as_completed(running):
            yield running[done], done.result()


def accuracy(pattern: Pattern, task_name: str, training: Training, seed: int, device: str = "cpu") -> float:
    """Return the share of right answers on held-out films after training; the same seed gives the same on a CPU.

    The global generator of random numbers is left as it was.
    """
    task = next(task for task in TASKS if task.name == task_name)
    with torch.random.fork_rng(devices=[] if device == "cpu" else None):
        torch.manual_seed(seed)
        network = Backbone(task.channels, training.dim, pattern.mixers(training.dim, training.heads)).to(device)
        train(network, task, training, seed, device)
    return share_right(network, task, training, device)


def train(network: nn.Module, task: Task, training: Training, seed: int, device: str) -> None:
    """Train in place on the cross-entropy of the answers."""
    lesson, rate = training.lessons[task.name], training.learning_rate
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=lesson.steps, pct_start=0.2)
    for k in range(lesson.steps):
        films, answers = _on(device, task.make(lesson.batch, lesson.grid, seed * lesson.steps + k))
        asked = answers.isfinite()
        loss = functional.binary_cross_entropy_with_logits(network(films)[asked], answers[asked])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def share_right(network: nn.Module, task: Task, training: Training, device: str) -> float:
    """Return the share of right answers on films that no training sees."""
    network.eval()
    lesson = training.lessons[task.name]
    right, asked = 0, 0
    for k in range(0, training.test_films, lesson.batch):
        films, answers = _on(device, task.make(lesson.batch, lesson.grid, HELD_OUT + k))
        with torch.no_grad():
            counts = answers.isfinite()
            right += int(((network(films) > 0) == (answers > 0.5))[counts].sum())
            asked += int(counts.sum())
    return right / asked


def _on(device: str, questions: Questions) -> tuple[Tensor, Tensor]:
    return questions.films.to(device), questions.answers.to(device)
