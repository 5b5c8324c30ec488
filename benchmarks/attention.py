"""Attention patterns in one network: their skill on three tasks, and time and memory of a training step.

Every pattern of the video transformer, and joint attention with its weights in memory, take turns in a network
that is otherwise the same. Time is the best of several turns of forward and backward pass, in float32, one film; memory
is what is kept for the backward pass (on a GPU: the peak). A dash was not measured: it would not fit, or take too long.
Quality comes from three tasks on 128 or 256 tokens, some minutes on two cores. `--full` measures longer, and trains on
all tasks at 1024 tokens: for a GPU, or a night.
"""

import argparse
import hashlib
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch
from arena import costs, quality, report
from arena.backbone import Backbone
from arena.patterns import PATTERNS
from arena.picture import SHOWN_AT, draw

OUT = Path(__file__).parents[1] / "data" / "bench"


def machine(device: str) -> str:
    """Return the name of the machine, with its instructions, threads and torch."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, float32"
    isa = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"{platform.machine()} {isa}, {threads} threads, torch {torch.__version__}, float32"


def digest(*settings: object) -> str:
    """Return eight letters that change with any setting."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def weights(dim: int, heads: int) -> dict[str, int]:
    """Return the number of weights of the network with each pattern."""
    networks = {name: Backbone(1, dim, pattern.mixers(dim, heads)) for name, pattern in PATTERNS.items()}
    return {name: sum(parameter.numel() for parameter in network.parameters()) for name, network in networks.items()}


def say(lines: list[str]) -> None:
    """Print at once: the next lines may take minutes."""
    print("\n".join(lines), flush=True)


def main() -> None:
    """Print tables; write attention.json and attention.png to data/bench."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--full", action="store_true", help="longer, on all tasks, at 1024 tokens")
    full = arguments.parse_args().full
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    effort, training = (costs.FULL, quality.FULL) if full else (costs.Effort(), quality.Training())
    sizes = training.dim, training.heads
    setting = digest(asdict(effort), asdict(training), costs.FRAMES_GROW, costs.FRAME_GROWS)
    say([f"{machine(device)}; settings {setting}", ""])
    ratio = costs.factorised_ratio(effort, device)
    say(report.ratio_lines(ratio))
    tables = {
        name: costs.table(build(*sizes), costs.FRAMES_GROW, effort, device, *sizes)
        for name, build in (("attention alone", costs.attention_alone), ("the network", costs.whole_stack))
    }
    for name, table in tables.items():
        say(report.cost_lines(f"A training step of {name}, four sub-layers, d {sizes[0]}", table, SHOWN_AT))
    skill = quality.table(training, device)
    say(report.quality_lines(skill, training, weights(*sizes)))
    results = {
        "machine": machine(device),
        "settings": {"digest": setting, "effort": asdict(effort), "training": asdict(training)},
        "factorised against joint explicit": asdict(ratio),
        "costs": {name: report.costs_as_json(table) for name, table in tables.items()},
        "quality": skill,
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "attention.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(tables["the network"], skill, training, machine(device), OUT / "attention.png")


if __name__ == "__main__":
    main()
