import gzip

import numpy as np
import pytest

from fieldcast.pipeline.config.sources import MovingMnistOptions
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import inspect_source, moving_mnist, open_source
from fieldcast.pipeline.sources.moving_mnist import draw_sequence, trajectory
from tests.sources import archives


@pytest.fixture
def options(tmp_path) -> MovingMnistOptions:
    """Training digits are all 51 of 255, test digits all 255."""
    train = archives.write_idx(tmp_path / "train.gz", np.full((3, 28, 28), 51))
    test = archives.write_idx(tmp_path / "test.gz", np.full((2, 28, 28), 255))
    return MovingMnistOptions(train_images=str(train), test_images=str(test), sequences_train=3, sequences_test=2)


def test_a_sequence_a_day_with_train_and_test_digits_apart(options):
    parts = open_source(options).segments()
    assert len(parts) == 5
    assert parts[3].times[0] == np.datetime64("2000-01-04")
    assert parts[3].times[-1] == np.datetime64("2000-01-04T19:00")
    peaks = [part.read(np.arange(20), slice(None), slice(None))["intensity"].values.max() for part in parts]
    np.testing.assert_allclose(peaks, [0.2, 0.2, 0.2, 1, 1])
    summary = inspect_source(options)
    assert (summary.time_axis.times.size, summary.time_axis.present.sum()) == (4 * 24 + 20, 100)
    assert summary.variables == {"intensity": "1"}


def test_positions_move_by_a_tenth_of_the_range_and_bounce():
    for seed in range(20):
        places = trajectory(np.random.default_rng(seed), 200)
        assert places.min() >= 0
        assert places.max() <= 36
        assert np.abs(np.diff(places, axis=0)).max() <= 4  # 3.6 cells and truncation
        assert places.min() <= 1
        assert places.max() >= 35


def test_overlapping_digits_combine_by_maximum():
    film = draw_sequence(np.random.default_rng(0), np.full((1, 28, 28), 255, np.uint8), frames=20, digits=30)
    assert set(np.unique(film)) == {0.0, 1.0}
    assert film.dtype == np.float32
    one = draw_sequence(np.random.default_rng(0), np.full((1, 28, 28), 255, np.uint8), frames=5, digits=1)
    np.testing.assert_array_equal(one.sum(axis=(1, 2)), 28 * 28)


def test_sequences_repeat_by_seed(options):
    def first(source: MovingMnistOptions) -> np.ndarray:
        return open_source(source).segments()[0].read(np.arange(4), slice(None), slice(None))["intensity"].values

    np.testing.assert_array_equal(first(options), first(options))
    assert not np.array_equal(first(options), first(options.model_copy(update={"seed": 1})))


def test_a_bomb_in_place_of_digits_is_not_unpacked_whole(options, tmp_path, monkeypatch):
    monkeypatch.setattr(moving_mnist, "MOST_BYTES", 2**20)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(2**24)))
    with pytest.raises(InputError, match=r"bomb.gz: more than 1048576 bytes of images: take another file"):
        open_source(options.model_copy(update={"train_images": str(tmp_path / "bomb.gz")})).segments()[0].read(
            np.arange(2), slice(None), slice(None)
        )


def test_broken_digit_files_are_named(options, tmp_path):
    def error_with(path, **more) -> str:
        with pytest.raises(InputError) as caught:
            inspect_source(options.model_copy(update={"train_images": str(path), **more}))
        return str(caught.value)

    good = tmp_path / "train.gz"
    short = tmp_path / "short.gz"
    short.write_bytes(good.read_bytes()[:-9])
    assert "short.gz: truncated or broken gzip file" in error_with(short)
    (tmp_path / "text").write_text("no digits")
    assert "text: no IDX file of 28 x 28 images" in error_with(tmp_path / "text")
    assert "nowhere: no such file" in error_with(tmp_path / "nowhere")
    assert "expected 0000" in error_with(good, train_sha256="0" * 64)
