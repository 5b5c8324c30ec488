import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fieldcast import models
from fieldcast.models.layers.reference import climatology_at
from fieldcast.models.video_transformer.attention.patterns import ATTENTIONS
from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.signature import Axis, Channel, DataSignature
from fieldcast.pipeline.datasets.store import directory_digest
from fieldcast.pipeline.errors import BusyError, InputError
from fieldcast.pipeline.forecasting import checkpoint
from fieldcast.pipeline.forecasting.calibration import Calibration
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig
from fieldcast.pipeline.forecasting.forecaster import Forecaster, build_network, load, load_cached, mean_of_members
from tests.conftest import ROOT

RAIN = Channel("rain_rate", "mm h-1", "log", 0.5, valid_min=0.0)
LEARNED = {"recurrent": {"hidden": [5], "patch": 2}, "video_transformer": {"dim": 8, "heads": 2, "patch": 3}}
SIGNATURE = DataSignature(
    {"rain_rate": "mm h-1"}, Axis(11, 0.5, 10.5, "km"), Axis(13, 0.5, 12.5, "km"), None, step_minutes=5, phase_seconds=0
)
TIMES = np.array(["2024-06-01T05:00", "2024-06-01T23:55"], dtype="datetime64[ns]")


def description(model: str, **changes: Any) -> CheckpointConfig:
    options = LEARNED.get(model, {"frames": 3} if model == "advection" else {})
    base = CheckpointConfig(model, model, options, 3, 4, 5, (RAIN,), 1, False, SIGNATURE, None, "0" * 32 + ".dir")
    return replace(base, **changes)


def history(seed: int = 1) -> np.ndarray:
    draws = np.random.default_rng(seed)
    fields = draws.gamma(0.3, 3.0, size=(2, 3, 1, 11, 13)).astype(np.float32)
    fields[:, :, :, :, 0] = np.nan  # never covered
    fields[:, 2, :, 4, 4] = np.nan  # missing in the last frame alone
    return fields


def trained(model: str, folder: Path, **changes: Any) -> tuple[Forecaster, dict[str, np.ndarray]]:
    """Write a checkpoint with random weights, so that forecasts differ from persistence."""
    torch.manual_seed(1)
    described = description(model, **changes)
    network = build_network(described, np.full((1, 1, 1, 1), 0.2), np.array([0.5]))
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draws)
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    checkpoint.save_checkpoint(folder, described, arrays, "# card\n")
    return Forecaster(described, {}, network.eval()), arrays


@pytest.mark.parametrize("model", sorted(LEARNED))
def test_round_trip_is_bitwise(model: str, tmp_path: Path) -> None:
    original, _ = trained(model, tmp_path / model)
    loaded = load(tmp_path / model)
    np.testing.assert_array_equal(loaded(history(), TIMES), original(history(), TIMES))
    names = ["card.md", "config.json", "manifest.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / model).iterdir()) == names


VARIANTS = {
    **{attention: ("video_transformer", {"attention": attention}) for attention in ATTENTIONS},
    **{
        mixer: ("recurrent", {"cell": mixer, "hidden": [8]})
        for mixer in ("convlstm", "convgru", "trajgru", "attention")
    },
}


@pytest.mark.parametrize(("kind", "options"), VARIANTS.values(), ids=VARIANTS)
def test_every_variant_comes_back_bit_for_bit(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    original, arrays = trained(kind, tmp_path / "it", options=LEARNED[kind] | options)
    loaded = load(tmp_path / "it")
    assert loaded.network is not None
    for name, value in loaded.network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), arrays[name], strict=True)  # shapes too, also of single numbers
    np.testing.assert_array_equal(loaded(history(), TIMES), original(history(), TIMES))


@pytest.mark.parametrize("model", [*LEARNED, "persistence", "climatology", "damped_persistence", "advection"])
def test_forecasts_are_complete_in_range_and_missing_where_nothing_was_seen(model: str, tmp_path: Path) -> None:
    if model in LEARNED:
        forecaster, _ = trained(model, tmp_path / model)
    else:
        arrays = {
            "climatology": np.full((24, 1, 11, 13), 0.4, np.float32),
            "damping": np.full((4, 1), -2.0, np.float32),
        }
        forecaster = Forecaster(description(model), arrays)
    result = forecaster(history(), TIMES)
    assert result.shape == (2, 4, 1, 11, 13)
    assert result.dtype == np.float32
    assert np.isnan(result[..., 0]).all()
    assert np.isfinite(result[..., 1:]).all()
    assert result[..., 1:].min() >= 0  # no negative rain, even with a negative damping


def test_forecast_does_not_depend_on_the_rest_of_the_batch(tmp_path: Path) -> None:
    forecaster, _ = trained("recurrent", tmp_path / "c")
    both, one = forecaster(history(), TIMES), forecaster(history()[1:], TIMES[1:])
    np.testing.assert_allclose(both[1:], one, rtol=1e-5, atol=1e-6)


def test_a_model_is_loaded_once_until_its_folder_changes(tmp_path: Path) -> None:
    trained("recurrent", tmp_path / "c")
    one = directory_digest(tmp_path / "c")
    first = load_cached(tmp_path / "c", one)
    assert load_cached(tmp_path / "c", one) is first
    trained("recurrent", tmp_path / "c", horizon=2)
    second = load_cached(tmp_path / "c", directory_digest(tmp_path / "c"))
    with pytest.raises(BusyError, match="was trained again just now"):  # and no forecast of one under the other's name
        load_cached(tmp_path / "c", one)
    assert (first.config.horizon, second.config.horizon) == (4, 2)
    checkpoint.save_checkpoint(tmp_path / "p", description("persistence"), {}, "")
    assert load_cached(tmp_path / "p", directory_digest(tmp_path / "p")).network is None


def test_config_comes_back_from_its_folder(tmp_path: Path) -> None:
    saved = description("recurrent", calendar=True, signature=replace(SIGNATURE, crs="WKT", step_minutes=10))
    checkpoint.save_checkpoint(tmp_path / "it", saved, {}, "")
    assert checkpoint.read_config(tmp_path / "it") == saved
    assert saved.signature.digest != SIGNATURE.digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update(format=4), "format is 4, expected 8; train the model again"),
        (lambda content: content.update(odd=1), "unknown or missing keys ['odd']"),
        (lambda content: content["channels"][0].update(odd=1), "unexpected keyword argument 'odd'"),
        (lambda content: content["signature"].pop("y"), "missing 1 required positional argument: 'y'"),
        (lambda content: content["signature"]["y"].pop("cells"), "missing 1 required positional argument: 'cells'"),
        (lambda content: content.update(kind="nothing"), "kind is 'nothing', expected one of persistence"),
        (lambda content: content.update(kind=["a"]), "kind"),
        (lambda content: content.update(history="3"), "history: Input should be a valid integer"),
        (lambda content: content.update(channels=None), "NoneType"),
        (lambda content: content.update(channels=[3]), "must be a mapping"),
        (lambda content: content.update(signature=[]), "'list' object is not a mapping"),
        (lambda content: content["options"].update(no_such=1), "no_such: Extra inputs are not permitted"),
    ],
)
def test_a_config_of_another_shape_is_refused(
    change: Callable[[dict[str, Any]], Any], words: str, tmp_path: Path
) -> None:
    checkpoint.save_checkpoint(tmp_path / "it", description("recurrent"), {}, "")
    content = json.loads((tmp_path / "it/config.json").read_text())
    change(content)
    (tmp_path / "it/config.json").write_text(json.dumps(content))
    manifest.write(tmp_path / "it")
    with pytest.raises(InputError, match=re.escape(words)):
        checkpoint.read_config(tmp_path / "it")


def test_climatology_by_hour() -> None:
    maps = np.arange(24.0).reshape(24, 1, 1, 1)
    assert climatology_at(maps, TIMES[:, None])[:, 0, 0, 0, 0].tolist() == [5, 23]
    assert climatology_at(maps[:1], TIMES[:, None])[:, 0, 0, 0, 0].tolist() == [0, 0]


def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    _, arrays = trained("recurrent", tmp_path / "c")
    name = next(key for key in arrays if arrays[key].ndim == 4)
    for broken in ({**arrays, name: arrays[name][:1]}, {**arrays, "extra": np.zeros(1)}):
        checkpoint.save_checkpoint(tmp_path / "c", description("recurrent"), broken, "")
        with pytest.raises(InputError, match="extra" if "extra" in broken else name):
            load(tmp_path / "c")


def test_a_foreign_or_older_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path)
    trained("recurrent", tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    content = json.loads(path.read_text())
    for change, expected in (({"format": 6}, "format is 6, expected 8"), ({"colour": 1}, "colour")):
        path.write_text(json.dumps({**content, **change}))
        manifest.write(tmp_path / "c")
        with pytest.raises(InputError, match=expected):
            load(tmp_path / "c")
    for cut in (b"{", b"", b"\xff\xfe", b"[" * 100_000, b"[]", b"3"):
        path.write_bytes(cut)
        manifest.write(tmp_path / "c")
        with pytest.raises(InputError, match=r"not valid JSON|in place of a configuration"):
            load(tmp_path / "c")


def test_no_pickle_in_the_folder_and_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        trained("recurrent", tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    header = (tmp_path / "one" / "model.safetensors").read_bytes()[8:9]
    assert header == b"{"  # safetensors: a length, then JSON, then numbers


def test_a_fresh_process_forecasts_from_the_folder_alone(tmp_path: Path) -> None:
    forecaster, _ = trained("recurrent", tmp_path / "c")
    np.save(tmp_path / "history.npy", history())
    code = (
        "import numpy as np; from pathlib import Path; from fieldcast.pipeline.forecasting.forecaster import load;"
        "h = np.load('history.npy'); t = np.array(['2024-06-01T05:00', '2024-06-01T23:55'], dtype='datetime64[ns]');"
        "np.save('forecast.npy', load(Path('c'))(h, t))"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment)
    np.testing.assert_allclose(np.load(tmp_path / "forecast.npy"), forecaster(history(), TIMES), rtol=1e-5, atol=1e-6)


WITH_MEMBERS = {
    "convlstm_quantiles": ("recurrent", {"hidden": [5], "patch": 2, "output": "quantiles", "members": 4}),
    "convlstm_ensemble": ("recurrent", {"hidden": [5], "patch": 2, "output": "ensemble", "members": 4}),
    "transformer_ensemble": ("video_transformer", {**LEARNED["video_transformer"], "output": "ensemble", "members": 4}),
    "transformer_quantiles": ("video_transformer", {**LEARNED["video_transformer"], "output": "quantiles"}),
    "steps": ("steps", {"members": 4}),
}


def with_members(case: str, folder: Path) -> Forecaster:
    """Return a model with members and an offset of its ranks, loaded from its folder."""
    kind, options = WITH_MEMBERS[case]
    described = description(kind, options=models.OPTIONS[kind].model_validate(options).model_dump())
    _, arrays = (None, {}) if kind == "steps" else trained(kind, folder, options=described.options)
    offsets = np.zeros((4, 1, 2, described.members), np.float32)
    offsets[..., -1] = [[0.0, 3.0]]  # the highest member, where it rains
    found = Calibration(offsets, np.tile(np.array([0, 0.5], np.float32), (4, 1, 1)))
    checkpoint.save_checkpoint(folder, described, {**arrays, **found.arrays()}, "# card\n")
    return load(folder)


@pytest.mark.parametrize("case", WITH_MEMBERS)
def test_members_are_complete_and_their_mean_is_the_forecast(case: str, tmp_path: Path) -> None:
    forecaster = with_members(case, tmp_path / case)
    members = forecaster.members(history(), TIMES)
    assert forecaster.config.members == members.shape[1]
    assert members.shape[:1] + members.shape[2:] == (2, 4, 1, 11, 13)
    assert members.dtype == np.float32
    assert np.isnan(members[..., 0]).all()
    assert np.isfinite(members[..., 1:]).all()
    assert members[..., 1:].min() >= 0
    np.testing.assert_array_equal(forecaster(history(), TIMES), members.mean(axis=1))
    np.testing.assert_array_equal(members, with_members(case, tmp_path / case).members(history(), TIMES))
    if "quantiles" in case:
        assert (np.diff(members[..., 1:], axis=1) >= 0).all()  # the offset moves the highest one alone


@pytest.mark.parametrize("case", WITH_MEMBERS)
def test_members_follow_from_the_init_time_whatever_the_batch_and_tile(case: str, tmp_path: Path) -> None:
    forecaster = with_members(case, tmp_path / case)
    both = forecaster.members(history(), TIMES)
    alone = np.concatenate([forecaster.members(history()[i : i + 1], TIMES[i : i + 1]) for i in range(2)])
    np.testing.assert_allclose(alone, both, rtol=1e-4, atol=1e-5)
    at_another_time = forecaster.members(history(), TIMES[::-1])
    assert np.array_equal(at_another_time, both, equal_nan=True) == ("quantiles" in case)
    if forecaster.network is not None:
        elsewhere = forecaster.members(history(), TIMES, origin=(5, 2))
        np.testing.assert_array_equal(elsewhere, both)


def test_calibration_moves_members_and_is_no_weight(tmp_path: Path) -> None:
    calibrated = with_members("convlstm_ensemble", tmp_path / "c")
    raw = Forecaster(calibrated.config, {}, calibrated.network)
    moved = calibrated.members(history(), TIMES) - raw.members(history(), TIMES)
    assert np.nanmax(moved) == pytest.approx(3, abs=1e-3)
    assert np.nanmin(moved) == 0
    assert (np.nan_to_num(moved) > 0).sum(axis=1).max() == 1  # one rank


def test_what_members_are() -> None:
    assert [
        (described.members, described.members_are)
        for described in (
            description("recurrent", options=models.OPTIONS["recurrent"]().model_dump()),
            description("persistence"),
            description("steps", options=models.OPTIONS["steps"]().model_dump()),
            description("recurrent", options=models.OPTIONS["recurrent"](output="quantiles").model_dump()),
            description("recurrent", options=models.OPTIONS["recurrent"](output="ensemble", members=3).model_dump()),
        )
    ] == [(None, None), (None, None), (10, "ensemble"), (10, "quantiles"), (3, "ensemble")]


def test_one_forecast_is_its_own_mean_bit_for_bit() -> None:
    values = np.array([[[0.0, -0.0, 1e-40, np.nan]]], np.float32)
    assert mean_of_members(values).tobytes() == values.tobytes()
