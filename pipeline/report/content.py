"""What the report of a comparison shows, taken from the sums: curves, spectra, probabilities, groups, differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from fieldcast.pipeline.datasets.labels import lead_unit, readable_units
from fieldcast.pipeline.datasets.schema import INIT_TIME, LEAD_TIME, lead_minutes, score_key
from fieldcast.pipeline.evaluation.comparison import Comparison, middle, prefix_of, skill
from fieldcast.pipeline.report.html import Cell, Groups, Matrix
from fieldcast.pipeline.report.plots import Bins, Panel, Performance, Reliability, Spectrum
from fieldcast.pipeline.report.style import spread_out
from fieldcast.pipeline.verification import strata as groups
from fieldcast.pipeline.verification.aggregation import SCALE, THRESHOLD, field_sums, fields_of, units_of

MATRIX_LEADS = 2
SPECTRA_LEADS = 2
MOST_EVENTS = 12  # groups that a table has room for
Curves = Mapping[str, Mapping[int, float]]


class Contents:
    """The content of one comparison's report: everything is of the first field and of the models that are fair."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        first = comparison.sums
        self.field = fields_of(first)[0]
        self.prefix, self.units = prefix_of(first, self.field), units_of(first, self.field)
        self.spoken = readable_units(self.units)
        self.sums = {name: field_sums(own, self.field) for name, own in comparison.fair.items()}
        own = next(iter(self.sums.values()))
        self.thresholds: list[float] = own[THRESHOLD].values.tolist() if THRESHOLD in own.coords else []
        self.scale = middle(own[SCALE].values) if SCALE in own.coords else None
        self.leads = lead_minutes(first)

    def panels(self) -> list[Panel]:
        """Return the curves against lead time: errors, skill, blur, then events and neighbourhoods by threshold."""
        panels = [self._panel("rmse", "RMSE", self.spoken), self._panel("mae", "MAE", self.spoken)]
        panels.append(self._panel("mean_error", "Mean error", self.spoken, perfect=0.0))
        if "persistence" in self.sums:
            metrics, rmse = self.comparison.metrics, f"{self.prefix}rmse"
            skills = {model: skill(metrics, model, ["persistence"], rmse) for model in self.sums}
            panels.append(Panel("MSE skill against persistence", "", skills, perfect=0.0, limits=(-1, 1)))
        panels.append(self._panel("spectrum_ratio", "Spectrum ratio of fine scales", "", perfect=1.0))
        panels.append(self._panel("crps", "CRPS", self.spoken))
        for threshold in self.thresholds:
            key = score_key("csi", threshold, self.units)
            panels.append(self._panel(key, f"CSI ≥ {threshold:g} {self.spoken}", "", limits=(0, 1)))
        for threshold in self.thresholds if self.scale is not None else ():
            key = score_key("fss", threshold, self.units, self.scale)
            title = f"FSS ≥ {threshold:g} {self.spoken}, {self.scale:g} km"
            panels.append(self._panel(key, title, "", limits=(0, 1)))
        return [panel for panel in panels if _defined(panel.values)]

    def coverage(self) -> Panel | None:
        """Return how often the 90 % interval held the observed value, by lead; None without such intervals."""
        curves = self._curves("coverage_90")
        known = {name: curve for name, curve in curves.items() if _defined({name: curve})}
        title = "Coverage of the 90 % interval"
        return Panel(title, "", known, perfect=0.9, limits=(0, 1)) if known else None

    def spectra(self) -> list[Spectrum]:
        """Return the power of observed and forecast at the middle and the last lead; empty without spectra."""
        having = {name: own for name, own in self.sums.items() if "forecast_power" in own}
        if not having:
            return []
        found = []
        for position in spread_out(SPECTRA_LEADS, len(self.leads)):
            at = {name: own.isel({LEAD_TIME: position}).sum(INIT_TIME) for name, own in having.items()}
            first = next(iter(at.values()))
            found.append(
                Spectrum(
                    self.leads[position],
                    first["wavelength"].values,
                    first["observed_power"].values,
                    {name: own["forecast_power"].values for name, own in at.items()},
                )
            )
        return found

    def reliability(self) -> list[Reliability]:
        """Return reliability over all leads for each threshold, of the models that give probabilities."""
        having = {name: own for name, own in self.sums.items() if "reliability_weight" in own}
        if not having:
            return []
        return [
            Reliability(f"≥ {level:g} {self.spoken}", {name: _bins(own, level) for name, own in having.items()})
            for level in self.thresholds
        ]

    def ranks(self) -> dict[str, np.ndarray]:
        """Return the rank histogram over all leads, of the models that have members."""
        return {
            name: own["rank_histogram"].sum((INIT_TIME, LEAD_TIME)).values
            for name, own in self.sums.items()
            if "rank_histogram" in own
        }

    def performance(self) -> Performance | None:
        """Return POD and FAR at the middle threshold and lead; None without thresholds."""
        if not self.thresholds:
            return None
        threshold, lead = middle(np.asarray(self.thresholds)), self._middle_lead()
        metrics = self.comparison.metrics
        pod, far = (self.prefix + score_key(name, threshold, self.units) for name in ("pod", "far"))
        points = {name: (metrics[name][pod][lead], metrics[name][far][lead]) for name in self.sums}
        return Performance(f"≥ {threshold:g} {self.spoken}, {_lead(lead, self.leads)}", points)

    def matrices(self) -> list[Matrix]:
        """Return the differences between all pairs in the two leading scores, at some leads."""
        evidence = self.comparison.evidence
        scores = [score for score in self.comparison.titles if (evidence.models[0], score) in evidence.intervals][:2]
        return [
            Matrix(self.comparison.titles[score], self.leads[k], self._pairs(score, self.leads[k]))
            for score in scores
            for k in spread_out(MATRIX_LEADS, len(self.leads))
        ]

    def groups(self) -> list[Groups]:
        """Return RMSE over all leads by hour of day, event, region and intensity, where there are several groups."""
        parts: dict[str, Callable[[xr.Dataset], dict[str, xr.Dataset]]] = {
            "hour of day (UTC)": groups.by_hour,
            "event, by its first init time (UTC)": groups.by_event,
            "region": groups.by_region,
            f"observed intensity, {self.spoken}": groups.by_intensity,
        }
        found = []
        for title, part in parts.items():
            by_model = {model: part(own) for model, own in self.sums.items()}
            names = list(next(iter(by_model.values())))
            if 1 < len(names) <= (MOST_EVENTS if part is groups.by_event else len(names)):
                values = {name: {model: _rmse(own[name]) for model, own in by_model.items()} for name in names}
                found.append(Groups(f"RMSE, {self.spoken}, by {title}", f"{self.prefix}rmse", values))
        return found

    def skill_by_cost(self) -> tuple[dict[str, float], dict[str, float], str] | None:
        """Return milliseconds and MSE skill by model, and what the skill is; None where nobody measured a forecast."""
        entries, lead = self.comparison.entries, self._middle_lead()
        spent = {name: entries[name].costs.forecast_milliseconds for name in self.sums}
        known = {name: value for name, value in spent.items() if value is not None}
        if not known or "persistence" not in self.sums:
            return None
        metrics, rmse = self.comparison.metrics, f"{self.prefix}rmse"
        skills = {name: skill(metrics, name, ["persistence"], rmse)[lead] for name in known}
        return known, skills, f"MSE skill against persistence, {_lead(lead, self.leads)}"

    def _panel(self, score: str, title: str, unit: str, **how: float | tuple[float, float]) -> Panel:
        evidence, name = self.comparison.evidence, self.prefix + score
        values = self._curves(score)
        if (next(iter(self.sums)), name) not in evidence.intervals:
            return Panel(title, unit, values, **how)  # type: ignore[arg-type]
        found = {model: evidence.intervals[model, name] for model in self.sums}
        low, high = (
            {model: {lead: getattr(it, end) for lead, it in by.items()} for model, by in found.items()}
            for end in ("low", "high")
        )
        return Panel(title, unit, values, low=low, high=high, **how)  # type: ignore[arg-type]

    def _curves(self, score: str) -> Curves:
        return {model: self.comparison.metrics[model][self.prefix + score] for model in self.sums}

    def _pairs(self, score: str, lead: int) -> dict[tuple[str, str], Cell]:
        names, evidence = list(self.sums), self.comparison.evidence
        pairs = {
            (one, other): evidence.between(one, other, score)[lead] for one in names for other in names if one != other
        }
        return {pair: Cell(it.word, it.value, it.low, it.high) for pair, it in pairs.items()}

    def _middle_lead(self) -> int:
        return self.leads[(len(self.leads) - 1) // 2]


def _defined(values: Curves) -> bool:
    return any(np.isfinite(value) for curve in values.values() for value in curve.values())


def _bins(sums: xr.Dataset, threshold: float) -> Bins:
    pooled = sums.sel({THRESHOLD: threshold}).sum((INIT_TIME, LEAD_TIME))
    names = ("reliability_weight", "reliability_probability", "reliability_events")
    return Bins(*(pooled[name].values for name in names))


def _rmse(sums: xr.Dataset) -> float:
    weight = float(sums["weight"].sum())
    return float(sums["squared_error"].sum() / weight) ** 0.5 if weight > 0 else float("nan")


def _lead(lead: int, leads: list[int]) -> str:
    divisor, unit = lead_unit(leads)
    return f"{lead / divisor:g} {unit} ahead"
