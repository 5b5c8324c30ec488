"""`make ablation`: every variation is a valid project that differs in one part, and a row is what its trainings say."""

from pathlib import Path

import pytest
import yaml

from docs.tools.ablation import VARIATIONS, row, varied
from fieldcast.pipeline import config
from fieldcast.pipeline.verification.scores import Score

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.mark.parametrize("name", VARIATIONS)
def test_every_variation_is_valid_and_its_own(name: str, tmp_path: Path) -> None:
    written = []
    for change in (VARIATIONS["all"], VARIATIONS[name]):
        content = varied(yaml.safe_load(PARAMS.read_text()), "unet", change, ["seed_1", "seed_2"])
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(content))
        written.append(config.read(path))
    assert [entry.options.model_dump()["seed"] for entry in written[1].models.values()] == [1, 2]
    assert (written[0] == written[1]) == (name == "all")


def test_a_row_has_mean_and_deviation_of_the_trainings() -> None:
    rmse, csi = Score("rmse"), Score("csi", 1.0, units="mm h-1")
    leads = range(5, 61, 5)
    trainings = [{rmse: {lead: k + lead for lead in leads}, csi: dict.fromkeys(leads, 0.5)} for k in (0.0, 2.0)]
    assert row("all", trainings, 1.0) == (
        "| all | 6.000 ± 1.414 | 16.000 ± 1.414 | 31.000 ± 1.414 | 61.000 ± 1.414 |"
        " 0.500 ± 0.000 | 0.500 ± 0.000 | 0.500 ± 0.000 | 0.500 ± 0.000 |"
    )
