"""Runs and registered versions in MLflow: the scores of any run, and the aliases that promotion moves."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import xarray as xr

from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecasting import costs
from fieldcast.pipeline.tracking.patience import FILE_SECONDS, ask, first_line
from fieldcast.pipeline.tracking.records import MODEL_TAG
from fieldcast.pipeline.tracking.runs import (
    CHECKPOINT_TAG,
    COSTS_FILE,
    KIND_TAG,
    SCORES_FOLDER,
    open_client,
)
from fieldcast.pipeline.verification.sums_file import read_sums

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

Result = TypeVar("Result")

CHAMPION, CHALLENGER = "champion", "challenger"
EVERY_RUN = 3  # those that were replaced and deleted too: ViewType.ALL
RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class ScoredRun:
    """A run with verified forecasts: its sums, its costs, and the digest of its training data."""

    run_id: str
    model: str
    kind: str
    checkpoint: str  # digest of its folder
    data: str  # digest of the prepared data that it learned from
    sums: xr.Dataset
    costs: costs.Costs


@dataclass(frozen=True)
class Version:
    """A version of the registered model."""

    number: str
    run_id: str
    model: str
    checkpoint: str  # digest of its folder


@dataclass(frozen=True)
class TrainedRun:
    """The run of a training, by the checkpoint that it wrote."""

    run_id: str
    model: str
    commit: str  # HEAD of the repository at the training, '' where there was none
    data: str  # digest of the prepared data that it learned from


class Registry:
    """The runs and the registered model of one experiment.

    Raises `InputError` for what does not exist and `TrackerError` when MLflow does not answer.
    """

    def __init__(self, experiment: str, root: Path = Path()) -> None:
        self.experiment = experiment
        self.client = _asked(lambda: open_client(root))

    def scored(self, wanted: str) -> ScoredRun:
        """Return the run that `wanted` names: a run's id, an alias of a version, or the newest run of that name."""
        return _asked(lambda: self._scored(wanted))

    def version_with(self, alias: str) -> Version | None:
        """Return the version with `alias`, None where there is none."""
        return _asked(lambda: self._version_with(alias))

    def version_of(self, run_id: str) -> Version | None:
        """Return the newest version that the run `run_id`, or an earlier one of its checkpoint, registered."""
        digest = _asked(lambda: self.client.get_run(run_id).data.tags.get(CHECKPOINT_TAG, ""))
        return self._version_of_run(run_id) or self.version_of_checkpoint(digest)

    def _version_of_run(self, run_id: str) -> Version | None:
        found = _asked(lambda: self.client.search_model_versions(f"name='{self.experiment}' and run_id='{run_id}'"))
        return self._version(max(found, key=lambda it: int(it.version))) if found else None

    def version_of_checkpoint(self, digest: str) -> Version | None:
        """Return the newest version whose run wrote the checkpoint with this digest."""
        chosen = f"tags.`{CHECKPOINT_TAG}` = '{digest}'"
        runs = _asked(lambda: self.client.search_runs(self._experiments(), chosen, EVERY_RUN))
        versions = [version for run in runs if (version := self._version_of_run(run.info.run_id)) is not None]
        return max(versions, key=lambda it: int(it.number), default=None)

    def version(self, number: str) -> Version:
        """Return a version by its number."""
        return _asked(lambda: self._version(self.client.get_model_version(self.experiment, number)))

    def trained(self, digest: str) -> TrainedRun | None:
        """Return the newest run that wrote the checkpoint with this digest, None where there is none."""
        chosen, order = f"tags.`{CHECKPOINT_TAG}` = '{digest}'", ["attributes.start_time DESC"]
        found = _asked(lambda: self.client.search_runs(self._experiments(), chosen, EVERY_RUN, 1, order))
        if not found:
            return None
        tags = found[0].data.tags
        return TrainedRun(
            found[0].info.run_id, tags.get(MODEL_TAG, ""), tags.get("mlflow.source.git.commit", ""), _data_of(found[0])
        )

    def appoint(self, version: Version, alias: str, reason: str) -> None:
        """Give `version` the alias, with the reason as its description; another version with the alias loses it.

        The champion is never the challenger as well.
        """

        def give() -> None:
            self.client.set_registered_model_alias(self.experiment, alias, version.number)
            self.client.update_model_version(self.experiment, version.number, f"{alias}: {reason}")
            other = self._version_with(CHALLENGER)
            if alias == CHAMPION and other is not None and other.number == version.number:
                self.client.delete_registered_model_alias(self.experiment, CHALLENGER)

        _asked(give)

    def _scored(self, wanted: str) -> ScoredRun:
        run = self._run(wanted)
        identity, tags = run.info.run_id, run.data.tags
        names = [entry.path for entry in self.client.list_artifacts(identity, SCORES_FOLDER)]
        stored = [name for name in names if name.endswith(".nc")]
        if len(stored) != 1:
            raise InputError(
                f"run {wanted}: {len(stored)} files of scores in MLflow, expected one, logged by the stage compare: "
                f"dvc repro --force --single-item verify@{tags.get(MODEL_TAG, '<model>')}"
            )
        with tempfile.TemporaryDirectory() as folder:
            sums = read_sums(Path(self.client.download_artifacts(identity, stored[0], folder)))
            known = [name for name in names if name.endswith(COSTS_FILE)]
            spent = costs.read(*(Path(self.client.download_artifacts(identity, name, folder)) for name in known))
        return ScoredRun(
            run_id=identity,
            model=tags.get(MODEL_TAG, identity),
            kind=tags.get(KIND_TAG, ""),
            checkpoint=tags.get(CHECKPOINT_TAG, ""),
            data=_data_of(run),
            sums=sums,
            costs=spent,
        )

    def _run(self, wanted: str) -> Run:
        from mlflow.exceptions import MlflowException

        if RUN_ID.fullmatch(wanted):
            try:
                return self.client.get_run(wanted)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise InputError(f"MLflow has no run {wanted}: {first_line(error)}; fieldcast ui lists them") from None
        version = self._version_with(wanted)
        if version is not None:
            return self._evaluated(version)
        chosen = f"attributes.run_name = '{wanted}'" if re.fullmatch(r"[\w .-]+", wanted) else "run_id = ''"
        found = self.client.search_runs(self._experiments(), chosen, max_results=1)
        if not found:
            raise InputError(
                f"MLflow's experiment '{self.experiment}' has no run or alias {wanted!r}; expected a run's id or name, "
                "or an alias such as champion: fieldcast ui lists them"
            )
        return found[0]

    def _evaluated(self, version: Version) -> Run:
        """Return the newest run of the version's checkpoint; the one that registered it may have been replaced."""
        chosen = f"tags.`{CHECKPOINT_TAG}` = '{version.checkpoint}'"
        order = ["attributes.start_time DESC"]
        found = self.client.search_runs(self._experiments(), chosen, max_results=1, order_by=order)
        return found[0] if found else self.client.get_run(version.run_id)

    def _experiments(self) -> list[str]:
        found = self.client.get_experiment_by_name(self.experiment)
        return [found.experiment_id] if found else []

    def _version_with(self, alias: str) -> Version | None:
        from mlflow.exceptions import MlflowException

        try:
            return self._version(self.client.get_model_version_by_alias(self.experiment, alias))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _version(self, version: ModelVersion) -> Version:
        tags = self.client.get_run(version.run_id).data.tags if version.run_id else {}
        return Version(
            str(version.version), version.run_id or "", tags.get(MODEL_TAG, ""), tags.get(CHECKPOINT_TAG, "")
        )


def _data_of(run: Run) -> str:
    """Return the digest of the prepared data of a run, '' where it has none."""
    inputs = run.inputs.dataset_inputs if run.inputs is not None else []
    return inputs[0].dataset.digest if inputs else ""


def _asked(call: Callable[[], Result]) -> Result:
    """Return the result of calls to MLflow; raise `TrackerError` where it does not answer."""
    return ask(call, FILE_SECONDS)
