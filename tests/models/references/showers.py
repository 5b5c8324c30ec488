"""Rain that moves, and fields that are hardly any."""

import numpy as np

NAN = np.nan


def rain(height, width, frames, seed=0, velocity=(2, 1)):
    """Return smooth showers, half of the cells dry, that move by `velocity` (x, y) cells a frame: (1, t, 1, h, w)."""
    draws = np.random.default_rng(seed)
    wide = height + width + 40
    spectrum = np.fft.rfft2(draws.normal(size=(wide, wide)))
    k = np.hypot(np.fft.fftfreq(wide)[:, None], np.fft.rfftfreq(wide)[None])
    field = np.fft.irfft2(spectrum * np.exp(-((k * 12) ** 2)), s=(wide, wide))
    field = np.maximum(6 * field / field.std(), 0)
    shifted = [
        np.roll(field, (velocity[1] * t, velocity[0] * t), axis=(0, 1))[20 : 20 + height, 20 : 20 + width]
        for t in range(frames)
    ]
    return np.stack(shifted)[None, :, None].astype(np.float32)


ODD = {
    "dry": np.zeros((1, 4, 1, 33, 49)),
    "drizzle_below_the_threshold": np.random.default_rng(0).random((1, 4, 1, 33, 49)) * 0.09,
    "constant": np.full((1, 4, 1, 33, 49), 7.0),
    "missing": np.full((1, 4, 1, 33, 49), NAN),
    "one_frame": rain(33, 49, 1),
    "two_frames": rain(33, 49, 2),
    "one_wet_cell": np.pad(np.ones((1, 4, 1, 1, 1)), [(0, 0)] * 3 + [(16, 16), (24, 24)]),
    "one_cell": np.random.default_rng(0).random((1, 4, 1, 1, 1)),
    "tiny": np.random.default_rng(0).random((1, 4, 1, 5, 7)),
    "flat": rain(5, 64, 4),
    "dry_until_now": np.concatenate([np.zeros((1, 3, 1, 33, 49)), rain(33, 49, 1)], axis=1),
}
WET = {
    "noise": np.random.default_rng(0).gamma(1, 2, (1, 4, 1, 33, 49)),
    "few_wet_cells": rain(33, 49, 4) * (rain(33, 49, 4).cumsum(axis=-1).cumsum(axis=-2) < 60),
    "first_frame_missing": np.concatenate([np.full((1, 1, 1, 33, 49), NAN), rain(33, 49, 3)], axis=1),
    "last_frame_missing": np.concatenate([rain(33, 49, 3), np.full((1, 1, 1, 33, 49), NAN)], axis=1),
}
