"""What each score means, and how its key is written for people."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fieldcast.pipeline.datasets.labels import readable

SPOKEN_UNITS = {"mm_h": "mm/h", "k": "K", "dbz": "dBZ", "m_s": "m/s", "mm": "mm", "hpa": "hPa", "pa": "Pa"}
KEY = re.compile(
    r"(?P<score>[a-z][a-z_]*?)"
    r"(?:_(?P<threshold>-?\d[\d.]*(?:e[+-]?\d+)?)(?:_(?P<units>[a-z][a-z_]*?))?)?"
    r"(?:_(?P<scale>\d[\d.]*)_km)?"
)


@dataclass(frozen=True)
class Term:
    """A score in the glossary, under the name that its keys begin with."""

    key: str
    name: str
    formula: str
    unit: str
    perfect: str
    averaging: str


POOLED = "summed over all valid cells and init times first, then divided"
COUNTED = "events counted over all valid cells and init times first, then divided"
GLOSSARY = (
    Term("rmse", "RMSE", "√( Σw(f − o)² / Σw )", "the field's", "0", POOLED + ", then the root"),
    Term("mae", "MAE", "Σw|f − o| / Σw", "the field's", "0", POOLED),
    Term("mean_error", "Mean error", "Σw(f − o) / Σw; above 0: too high", "the field's", "0", POOLED),
    Term("mse_frame", "MSE per frame", "Σ(f − o)² over a frame's cells", "the field's, squared", "0", "mean of frames"),
    Term("mse_skill", "MSE skill", "1 − MSE / MSE of the reference; below 0: worse than it", "none", "1", POOLED),
    Term("correlation", "Correlation", "cov(f, o) / √( var(f) var(o) )", "none", "1", "from pooled moments"),
    Term("anomaly_correlation", "Anomaly correlation", "Σw f′o′ / √( Σw f′² Σw o′² ), ′: less climatology", "none", "1",
         "from pooled moments"),
    Term("variance_ratio", "Variance ratio", "var(f) / var(o); below 1: too smooth", "none", "1",
         "from pooled moments"),
    Term("psnr", "PSNR", "10 log₁₀( range² / MSE ), range of the training period", "dB", "∞", "from the pooled MSE"),
    Term("ssim", "SSIM", "likeness of means, variances and covariance in windows of 7 × 7 cells", "none", "1",
         "mean over all valid windows"),
    Term("spectrum_ratio", "Spectrum ratio", "power of f / power of o at wavelengths up to 8 cells; below 1: blurred",
         "none", "1", "power summed over init times first, then divided"),
    Term("effective_resolution", "Effective resolution",
         "shortest wavelength down to which the power of f is at least half of that of o", "km", "two cells",
         "power summed over init times first"),
    Term("crps", "CRPS", "mean over cells of ∫ (F(x) − 1[x ≥ o])² dx; for one forecast the MAE", "the field's", "0",
         POOLED),
    Term("spread_skill", "Spread over skill", "√( (M+1)/M mean variance of the members ) / RMSE of their mean", "none",
         "1", "from pooled sums"),
    Term("coverage_90", "Coverage of the 90 % interval", "share of o between the forecast's 5 and 95 % quantiles",
         "none", "0.9", POOLED),
    Term("csi", "CSI", "hits / (hits + misses + false alarms)", "none", "1", COUNTED),
    Term("pod", "POD", "hits / (hits + misses)", "none", "1", COUNTED),
    Term("far", "FAR", "false alarms / (hits + false alarms)", "none", "0", COUNTED),
    Term("pofd", "POFD", "false alarms / (false alarms + correct negatives)", "none", "0", COUNTED),
    Term("frequency_bias", "Frequency bias", "(hits + false alarms) / (hits + misses)", "none", "1", COUNTED),
    Term("ets", "ETS", "(hits − r) / (hits + misses + false alarms − r), r: hits by chance", "none", "1", COUNTED),
    Term("hss", "HSS", "share of correct cells beyond chance / what chance leaves", "none", "1", COUNTED),
    Term("sedi", "SEDI", "(ln F − ln H − ln(1−F) + ln(1−H)) / (ln F + ln H + ln(1−F) + ln(1−H)), H: POD, F: POFD",
         "none", "1", COUNTED),
    Term("brier", "Brier score", "mean over cells of (p − 1[event])²", "none", "0", POOLED),
    Term("fss", "FSS", "1 − Σ(pf − po)² / Σ(pf² + po²)", "none", "1", "summed over all windows and init times first"),
)  # fmt: skip
NAMES = {term.key: term.name for term in GLOSSARY}


def score_title(key: str) -> str:
    """Return a score's key as a person writes it: 'fss_1_mm_h_10_km' -> 'FSS ≥ 1 mm/h, 10 km'.

    A field before the key stays before it; what is no known score is given without underscores.
    """
    *fields, own = key.split("/")
    parts = KEY.fullmatch(own)
    if own in NAMES or parts is None or parts["score"] not in NAMES:
        title = NAMES.get(own, readable(own))
        if own == "effective_resolution_km":
            title = "Effective resolution, km"
    else:
        units = parts["units"] or ""
        event = f" ≥ {parts['threshold']} {SPOKEN_UNITS.get(units, readable(units))}".rstrip()
        scale = f", {parts['scale']} km" if parts["scale"] else ""
        title = NAMES[parts["score"]] + (event if parts["threshold"] else "") + scale
    return ": ".join([*map(readable, fields), title])
