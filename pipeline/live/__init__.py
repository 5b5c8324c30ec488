"""Scheduled forecasts: live frames -> one cycle -> a published forecast -> its verification; writes data/live alone."""
