"""Scheduled forecasts: live frames -> one cycle -> a published forecast -> its verification; writes data/live alone."""

from pipeline.live.archive import open_forecasts

__all__ = ["open_forecasts"]
