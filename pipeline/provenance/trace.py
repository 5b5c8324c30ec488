"""The trace of an issued forecast: file, ledger, model version, checkpoint, MLflow run, dvc.lock, commit, data."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig
from fieldcast.pipeline.live.archive.ledger import Cycle
from fieldcast.pipeline.live.deployed_model import FETCHED
from fieldcast.pipeline.provenance import recorded, trained
from fieldcast.pipeline.provenance.issued import Issued
from fieldcast.pipeline.provenance.link import BrokenError, Link, UncheckedError, checked
from fieldcast.pipeline.provenance.recorded import Recorded
from fieldcast.pipeline.tracking.registry import TrainedRun


def trace(path: Path, folder: Path, experiment: str, root: Path = Path()) -> list[Link]:
    """Return the links from an issued file back to code and data; raise `InputError` for a file that is none."""
    chain = Chain(Issued.read(path), folder, experiment, root)
    return [
        checked("file", chain.file),
        checked("ledger", chain.ledger),
        checked("model version", chain.version),
        checked("checkpoint", chain.checkpoint),
        checked("MLflow run", chain.run),
        checked("dvc.lock", chain.lock),
        checked("commit", chain.commit),
        checked("data", chain.data),
    ]


class Chain:
    """The links in their order: each leaves what the later ones need, or None where it doesn't hold."""

    def __init__(self, issued: Issued, folder: Path, experiment: str, root: Path) -> None:
        self.issued, self.folder, self.experiment, self.root = issued, folder, experiment, root
        self.row: Cycle | None = None
        self.digest: str | None = None  # of the checkpoint
        self.config: CheckpointConfig | None = None
        self.trained: TrainedRun | None = None
        self.stage: Recorded | None = None

    def file(self) -> str:
        """Compare the bytes of the file with what was published."""
        return self.issued.check_bytes(self.folder)

    def ledger(self) -> str:
        """Compare the file with the ledger's row."""
        says, self.row = self.issued.check_row(self.folder)
        return says

    def version(self) -> str:
        """Look up which checkpoint the forecast's model version is."""
        if "/" in self._version:
            self.digest = trained.digest_of_version(self._version, self.folder, self.experiment, self.root)
        else:
            self.digest = recorded.digest_beginning(self._version, self.root)
        model = self.row.model if self.row else self.issued.facts.get("model", "?")
        return f"{model} {self._version} is checkpoint {self.digest}"

    def checkpoint(self) -> str:
        """Compute the digest of the checkpoint's folder."""
        digest, own = self._known(), list[Path]()
        with suppress(BrokenError, UncheckedError):  # of dvc.lock, whose link tells
            outs = recorded.find_stage(digest, self.root).outs
            own = [self.root / path for path, md5 in outs.items() if md5 == digest]
        own.append(self.folder / FETCHED / digest)
        says, self.config = trained.check_checkpoint(digest, own, recorded.checkpoints(self.root))
        return says

    def run(self) -> str:
        """Look up the run of the checkpoint, and compute the digest of the version that it registered."""
        self.trained = trained.find_run(self._known(), self.experiment, self.root)
        if self.config is not None and self.trained.data not in ("", self.config.data_digest):
            told, known = self.trained.data, self.config.data_digest
            raise BrokenError(f"run {self.trained.run_id} learned from data {told}, its checkpoint from {known}")
        says = trained.check_registered(self._known(), self._version, self.experiment, self.root)
        return f"{self.trained.run_id} of {self.trained.model}; {says}"

    def lock(self) -> str:
        """Look up the stage that wrote the checkpoint."""
        self.stage = recorded.find_stage(self._known(), self.root)
        return f"{self.stage.stage} wrote it, by {self.stage.where}"

    def commit(self) -> str:
        """Compute the digests of the code that ran, as the commit of the training has it."""
        if self.trained is None or self.stage is None:
            raise UncheckedError("the MLflow run names the commit and dvc.lock the code: one of them is missing")
        return recorded.check_commit(self.trained.commit, self.stage, self.root)

    def data(self) -> str:
        """Compute the digest of the data that the model learned from."""
        if self.config is None:
            raise UncheckedError("the checkpoint names the data, and it is missing")
        return recorded.check_data(self.config, self.stage, self.root)

    @property
    def _version(self) -> str:
        version = self.row.model_version if self.row else str(self.issued.facts.get("model_version", ""))
        if not version:
            raise UncheckedError("neither the ledger nor the file names a model version")
        return version

    def _known(self) -> str:
        if self.digest is None:
            raise UncheckedError("which checkpoint it is, is not known: see the model version")
        return self.digest
