"""Curricula of a training: fewer leads and fewer errors of its own earlier forecasts at first."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fieldcast.pipeline.config.training import Rollout, ScheduledSampling

LARGEST = 700.0  # exp of more overflows


def truth_probability(step: int, options: ScheduledSampling) -> float:
    """Return the probability at `step`, from 0, that truth is fed in place of a forecast: see `ScheduledSampling`."""
    if options.schedule == "linear":
        return max(0.0, options.start - options.decrease * step)
    k = options.k or 1.0
    if options.schedule == "exponential":
        return float(k**step)
    if options.schedule == "inverse_sigmoid":
        return k / (k + math.exp(min(step / k, LARGEST)))
    return 0.0


def draw_truth(probability: float, samples: int, horizon: int, device: torch.device) -> Tensor:
    """Return where truth is fed, (samples, horizon) boolean, drawn for each by itself from torch's generator."""
    return torch.rand(samples, horizon, device=device) < probability


def leads_at(progress: float, horizon: int, rollout: Rollout | None) -> int:
    """Return how many leads count at a progress of 0 to 1: all of them without a curriculum."""
    if rollout is None:
        return horizon
    start = min(rollout.start_leads, horizon)
    return min(horizon, start + int((horizon - start) * progress / rollout.ramp_fraction))


def first_leads(target: Tensor, leads: int) -> Tensor:
    """Return `target` (b, horizon, ...) with NaN behind its first leads, so that later ones count in no loss."""
    if leads >= target.shape[1]:
        return target
    later = torch.full_like(target[:, leads:], torch.nan)
    return torch.cat([target[:, :leads], later], dim=1)
