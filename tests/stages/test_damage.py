"""Damage of whatever a stage writes: each flipped bit and each deleted file is an error with its file, or no change."""

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fieldcast.pipeline import config
from fieldcast.pipeline.datasets import manifest, store
from fieldcast.pipeline.datasets.frames import read_init_times
from fieldcast.pipeline.datasets.paths import FORECASTS, OBSERVATIONS, PREPARED, SCORES
from fieldcast.pipeline.datasets.preparation.climatology import read_climatology
from fieldcast.pipeline.datasets.preparation.learned import read_digest
from fieldcast.pipeline.datasets.schema import MIRRORED
from fieldcast.pipeline.datasets.signature import Statistics
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.forecast import forecast
from fieldcast.pipeline.forecasting import checkpoint, costs
from fieldcast.pipeline.verification.blocks import verify
from fieldcast.pipeline.verification.sums_file import read_sums, write_sums
from tests.campaign import size
from tests.checkpoints import untrained
from tests.conftest import rewrite

COSTS = Path("data/costs.json")
CHECKPOINT = Path("mine")
STORE = FORECASTS / "mine.zarr"
SUMS = SCORES / "mine.nc"


@pytest.fixture
def artefacts(project: Path) -> dict[Path, Callable[[], object]]:
    """Return one artefact of each kind, and how stages read it."""
    params = rewrite(project, {})
    folder = untrained(project, "simvp", spread=0.01).relative_to(project)
    init_times = read_init_times(PREPARED / "init_times.csv", "test")[:3]
    costs.write(forecast(folder, OBSERVATIONS, init_times, STORE, config.Forecast(batch_size=2)), COSTS)
    sums = verify(store.open_forecasts(STORE), store.open_observations(OBSERVATIONS), params.verify)
    write_sums(sums, SUMS)
    return {
        OBSERVATIONS: lambda: _values(store.open_observations(OBSERVATIONS)),
        PREPARED: _prepared,
        CHECKPOINT: _checkpoint,
        STORE: lambda: [_values(store.open_forecasts(folder)) for folder in (STORE, STORE / MIRRORED)],
        SUMS: lambda: _values(read_sums(SUMS)),
        COSTS: lambda: costs.read(COSTS),
    }


@pytest.mark.parametrize("seed", range(size(1, 8)))
def test_no_flipped_bit_is_silent(
    artefacts: dict[Path, Callable[[], object]], seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, harmless, flips = random.Random(seed), [], 0
    for place, read in artefacts.items():
        expected = read()
        assert read() == expected
        files = _files(place)
        for path in rng.choices(files, k=size(20, 25)):
            whole = path.read_bytes()
            flipped, flips = bytearray(whole), flips + 1
            flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            if not _named(read, expected, place):
                harmless.append(path)
            path.write_bytes(whole)
        assert read() == expected
    assert {path.name for path in harmless} <= {"quality.png", "card.md", "quality.json"}, harmless  # no stage's input
    with capsys.disabled():
        sys.stdout.write(f"seed {seed}: {flips} flips, {len(harmless)} in files that no stage reads, 0 silent\n")


def test_no_deletion_is_silent(
    artefacts: dict[Path, Callable[[], object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, deletions, unread = random.Random(0), 0, 0
    for place, read in artefacts.items():
        if place is COSTS:  # a model without costs is no error
            continue
        expected = read()
        for gone in _deletions(place, rng, size(10, 60)):
            kept = {path: path.read_bytes() for path in gone}
            for path in gone:
                path.unlink()
            deletions += 1
            if not _named(read, expected, place):
                assert {path.name for path in gone} <= {"quality.png", "quality.json"}, gone
                unread += 1
            for path, content in kept.items():
                path.write_bytes(content)
        assert read() == expected
    with capsys.disabled():
        sys.stdout.write(f"{deletions} deletions, {unread} of files that no stage reads, 0 silent\n")


def _deletions(place: Path, rng: random.Random, count: int) -> Iterator[list[Path]]:
    """Yield what goes at once: each file in turn, as far as `count` goes, then files together and all of a folder."""
    files = _files(place)
    singles = rng.sample(files, min(len(files), count))
    yield from ([path] for path in singles)
    folders = sorted({path.parent for path in files} - {place.parent})
    for number in range(count - len(singles)):
        below = _files(folders[number % len(folders)]) if folders and number % 2 else []
        yield below or rng.sample(files, rng.randint(1, len(files)))


def test_a_frame_that_is_missing_is_told_from_one_that_is_gone(artefacts: dict[Path, Callable[[], object]]) -> None:
    shard = next(path for path in (OBSERVATIONS / "rain_rate" / "c").rglob("*") if path.is_file())
    shard.unlink()
    with pytest.raises(DamagedError, match=rf"{shard}: is missing: restore it \(dvc checkout --force\)"):
        store.open_observations(OBSERVATIONS, chunks="shards")


def test_a_chunk_is_checked_when_it_is_read_by_dask_too(artefacts: dict[Path, Callable[[], object]]) -> None:
    shard = next(path for path in (STORE / "rain_rate" / "c").rglob("*") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    opened = store.open_forecasts(STORE, chunks="shards")
    with pytest.raises(DamagedError, match=rf"{shard}: is .* expected"):
        opened["rain_rate"].compute()


def test_a_store_without_a_manifest_is_not_complete(artefacts: dict[Path, Callable[[], object]]) -> None:
    (STORE / manifest.MANIFEST).unlink()
    with pytest.raises(DamagedError, match=r"manifest\.json: cannot be read \(No such file"):
        store.open_forecasts(STORE)


def test_a_checkpoint_is_read_whole_while_another_takes_its_place(
    artefacts: dict[Path, Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = checkpoint.read_checkpoint(CHECKPOINT)
    arrays = {name: array + 1 for name, array in before.arrays.items()}
    read, reads = manifest.read_bytes, []

    def retrained(path: Path, fix: str) -> bytes:
        reads.append(path.name)
        if len(reads) == 3:  # manifest and one file are of the old one
            checkpoint.save_checkpoint(CHECKPOINT, before.config, arrays, "")
        return read(path, fix)

    monkeypatch.setattr(manifest, "read_bytes", retrained)
    after = checkpoint.read_checkpoint(CHECKPOINT)
    assert after.digest == store.directory_digest(CHECKPOINT) != before.digest
    assert all(np.array_equal(after.arrays[name], arrays[name]) for name in arrays)


def test_damage_of_an_archive_that_is_no_checkpoint_of_ours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="list in place of a configuration"):
        checkpoint.read_config(tmp_path)


def _named(read: Callable[[], object], expected: object, place: Path) -> bool:
    """Return whether reading raises an error that names the artefact; else it must give what it gave before."""
    try:
        content = read()
    except DamagedError as error:
        return str(place) in str(error) and "dvc" in str(error)
    except InputError as error:  # where nothing is left
        return str(place) in str(error)
    assert content == expected, place
    return False


def _files(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]


def _values(dataset) -> dict[str, object]:  # type: ignore[no-untyped-def]
    parts = {str(name): (it.values.tobytes(), str(it.attrs)) for name, it in dataset.variables.items()}
    return {**parts, "": str(dataset.attrs)}


def _prepared() -> object:
    times = [read_init_times(PREPARED / "init_times.csv", split).tobytes() for split in ("train", "test")]
    return times, Statistics.read(PREPARED), read_digest(PREPARED), _values(read_climatology(PREPARED))


def _checkpoint() -> object:
    stored = checkpoint.read_checkpoint(CHECKPOINT)
    return stored.config, {name: array.tobytes() for name, array in stored.arrays.items()}
