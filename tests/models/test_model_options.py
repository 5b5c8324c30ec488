import subprocess
import sys

import pytest
from pydantic import ValidationError

from fieldcast import models


def test_every_kind_has_options():
    assert set(models.OPTIONS) == {*models.REFERENCES, *models.LEARNED}
    for options in models.OPTIONS.values():
        assert options.model_validate(options().model_dump()) == options()


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("recurrent", {"kernel": 4}, "kernel must be odd, got 4"),
        ("recurrent", {"hidden": []}, "at least 1 item"),
        ("recurrent", {"hidden": [0]}, "greater than 0"),
        ("recurrent", {"width": 4}, "Extra inputs are not permitted"),
        ("video_transformer", {"attention": "sparse"}, "'clustered' or 'deformable'"),
        ("video_transformer", {"dim": 20, "heads": 3}, r"dim must be a multiple of 4 and of heads \(3\), got 20"),
        ("video_transformer", {"order": "TXS"}, "should match pattern"),
        ("video_transformer", {"order": "TS", "attention": "joint"}, "order applies to attention: factorised only"),
        ("recurrent", {"members": 4}, "members applies to output: quantiles or ensemble, got 4 with point"),
        ("video_transformer", {"output": "ensemble", "members": 1}, "greater than or equal to 2"),
        ("steps", {"frames": 2}, "greater than or equal to 3"),
        ("advection", {"frames": 1}, "greater than or equal to 2"),
        ("persistence", {"x": 1}, "Extra inputs are not permitted"),
    ],
)
def test_bad_options_are_named(name, wrong, message):
    with pytest.raises(ValidationError, match=message):
        models.OPTIONS[name].model_validate(wrong)


def test_members_have_a_number():
    for name in models.LEARNED:
        options = models.OPTIONS[name]
        assert options().members is None
        assert options(output="quantiles").members == options(output="ensemble").members == 10
        chosen = options(output="ensemble", members=4)
        assert options.model_validate(chosen.model_dump()) == chosen
        assert (options(output="quantiles", members=3).values, chosen.values, options().values) == (3, 1, 1)


def test_import_is_light():
    code = (
        "import sys; from fieldcast import models; print([m for m in ('torch', 'pysteps', 'cv2') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
