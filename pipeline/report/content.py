"""Content of the report of a comparison, taken from the sums: curves, spectra, probabilities, groups, differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from fieldcast.pipeline.datasets.labels import lead_unit, readable_units
from fieldcast.pipeline.datasets.schema import INIT_TIME, LEAD_TIME, lead_minutes
from fieldcast.pipeline.evaluation.best_reference import best_of
from fieldcast.pipeline.evaluation.comparison import Comparison, middle, skill
from fieldcast.pipeline.evaluation.verdict import leaders
from fieldcast.pipeline.report.plots import Bins, EconomicValue, Gain, Panel, Performance, Reliability, Spectrum
from fieldcast.pipeline.report.style import spread_out
from fieldcast.pipeline.report.tables import Cell, Differences, Groups, Leaders, Matrix
from fieldcast.pipeline.verification import strata
from fieldcast.pipeline.verification.aggregation import SCALE, STORM, THRESHOLD, field_sums
from fieldcast.pipeline.verification.economic import COUNTS, value, value_sums
from fieldcast.pipeline.verification.scores import Score, direction

SKILL = "MSE skill, best reference 0"
GAIN = "Δ "  # before the title of a score: its differences
BANDS = 4  # models with intervals in a picture, the best: shades of more are one grey
MATRIX_LEADS = 2
DIFFERENCE_LEADS = 4
SPECTRA_LEADS = 2
RATIOS = np.geomspace(0.01, 0.9, 60)  # of cost to loss
MOST_EVENTS = 12  # groups that a table has room for
Curves = Mapping[str, Mapping[float, float]]


class Content:
    """The content of one variable's report: everything is of the models that are comparable."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.units = comparison.units
        self.display_units = readable_units(self.units)
        self.sums = {model: field_sums(own, comparison.variable) for model, own in comparison.comparable.items()}
        first = next(iter(self.sums.values()))
        self.thresholds: list[float] = first[THRESHOLD].values.tolist() if THRESHOLD in first.coords else []
        self.scale = middle(first[SCALE].values) if SCALE in first.coords else None
        self.storm: float | None = first[STORM].values.item() if STORM in first.coords else None
        self.leads = lead_minutes(first)

    def panels(self) -> list[Panel | Gain]:
        """Return the curves against lead time: errors, skill, blur, then events and neighbourhoods by threshold.

        Each leading score is followed by differences from the best reference, where they are tested.
        """
        errors = [self._panel(self._score(name), self.display_units) for name in ("rmse", "crps", "mae")]
        errors.append(self._panel(self._score("mean_error"), self.display_units, perfect=0.0))
        if self.comparison.rivals:
            errors.append(Panel(SKILL, "", self._skill(), perfect=0.0, limits=(-1, 1)))
        errors.append(self._panel(self._score("spectrum_ratio"), "", perfect=1.0))
        events = [self._score("csi", threshold) for threshold in self.thresholds]
        if self.scale is not None:
            events += [self._score("fss", threshold, self.scale) for threshold in self.thresholds]
        panels = [*errors, *(self._panel(score, "", limits=(0, 1)) for score in events), *self._storm_cells()]
        gains = {gain.title.removeprefix(GAIN): gain for gain in self.gains()}
        defined = [panel for panel in panels if _defined(panel.values)]
        return [one for panel in defined for one in (panel, gains.get(panel.title)) if one is not None]

    def _storm_cells(self) -> list[Panel]:
        """Return the curves of storm cells: how many are found, how far off, how large; empty without them."""
        if self.storm is None:
            return []
        csi, distance, area = (
            self._score(name, self.storm) for name in ("storm_csi", "storm_distance_km", "storm_area_ratio")
        )
        return [
            self._panel(csi, "", limits=(0, 1)),
            self._panel(distance, "km"),
            self._panel(area, "", perfect=1.0),
        ]

    def leading_panels(self) -> list[Panel | Gain]:
        """Return the panels of the leading scores, with their differences from the best reference, and of skill."""
        titles = {SKILL, *(score.title() for score in self.comparison.leading)}
        return [panel for panel in self.panels() if panel.title.removeprefix(GAIN) in titles]

    def gains(self) -> list[Gain]:
        """Return the differences of the leading scores from the best reference at each lead."""
        return [self._gain(score, best) for score, best in self._best_references().items()]

    def coverage(self) -> Panel | None:
        """Return how often the 90 % interval held the observed value, by lead; None without such intervals."""
        score = self._score("coverage_90")
        curves = {name: curve for name, curve in self._curves(score).items() if _defined({name: curve})}
        return Panel(score.title(), "", curves, perfect=0.9, limits=(0, 1)) if curves else None

    def spectra(self) -> list[Spectrum]:
        """Return the power of observed and forecast at the middle and the last lead; empty without spectra."""
        having = {name: own for name, own in self.sums.items() if "forecast_power" in own}
        if not having:
            return []
        spectra = []
        for position in spread_out(SPECTRA_LEADS, len(self.leads)):
            at = {name: own.isel({LEAD_TIME: position}).sum(INIT_TIME) for name, own in having.items()}
            first = next(iter(at.values()))
            spectra.append(
                Spectrum(
                    self.leads[position],
                    first["wavelength"].values,
                    first["observed_power"].values,
                    {name: own["forecast_power"].values for name, own in at.items()},
                )
            )
        return spectra

    def reliability(self) -> list[Reliability]:
        """Return reliability over all leads for each threshold, of the models that give probabilities."""
        having = {name: own for name, own in self.sums.items() if "reliability_weight" in own}
        if not having:
            return []
        return [
            Reliability(f"≥ {level:g} {self.display_units}", {name: _bins(own, level) for name, own in having.items()})
            for level in self.thresholds
        ]

    def economic_value(self) -> list[EconomicValue]:
        """Return the value to users over all leads, for each threshold."""
        return [
            EconomicValue(
                f"≥ {level:g} {self.display_units}",
                RATIOS,
                {name: _values(own, level) for name, own in self.sums.items()},
            )
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
        pod, far = (self._score(name, threshold) for name in ("pod", "far"))
        points = {name: (metrics[name][pod][lead], metrics[name][far][lead]) for name in self.sums}
        return Performance(f"≥ {threshold:g} {self.display_units}, {_lead(lead, self.leads)}", points)

    def differences(self) -> list[Differences]:
        """Return the differences of all models from the best reference in the two leading scores, at some leads."""
        found = []
        for score, best in list(self._best_references().items())[:2]:
            shown = {lead: best[lead] for lead in (list(best)[k] for k in spread_out(DIFFERENCE_LEADS, len(best)))}
            cells = {
                model: {lead: self._cell(model, name, score, lead) for lead, name in shown.items()}
                for model in self.sums
            }
            found.append(Differences(score.title(), cells, shown))
        return found

    def leaders(self) -> Leaders:
        """Return which models have the best value at each lead, or are within chance of it, in each tested score."""
        evidence = self.comparison.evidence
        tested = dict.fromkeys(score for _, score in evidence.intervals)
        return {score: {lead: leaders(evidence, score, lead) for lead in self.leads} for score in tested}

    def matrices(self) -> list[Matrix]:
        """Return the differences between all pairs in the two leading scores, at some leads."""
        evidence = self.comparison.evidence
        scores = [score for score in self.comparison.leading if (evidence.models[0], score) in evidence.intervals][:2]
        return [
            Matrix(score.title(), self.leads[k], self._pairs(score, self.leads[k]))
            for score in scores
            for k in spread_out(MATRIX_LEADS, len(self.leads))
        ]

    def groups(self) -> list[Groups]:
        """Return RMSE over all leads by hour of day, event, region and intensity, where there are several groups."""
        parts: dict[str, Callable[[xr.Dataset], dict[str, xr.Dataset]]] = {
            "hour of day (UTC)": strata.by_hour,
            "event, by its first init time (UTC)": strata.by_event,
            "region": strata.by_region,
            f"observed intensity, {self.display_units}": strata.by_intensity,
        }
        found = []
        for title, part in parts.items():
            by_model = {model: part(_squares(own)) for model, own in self.sums.items()}
            names = list(next(iter(by_model.values())))
            if 1 < len(names) <= (MOST_EVENTS if part is strata.by_event else len(names)):
                values = {name: {model: _rmse(own[name]) for model, own in by_model.items()} for name in names}
                found.append(Groups(f"RMSE, {self.display_units}, by {title}", self._score("rmse"), values))
        return found

    def skill_by_cost(self) -> tuple[dict[str, float], dict[str, float], str] | None:
        """Return milliseconds and MSE skill by model, and the skill's label; None without measured forecasts."""
        entries, lead = self.comparison.entries, self._middle_lead()
        spent = {name: entries[name].costs.forecast_milliseconds for name in self.sums}
        known = {name: value for name, value in spent.items() if value is not None}
        if not known or not self.comparison.rivals:
            return None
        skills = {name: curve[lead] for name, curve in self._skill().items() if name in known}
        return known, skills, f"{SKILL}, {_lead(lead, self.leads)}"

    def _score(self, name: str, threshold: float | None = None, scale_km: float | None = None) -> Score:
        return Score(name, threshold, scale_km, "" if threshold is None else self.units)

    def _skill(self) -> dict[str, dict[float, float]]:
        return {model: skill(self.comparison, model, self._score("rmse")) for model in self.sums}

    def _best_references(self) -> dict[Score, dict[float, str]]:
        """Return the best reference by lead in each leading score that is tested; scores without one are left out."""
        evidence, rivals = self.comparison.evidence, self.comparison.rivals
        tested = {score for _, score in evidence.intervals}
        best = {
            score: {lead: best_of(evidence, rivals, score, lead) for lead in self.leads}
            for score in self.comparison.leading
            if score in tested
        }
        named = {
            score: {lead: name for lead, name in by_lead.items() if name is not None} for score, by_lead in best.items()
        }
        return {score: by_lead for score, by_lead in named.items() if by_lead}

    def _gain(self, score: Score, zero: Mapping[float, str]) -> Gain:
        rivals, cells = self.comparison.rivals, {}
        for model in self.sums:
            own = {lead: self._cell(model, name, score, lead) for lead, name in zero.items()}
            cells[model] = {lead: (cell.value, cell.low, cell.high) for lead, cell in own.items()}
        learned = [model for model in self.sums if model not in rivals] or rivals
        sign = direction(score)
        total = {model: sign * sum(value for value, _, _ in cells[model].values()) for model in learned}
        banded = sorted(learned, key=lambda model: -np.nan_to_num(total[model], nan=-np.inf))[:BANDS]
        unit = f"{'below' if sign < 0 else 'above'} 0: better"
        return Gain(GAIN + score.title(), unit, cells, zero, banded)

    def _panel(
        self, score: Score, unit: str, perfect: float | None = None, limits: tuple[float, float] | None = None
    ) -> Panel:
        return Panel(score.title(), unit, self._curves(score), perfect, limits)

    def _curves(self, score: Score) -> Curves:
        return {model: self.comparison.metrics[model][score] for model in self.sums}

    def _pairs(self, score: Score, lead: float) -> dict[tuple[str, str], Cell]:
        names = list(self.sums)
        return {(one, other): self._cell(one, other, score, lead) for one in names for other in names if one != other}

    def _cell(self, one: str, other: str, score: Score, lead: float) -> Cell:
        if one == other:
            return Cell("no difference", 0.0, 0.0, 0.0)
        own = self.comparison.evidence.between(one, other, score)[lead]
        return Cell(own.word, own.value, own.low, own.high)

    def _middle_lead(self) -> float:
        return self.leads[(len(self.leads) - 1) // 2]


def _defined(values: Curves) -> bool:
    return any(np.isfinite(value) for curve in values.values() for value in curve.values())


def _values(sums: xr.Dataset, threshold: float) -> np.ndarray:
    """Return the economic value at `RATIOS`, of all init times and leads together."""
    counted = sums[[name for name in COUNTS if name in sums]].sel({THRESHOLD: threshold}).sum(LEAD_TIME)
    return np.array([float(value(value_sums(counted, one))) for one in RATIOS])


def _bins(sums: xr.Dataset, threshold: float) -> Bins:
    pooled = sums.sel({THRESHOLD: threshold}).sum((INIT_TIME, LEAD_TIME))
    names = ("reliability_weight", "reliability_probability", "reliability_events")
    return Bins(*(pooled[name].values for name in names))


def _squares(sums: xr.Dataset) -> xr.Dataset:
    """Return the sums of the RMSE alone, of the field and of its regions and classes."""
    names = [f"{group}{name}" for group in ("", "region_", "class_") for name in ("squared_error", "weight")]
    return sums[[name for name in names if name in sums]]


def _rmse(sums: xr.Dataset) -> float:
    weight = float(sums["weight"].sum())
    return float(sums["squared_error"].sum() / weight) ** 0.5 if weight > 0 else float("nan")


def _lead(lead: float, leads: list[float]) -> str:
    divisor, unit = lead_unit(leads)
    return f"{lead / divisor:g} {unit} ahead"
