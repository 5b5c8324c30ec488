"""Scheduled forecasts: live frames, one cycle, a published forecast, its verification.

In: new frames and a trained model. Out: files under `data/live` alone.
May import: all packages but `cli`; no stage.
"""

from fieldcast.pipeline.live.archive.publish import open_forecasts

__all__ = ["open_forecasts"]
