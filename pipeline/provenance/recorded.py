"""What `dvc.lock` and git recorded of a training: its stage, the code that ran, the data that it read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldcast.pipeline.config.yaml_file import parse_written
from fieldcast.pipeline.datasets import manifest, store
from fieldcast.pipeline.datasets.frames import read_table
from fieldcast.pipeline.datasets.paths import CHECKPOINTS, OBSERVATIONS, PREPARED
from fieldcast.pipeline.datasets.preparation.climatology import read_climatology
from fieldcast.pipeline.datasets.preparation.learned import LEARNED, LETTERS, digest_of, read_digest
from fieldcast.pipeline.datasets.signature import Statistics
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig
from fieldcast.pipeline.provenance.link import BrokenError, UncheckedError

if TYPE_CHECKING:
    from git import Commit, Repo

LOCK = "dvc.lock"
CODE = ("pipeline/", "models/")


@dataclass(frozen=True)
class Recorded:
    """A stage in `dvc.lock` as it ran: what it read and what it wrote, with the MD5 of each."""

    where: str  # dvc.lock, or that of a commit
    stage: str
    deps: dict[str, str]
    outs: dict[str, str]


def stages_of(text: str, where: str = LOCK) -> list[Recorded]:
    """Return the stages of a `dvc.lock`; raise `BrokenError` where it is none."""
    try:
        stages = parse_written(text)["stages"].items()
        return [Recorded(where, name, _digests(stage, "deps"), _digests(stage, "outs")) for name, stage in stages]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenError(f"{where} cannot be read: {error}") from None


def digest_beginning(digits: str, root: Path) -> str:
    """Return the digest of a checkpoint by its first digits: of those that are there, of `dvc.lock`, of its history.

    Raise `BrokenError` where none has them.
    """
    known = [store.directory_digest(place) for place in checkpoints(root)]
    with suppress(BrokenError, UncheckedError, OSError, ValueError):  # the link of dvc.lock tells
        known += [md5 for stage in stages_of((root / LOCK).read_text()) for md5 in stage.outs.values()]
        known += [md5 for stages in _history(digits, root) for stage in stages for md5 in stage.outs.values()]
    for digest in known:
        if digest.startswith(digits):
            return digest
    raise BrokenError(f"no digest of a checkpoint begins with {digits}: in {root / CHECKPOINTS}, {LOCK} or its history")


def checkpoints(root: Path) -> list[Path]:
    """Return the folders of checkpoints that are there."""
    return [place for place in sorted((root / CHECKPOINTS).glob("*")) if place.is_dir()]


def find_stage(digest: str, root: Path) -> Recorded:
    """Return the stage that wrote the checkpoint with this digest, by `dvc.lock` or by that of an earlier commit.

    Raise `BrokenError` where `dvc.lock` has another digest of a checkpoint that is there.
    """
    try:
        text = (root / LOCK).read_text()
    except OSError as error:
        raise UncheckedError(
            f"{root / LOCK} cannot be read ({error.strerror}): is this the project's folder?"
        ) from None
    except UnicodeDecodeError as error:
        raise BrokenError(f"{root / LOCK}: {error}") from None
    stages = stages_of(text)
    for stage in stages:
        if digest in stage.outs.values():
            return stage
    for path in [
        str(place.relative_to(root)) for place in checkpoints(root) if store.directory_digest(place) == digest
    ]:
        for stage in stages:
            if path in stage.outs:
                raise BrokenError(
                    f"{LOCK} says that {stage.stage} wrote {path} with MD5 {stage.outs[path]}, not {digest}"
                )
    for stages in _history(digest, root):
        for stage in stages:
            if digest in stage.outs.values():
                return stage
    raise BrokenError(f"neither {LOCK} nor its history has a stage that wrote {digest}")


def repository_of(root: Path) -> Repo:
    """Return the git repository of the project; raise `UncheckedError` where there is none."""
    from git import GitError, Repo

    try:
        return Repo(root, search_parent_directories=True)
    except GitError:
        raise UncheckedError(f"{root.resolve()} is in no git repository") from None


def check_commit(name: str, stage: Recorded, root: Path) -> str:
    """Return what has been compared; raise `BrokenError` where a stage ran other code than a commit has."""
    repository = repository_of(root)
    if not name:
        raise UncheckedError("MLflow's run names no commit: there was no repository, or no commit in it")
    try:
        commit = repository.commit(name)
    except (ValueError, OSError) as error:
        raise BrokenError(f"the repository has no commit {name}: {error}; git fetch, if it is in another") from None
    code = {path: md5 for path, md5 in stage.deps.items() if path.startswith(CODE)}
    if not code:
        return f"{name[:12]}; {stage.stage} ran the code of an installed package, which is in no commit here"
    for path, md5 in code.items():
        if (found := _digest_in(commit, path)) != md5:
            raise BrokenError(
                f"{stage.stage} ran {path} with MD5 {md5}, and in commit {name[:12]} it has {found or 'none'}: what "
                "ran was not committed, or the commit is not what it was"
            )
    return f"{name[:12]}, whose {len(code)} files and folders of code are those that {stage.stage} ran"


def check_data(config: CheckpointConfig, stage: Recorded | None, root: Path) -> str:
    """Return what has been computed; raise `BrokenError` where the data are not those that the model learned from."""
    prepared, observations = root / PREPARED, root / OBSERVATIONS
    for place in (prepared, observations):
        if not place.is_dir():
            raise UncheckedError(f"{place} is not there: dvc checkout, or dvc pull, brings it")
        manifest.check(place, manifest.read(place))
    if (found := read_digest(prepared)) != config.data_digest:
        raise UncheckedError(
            f"{prepared} is of other data now (digest {found}, the model learned from {config.data_digest}): git "
            "checkout its commit, then dvc checkout"
        )
    told = (stage.deps if stage else {}).get(str(PREPARED / LEARNED))
    if told is not None and (md5 := store.file_digest(prepared / LEARNED)) != told:
        raise BrokenError(f"{PREPARED / LEARNED} has MD5 {md5}, and {told} in {LOCK}")
    with store.open_observations(observations) as frames:
        statistics, names = Statistics.read(prepared), config.channel_names
        samples = (config.history, config.horizon)
        table = read_table(prepared / "init_times.csv")
        again = digest_of(frames, names, table, samples, statistics, read_climatology(prepared))[:LETTERS]
    if again != config.data_digest:
        raise BrokenError(f"digest of {observations} is {again}, and the model learned from {config.data_digest}")
    return f"digest {again}, of the frames of training and validation in {observations}"


def _history(text: str, root: Path) -> Iterator[list[Recorded]]:
    """Yield the stages of each committed `dvc.lock` in which a text came or went, the newest first."""
    repository = repository_of(root)
    for name in repository.git.log(f"-S{text}", "--format=%H", "--", LOCK).split():
        content = (repository.commit(name).tree / LOCK).data_stream.read().decode()
        yield stages_of(content, f"{LOCK} of commit {name[:12]}")


def _digests(stage: dict[str, Any], kind: str) -> dict[str, str]:
    return {entry["path"]: str(entry.get("md5", "")) for entry in stage.get(kind, [])}


def _digest_in(commit: Commit, path: str) -> str:
    """Return the MD5 that DVC gives a file or folder, as a commit has it; '' where it has none."""
    from git import Blob

    try:
        entry = commit.tree / path
    except KeyError:
        return ""
    if entry.type == "blob":
        return hashlib.md5(entry.data_stream.read(), usedforsecurity=False).hexdigest()
    blobs = [each for each in entry.traverse() if isinstance(each, Blob)]
    return store.digest_of({str(Path(blob.path).relative_to(path)): blob.data_stream.read() for blob in blobs})
